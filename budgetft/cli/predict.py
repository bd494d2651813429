"""``budgetft predict``: generate captions and answers for a dataset, inside the budget, and go on after an interrupt."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from budgetft.allocator import read_settings
from budgetft.cli import names, options
from budgetft.cli.lines import put
from budgetft.cli.options import budget_bytes, contract_from, weights_at
from budgetft.cli.progress import say
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.model import load_model
from budgetft.plan import read_plan
from budgetft.units import format_gib
from budgetft.weights import is_hub_id, with_revision

if TYPE_CHECKING:
    from budgetft.evaluate.generate import Generated, Progress
    from budgetft.evaluate.source import Source
    from budgetft.export.merge import base_of_run

DEFAULT_GPU = "v100-16g"
DATA = "Data"
WHAT = "What generates"
ALONE = "Of a model alone"
HOW = "Generation"
LINES = 50
"""About so many progress lines a run."""


def predict(
    data: Annotated[
        Path, typer.Option("--data", metavar="PATH", help="A dataset folder, or data to convert first.", rich_help_panel=DATA)
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help="The file to append to; the same command resumes it.", rich_help_panel=DATA),
    ],
    run: Annotated[
        Path | None,
        typer.Option(
            "--run",
            metavar="DIR",
            show_default="none",
            help="A run folder: its model, adapter, settings and budget.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            show_default="none",
            help="A plan: its model without an adapter, settings and budget.",
            rich_help_panel=WHAT,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            show_default="none",
            help="A model alone: bundled, a folder or an id on the hub.",
            autocompletion=names.models,
            rich_help_panel=WHAT,
        ),
    ] = None,
    weights: options.Weights = None,
    revision: options.Revision = None,
    no_adapter: Annotated[
        bool, typer.Option("--no-adapter", help="With --run: the base model alone, all else equal.", rich_help_panel=WHAT)
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME",
            show_default=DEFAULT_GPU,
            help="With --model: the GPU profile.",
            autocompletion=names.gpus,
            rich_help_panel=ALONE,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            show_default="the GPU's",
            help="With --model: memory for the whole process, such as 14GiB.",
            rich_help_panel=ALONE,
        ),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            show_default=options.kept("max_pixels"),
            help="With --model: larger images are downscaled to this many pixels.",
            rich_help_panel=ALONE,
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            show_default=options.kept("max_length"), help="With --model: most tokens of a prompt.", rich_help_panel=ALONE
        ),
    ] = None,
    precision: Annotated[
        Literal["fp16", "bf16", "fp32"] | None,
        typer.Option(show_default="the GPU's", help="With --model: the weights' type.", rich_help_panel=ALONE),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Examples at a time; halved when memory runs out.", rich_help_panel=HOW)
    ] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest text, in tokens.", rich_help_panel=HOW)] = 256,
    sample: Annotated[
        bool, typer.Option("--sample", help="Sample tokens instead of taking the likeliest.", rich_help_panel=HOW)
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(show_default="1", help="With --sample: above 1, more variety.", rich_help_panel=HOW)
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            show_default="1", help="With --sample: from the tokens that together have this probability.", rich_help_panel=HOW
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(show_default="0", help="With --sample: of the random numbers.", rich_help_panel=HOW)
    ] = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    json_output: options.Json = False,
) -> None:
    """Generate a caption or answer for every example of a dataset, inside the memory budget.

    Name what generates: one of --run, --plan and --model.
    """
    _refuse_unread({"--temperature": temperature, "--top-p": top_p, "--seed": seed}, "--sample", given=sample)
    alone = {"gpu": gpu, "budget": budget, "max_pixels": max_pixels, "max_length": max_length, "precision": precision}
    _check_source(run, plan, model, no_adapter, alone)
    read_settings(os.environ)  # torch would abort as it is loaded
    from budgetft.cli.datasets import dataset
    from budgetft.data.examples import read_dataset

    examples = read_dataset(dataset(data, quiet=quiet, unlabelled=True))
    from budgetft.evaluate.generate import generate
    from budgetft.step.decoding import Decoding

    decoding = Decoding.make(
        max_new_tokens=max_new_tokens,
        temperature=(1.0 if temperature is None else temperature) if sample else None,
        top_p=1.0 if top_p is None else top_p,
        seed=seed or 0,
    )
    with _progress(len(examples), quiet=quiet) as (on_progress, on_note):
        summary = generate(
            _source(run, plan, model, weights, revision, no_adapter, **alone),
            examples,
            out,
            decoding=decoding,
            batch=batch,
            device=device,
            on_progress=on_progress,
            on_note=on_note,
        )
    print(summary.model_dump_json(indent=2)) if json_output else put(_lines(summary, out))


def _check_source(run: Path | None, plan: Path | None, model: str | None, no_adapter: bool, alone: dict[str, Any]) -> None:
    if sum(choice is not None for choice in (run, plan, model)) != 1:
        raise UsageError("name what generates: one of --run, --plan and --model")
    asked = {f"--{name.replace('_', '-')}": value for name, value in alone.items()}
    _refuse_unread(asked, "--model", given=model is not None)
    _refuse_unread({"--no-adapter": no_adapter}, "--run", given=run is not None)


def _source(
    run: Path | None,
    plan: Path | None,
    model: str | None,
    weights: str | None,
    revision: str | None,
    no_adapter: bool,
    *,
    gpu: str | None,
    budget: str | None,
    max_pixels: int | None,
    max_length: int | None,
    precision: Any,
) -> "Source":
    from budgetft.evaluate.source import source_of_model, source_of_plan, source_of_run

    if run is not None:
        weights = weights_at(weights, revision, base_of_run(run) if revision else None)
        return source_of_run(run, weights=weights, use_adapter=not no_adapter)
    if plan is not None:
        read = read_plan(plan)
        return source_of_plan(read, weights=weights_at(weights, revision, read.model.weights or read.model.hub_id))
    profile = load_gpu(gpu or DEFAULT_GPU)
    contract, _ = contract_from(max_pixels=None if max_pixels is None else str(max_pixels), max_length=max_length)
    name = model or ""
    if revision and weights is None and is_hub_id(name):
        name = with_revision(name, revision)
    elif revision:
        weights = weights_at(weights, revision, load_model(name).hub_id)
    return source_of_model(
        name, gpu=profile, budget_bytes=budget_bytes(budget, profile), contract=contract, weights=weights, precision=precision
    )


def _refuse_unread(asked: dict[str, object], needs: str, *, given: bool) -> None:
    unread = [name for name, value in asked.items() if value is not None and value is not False]
    if unread and not given:
        raise UsageError(f"{', '.join(unread)} would not be read", hint=f"it belongs to {needs}")


@contextmanager
def _progress(examples: int, *, quiet: bool) -> Iterator[tuple[Callable[["Progress"], None], Callable[[str], None]]]:
    """What to call with progress and notes: a bar on a terminal, else a line now and then; quiet, only warnings are told."""
    if quiet:
        yield (lambda progress: None), (lambda note: say(note) if note.startswith("warning") else None)
    elif not sys.stderr.isatty():
        yield _Lines(examples), say
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
        with Bar(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=examples, visible=False)

            def show(progress: "Progress") -> None:
                text = f"{progress.generated / progress.seconds:.2f} examples/s, batch {progress.batch}"
                bar.update(task, completed=progress.done, description=text, visible=True)

            yield show, lambda note: bar.console.print(note, markup=False, highlight=False, soft_wrap=True)


class _Lines:
    """A line when another fiftieth of the examples is done."""

    def __init__(self, examples: int) -> None:
        self._every = max(1, examples // LINES)
        self._told = 0

    def __call__(self, progress: "Progress") -> None:
        if progress.done < progress.examples and progress.done - self._told < self._every:
            return
        self._told = progress.done
        left = (progress.examples - progress.done) * progress.seconds / progress.generated
        rate = progress.generated / progress.seconds
        say(f"{progress.done}/{progress.examples}  {rate:.2f} examples/s  batch {progress.batch}  {left:.0f} s left")


def _lines(summary: "Generated", out: Path) -> str:
    over = "OVER the budget" if summary.over_budget else "of the budget"
    rate = f", {summary.generated / summary.seconds:.2f} examples/s" if summary.seconds else ""
    rows = {
        "predictions": f"{out}: {summary.generated} new, {summary.skipped} already there, of {summary.examples} examples",
        "time": f"{summary.seconds:.1f} s{rate}",
        "cut off": f"{summary.truncated} of the new texts reached --max-new-tokens",
        "peak": f"{format_gib(summary.process_peak_bytes)} {over} {format_gib(summary.budget_bytes)}",
        "out of memory": f"{len(summary.reductions)} times; the batch is {summary.batch}",
        "evidence": f"{summary.evidence}: {summary.note}",
    }
    width = max(len(name) for name in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())
