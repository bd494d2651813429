"""The command line: one thin module per command, and the one place where errors become exit codes."""

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from budgetft.errors import BudgetftError, refused_by_system

if TYPE_CHECKING:
    import typer

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 done, 1 failed, 2 wrong use, 3 nothing fits)."""
    import typer

    usage_error: Any = typer.BadParameter.__base__  # click's UsageError; newer Typer carries a click of its own
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        result = typer.main.get_command(build_app())(
            args=None if argv is None else list(argv), prog_name="budgetft", standalone_mode=False
        )
        return result if isinstance(result, int) else 0
    except BudgetftError as error:
        return _told(error)
    except OSError as error:  # a place that cannot be written, a full disk: wherever a command meets it
        return _told(refused_by_system(error))
    except typer.Exit as error:
        return error.exit_code
    except usage_error as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _told(error: BudgetftError) -> int:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"\nhint: {error.hint}", file=sys.stderr)
    return error.exit_code


def build_app() -> "typer.Typer":
    """The Typer app. Commands load their own imports when they run, so that ``--help`` loads no torch."""
    import typer

    from budgetft import __version__
    from budgetft.cli import (
        bench,
        data,
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

    app = typer.Typer(
        help="Plan and run LoRA fine-tuning of vision-language models inside a memory budget.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        if version:
            print(f"budgetft {__version__}")
            raise typer.Exit

    app.command("fit")(fit.fit)
    app.command("plan")(plan.plan)
    app.command("port")(port.port)
    app.command("train")(train.train)
    app.command("bench")(bench.bench)
    app.command("report")(report.report)
    app.command("launch")(launch.launch)
    app.command("estimate")(estimate.estimate)
    app.command("gpus")(gpus.gpus)
    app.command("models")(models.models)
    app.command("doctor")(doctor.doctor)
    app.command("predict")(predict.predict)
    app.command("evaluate")(evaluate.evaluate)
    app.command("export")(export.export)
    app.command("merge")(merge.merge)
    app.command("submit")(submit.submit)
    app.command("run")(workflow.run)
    app.command("demo")(workflow.demo)
    app.add_typer(data.app, name="data")
    return app


def run() -> None:
    """Entry point of the ``budgetft`` script."""
    sys.exit(main())
