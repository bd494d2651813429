"""``budgetft run`` and ``budgetft demo``: a file of stages, each one of the other commands."""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetft.cli import options
from budgetft.errors import BudgetftError, refused_by_system

if TYPE_CHECKING:
    from budgetft.workflow.file import Commands, Option
    from budgetft.workflow.run import Done

INTERRUPTED = 130
"""What an interrupted command ends with."""

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run and why, and run nothing.")]


def run(
    file: Annotated[Path, typer.Argument(metavar="WORKFLOW.TOML", help="The stages; paths in it start at its folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", show_default="the file's", help="The output folder.")
    ] = None,
    dry_run: DryRun = False,
    json_output: options.Json = False,
) -> None:
    """Run the stages of a file: data, stats, plan, train, predict, evaluate, report; what is unchanged is skipped."""
    _run(file, out, dry_run=dry_run, json_output=json_output)


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The output folder.")] = Path("budgetft-demo"),
    dry_run: DryRun = False,
    json_output: options.Json = False,
) -> None:
    """All stages with a tiny random model on made-up traffic videos: no GPU, no hub, a few minutes."""
    from budgetft.data.media.video import load_av
    from budgetft.evaluate.metrics import check_packages

    load_av()
    check_packages()
    with as_file(files("budgetft.workflow") / "demo.toml") as file:
        _run(file, out, dry_run=dry_run, json_output=json_output)
    if not (dry_run or json_output):
        print("The model's weights are random: its captions are noise, and the scores show only that everything runs.")


def command_options() -> "Commands":
    """The options of every command that a workflow may run."""
    from budgetft.cli import build_app
    from budgetft.workflow.stages import STAGES

    root: Any = typer.main.get_command(build_app())
    found: dict[tuple[str, ...], dict[str, Option]] = {}
    for path in {command for stage in STAGES for command in stage.commands.values()}:
        command = root
        for name in path:
            command = command.commands[name]
        context = command.context_class(command, info_name=" ".join(path))
        each = [(_option(param, context), _names(param)) for param in command.params if param.name != "help"]
        # An option is known by each of its names, so that files from before one was renamed go on working.
        found[path] = {
            name: replace(option, name=name, required=option.required and not place)
            for option, names in each
            for place, name in enumerate(names)
        }
    return found


def _names(param: Any) -> list[str]:
    if param.param_type_name == "argument":
        return [param.name.replace("_", "-")]
    return [opt.removeprefix("--") for opt in param.opts if opt.startswith("--")]


def _option(param: Any, context: Any) -> "Option":
    from budgetft.workflow.file import Option

    usage_error: Any = typer.BadParameter.__base__

    several = bool(getattr(param, "multiple", False)) or param.nargs == -1

    def problem(text: str) -> str | None:
        try:
            param.process_value(context, (text,) if several else text)
        except usage_error as error:
            return error.message.removeprefix("Value error, ")
        return None

    positional = param.param_type_name == "argument"
    long = [opt for opt in param.opts if opt.startswith("--")]
    off = next(iter(param.secondary_opts), None)
    return Option(
        name=param.name.replace("_", "-") if positional else long[0].removeprefix("--"),
        positional=positional,
        required=param.required,
        several=several,
        flags=(long[0], off) if getattr(param, "is_flag", False) else None,
        default=param.default if isinstance(param.default, str) else None,
        problem=problem,
    )


def _run(file: Path, out: Path | None, *, dry_run: bool, json_output: bool) -> None:
    from budgetft.workflow.file import read_workflow
    from budgetft.workflow.run import printed, run_workflow

    workflow = read_workflow(file, command_options(), out=out)
    tasks = {task.stage.name: task for task in workflow.tasks}
    done = run_workflow(workflow, _command(show=not json_output), say=_say, dry_run=dry_run)
    scores = printed(workflow, tasks["evaluate"]) if "evaluate" in tasks and not dry_run else None
    if json_output:
        result = {"out": str(workflow.home / workflow.out), "stages": [asdict(one) for one in done]}
        print(json.dumps(result, indent=2))
    elif not dry_run:
        print("\n".join(_ending(done, workflow.home, None if scores is None else scores.read_text(encoding="utf-8"))))


def _ending(done: "list[Done]", home: Path, scores: str | None) -> Iterator[str]:
    """What the whole run has to show: the scores, and where everything lies."""
    if scores is not None:
        yield scores
    ran = sum(one.status == "ran" for one in done)
    seconds = sum(one.seconds or 0.0 for one in done)
    yield f"{ran} of {len(done)} stages ran, in {seconds:.0f} s"
    for one in done:
        path = home / one.outputs[0]
        yield f"  {one.stage:<9} {path / 'report.html' if one.stage == 'report' else path}"


def _command(*, show: bool) -> Callable[[tuple[str, ...]], str]:
    """Runs a command of this program; what it prints comes back, and is shown, but for the scores, which come last."""
    from budgetft.cli import build_app

    root: Any = typer.main.get_command(build_app())

    def run_one(argv: tuple[str, ...]) -> str:
        usage_error: Any = typer.BadParameter.__base__
        caught = io.StringIO()
        try:
            with contextlib.redirect_stdout(caught):
                code = root.main(args=list(argv), prog_name="budgetft", standalone_mode=False)
        except usage_error as error:
            raise BudgetftError(error.format_message()) from None
        except OSError as error:
            raise refused_by_system(error) from None
        except typer.Exit as error:
            code = error.exit_code
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if isinstance(code, int) and code:
            raise BudgetftError(f"budgetft {' '.join(argv)} ended with exit code {code}")
        if show and argv[0] != "evaluate":
            print(caught.getvalue(), flush=True)
        return caught.getvalue()

    return run_one


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
