"""The command line: one thin module per command, and the one place where errors become exit codes."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from budgetft.errors import BudgetftError, refused_by_system

if TYPE_CHECKING:
    import typer

INTERRUPTED = 130
HEADINGS = {
    "Look first": ("fit", "estimate", "gpus", "models", "doctor"),
    "Data": ("data",),
    "Plan": ("plan", "port", "bench"),
    "Train": ("train", "launch", "merge", "export"),
    "Results": ("predict", "evaluate", "submit", "report"),
    "Several stages at once": ("run", "demo"),
}
"""Every command, in the order in which they are used."""
ORDER = tuple(name for names in HEADINGS.values() for name in names)
_TRIALS = "finished trials are kept: run the same command again"
KEPT = {
    "plan": _TRIALS,
    "port": _TRIALS,
    "bench": _TRIALS,
    **dict.fromkeys(("estimate", "fit"), "nothing was lost: run the same command again"),
    "run": "finished stages are kept: the same command resumes from them",
    "demo": "finished stages are kept: the same command resumes from them",
    "predict": "texts that were written are kept: the same command resumes after them",
}
"""What is true of each command after an interrupt."""
ENDING = """budgetft COMMAND -h explains a command. --install-completion makes Tab complete commands, options, GPUs and models.

Exit codes: 0 done, 1 failed, 2 usage error, 3 nothing fits, 130 interrupted; those of doctor are in its help.

Trials, memory models and converted data are kept in $BUDGETFT_CACHE, else $XDG_CACHE_HOME/budgetft, else
~/.cache/budgetft; budgetft doctor shows the folder and its size."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 failed, 2 usage error, 3 nothing fits, 130 interrupted)."""
    import typer

    usage_error: Any = typer.BadParameter.__base__  # click's UsageError; newer Typer carries a click of its own
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        result = typer.main.get_command(build_app())(args=words, prog_name="budgetft", standalone_mode=False)
        if result == INTERRUPTED:  # Typer has made it of the interrupt
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except BudgetftError as error:
        return _told(error)
    except OSError as error:  # a place that cannot be written, a full disk: wherever a command meets it
        return _told(refused_by_system(error))
    except typer.Exit as error:
        return error.exit_code
    except usage_error as error:
        return _told_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        print(f"\n{interrupted_text(words)}", file=sys.stderr)
        return INTERRUPTED


def _told(error: BudgetftError) -> int:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"\nhint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _told_usage(error: Any) -> int:
    """What was wrong with the words themselves, and the option that was meant."""
    from budgetft.cli.help import nearest_option

    message = error.format_message()
    if hasattr(error, "possibilities"):  # an unknown option
        near = nearest_option(error.option_name, error.ctx.command) if error.ctx else None
        message = f"no option {error.option_name}; " + (f"did you mean {near}?" if near else "")
    print(f"error: {message.rstrip('; ')}", file=sys.stderr)
    if error.ctx is not None:
        print(f"\nhint: {error.ctx.command_path} -h lists what it takes", file=sys.stderr)
    return error.exit_code


def interrupted_text(words: Sequence[str]) -> str:
    """What an interrupt leaves behind, by the command: whether the same line goes on from where it was."""
    kept = KEPT.get(next((word for word in words if not word.startswith("-")), ""))
    return f"interrupted; {kept}" if kept else "interrupted"


def build_app() -> "typer.Typer":
    """The Typer app. Commands load their own imports when they run, so that ``--help`` loads no torch."""
    import typer

    from budgetft import __version__
    from budgetft.cli import data
    from budgetft.cli.help import Command, Group

    class Root(Group):
        order = ORDER

    app = typer.Typer(
        cls=Root,
        help="Fine-tune vision-language models with LoRA on one small GPU: what fits, how fast, and training that stays inside"
        " the memory budget.",
        epilog=ENDING,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if version:
            print(f"budgetft {__version__}")
            raise typer.Exit

    @app.command("help", hidden=True, cls=Command)
    def show_help(
        words: Annotated[
            list[str] | None, typer.Argument(metavar="COMMAND...", show_default="all", help="The command to explain.")
        ] = None,
    ) -> None:
        """Explain a command."""
        raise typer.Exit(main([*(words or ()), "--help"]))

    for name, function in _functions().items():
        app.command(name, cls=Command, rich_help_panel=heading_of(name))(function)
    app.add_typer(data.app, name="data", rich_help_panel=heading_of("data"))
    return app


def _functions() -> dict[str, Callable[..., None]]:
    """Every command that is a function, by its name."""
    from budgetft.cli import (
        bench,
        doctor,
        estimate,
        evaluate,
        export,
        fit,
        gpus,
        launch,
        merge,
        models,
        plan,
        port,
        predict,
        report,
        submit,
        train,
        workflow,
    )

    return {
        "doctor": doctor.doctor,
        "gpus": gpus.gpus,
        "models": models.models,
        "fit": fit.fit,
        "estimate": estimate.estimate,
        "plan": plan.plan,
        "port": port.port,
        "bench": bench.bench,
        "train": train.train,
        "launch": launch.launch,
        "merge": merge.merge,
        "export": export.export,
        "predict": predict.predict,
        "evaluate": evaluate.evaluate,
        "submit": submit.submit,
        "report": report.report,
        "run": workflow.run,
        "demo": workflow.demo,
    }


def heading_of(command: str) -> str:
    """The group of commands that ``command`` is shown in."""
    return next(heading for heading, names in HEADINGS.items() if command in names)


def run() -> None:
    """Entry point of the ``budgetft`` script."""
    sys.exit(main())
