"""``budgetft train``: run a plan into a folder, with its progress on stderr and its summary on stdout."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

from budgetft.allocator import read_settings
from budgetft.cli import of_run, options
from budgetft.cli.lines import put
from budgetft.duration import HOUR, duration_text
from budgetft.plan import read_plan
from budgetft.units import format_gib

if TYPE_CHECKING:
    from budgetft.outcome import Outcome
    from budgetft.plan import Plan
    from budgetft.train.record import Fallback, Record, Summary

LINES = 50
"""About so many plain progress lines a run."""
WIDE = 110
"""Columns of a terminal that has room for a bar beside the numbers."""

Note = Callable[[str], None]
Progress = Callable[["Record"], None]


def train(
    plan: Annotated[
        Path, typer.Option("--plan", metavar="FILE", help="The plan to run, from budgetft plan.", rich_help_panel=of_run.RUN)
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="The run folder: log, checkpoints, adapter, summary.", rich_help_panel=of_run.RUN
        ),
    ],
    data: of_run.Data = None,
    weights: of_run.Weights = None,
    revision: options.Revision = None,
    steps: of_run.Steps = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume from the newest checkpoint in --out.", rich_help_panel=of_run.LENGTH)
    ] = False,
    save_every: of_run.SaveEvery = None,
    eval_data: of_run.EvalData = None,
    eval_every: of_run.EvalEvery = None,
    keep_best: of_run.KeepBest = None,
    early_stopping: of_run.EarlyStopping = None,
    sample_captions: of_run.SampleCaptions = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="Runs on one GPU are bit-identical, but slower; without it they agree to rounding.",
            rich_help_panel=of_run.LENGTH,
        ),
    ] = None,
    device: options.Device = "auto",
    cache: of_run.Cache = None,
    tracker: of_run.Tracker = None,
    price_per_hour: options.PricePerHour = None,
    ledger: options.Ledger = None,
    quiet: options.Quiet = False,
    json_output: options.Json = False,
) -> None:
    """Train a plan to a LoRA adapter, inside its memory budget.

    The plan decides every training setting; to change one, plan again. Exit code 130: interrupted, the step is saved.
    """
    planned = read_plan(plan)
    read_settings(os.environ)  # torch would abort as it is loaded
    from budgetft.cli.datasets import dataset
    from budgetft.train.run import run_training

    data = None if data is None else dataset(data, quiet=quiet)
    eval_data = eval_data if eval_data is None or str(eval_data) == "none" else dataset(eval_data, quiet=quiet)

    with _progress(planned.gpu.budget_bytes, quiet=quiet) as (on_progress, on_note):
        if text := _expected(planned, steps, price_per_hour):
            on_note(text)
        summary = run_training(
            planned,
            out=out,
            data=data,
            weights=options.weights_at(weights, revision, planned.model.weights or planned.model.hub_id),
            steps=steps,
            resume=resume,
            save_every=save_every,
            device=device,
            cache=cache,
            on_progress=on_progress,
            on_note=on_note,
            on_refused=lambda outcome: _remember(planned, outcome, ledger, on_note),
            heldout=eval_data,
            heldout_every=eval_every,
            keep_best=keep_best,
            early_stopping=early_stopping,
            sample_captions=sample_captions,
            deterministic=deterministic,
            trackers=tracker or (),
        )
    if json_output:
        print(summary.model_dump_json(indent=2))
    else:
        _print_summary(summary, planned, out, price_per_hour)


def _remember(plan: "Plan", outcome: "Outcome", ledger: Path | None, on_note: Note) -> None:
    """The next plan of this job must know; that it cannot be told is no reason to end a run."""
    from budgetft.cache import cache_folder
    from budgetft.errors import BudgetftError
    from budgetft.measure.job import planned_job
    from budgetft.measure.ledger import Ledger

    path = ledger or cache_folder() / "ledger.sqlite3"
    device = "cpu" if outcome.evidence == "predicted" else "cuda"
    try:
        Ledger(path).append(planned_job(plan, device=device, evidence=outcome.evidence), outcome)
    except BudgetftError as error:
        on_note(f"warning: the ledger was not told of it: {error.message}")


@contextmanager
def _progress(budget_bytes: int, *, quiet: bool) -> Iterator[tuple[Progress, Note]]:
    """What to call with records and notes: a bar on a terminal, else plain lines; quiet, only warnings are told."""
    if quiet:
        yield (lambda record: None), (lambda note: _say(note) if note.startswith("warning") else None)
    elif sys.stderr.isatty():
        with _bar(budget_bytes) as calls:
            yield calls
    else:
        yield _lines(budget_bytes), _say


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _lines(budget_bytes: int) -> Progress:
    recent: deque[float] = deque(maxlen=LINES)

    def show(record: "Record") -> None:
        recent.append(record.seconds)
        every = max(1, record.steps // LINES)
        if record.step % every == 0 or record.step in (1, record.steps) or not record.finite:
            left = (record.steps - record.step) * fmean(recent)
            ends = f", {duration_text(left)} left" if record.step < record.steps else ""
            _say(f"step {record.step}/{record.steps}  {describe(record, budget_bytes)}{ends}")

    return show


@contextmanager
def _bar(budget_bytes: int) -> Iterator[tuple[Progress, Note]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    wide = console.width >= WIDE
    columns = (MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Bar(*([BarColumn(bar_width=20)] if wide else []), *columns, console=console) as bar:
        task = bar.add_task("", total=None, visible=False)

        def show(record: "Record") -> None:
            text = describe(record, budget_bytes, rate="examples/s" if wide else "/s")
            bar.update(task, total=record.steps, completed=record.step, description=text, visible=True)

        yield show, lambda note: bar.console.print(note, markup=False, highlight=False)


def describe(record: "Record", budget_bytes: int, *, rate: str = "examples/s") -> str:
    """A record in one line: loss, samples per second, and memory now, at its peak, and of the budget."""
    loss = "not finite, skipped" if not record.finite or record.loss is None else f"{record.loss:.4f}"
    return (
        f"loss {loss}  {record.samples_per_second:.2f} {rate}  {format_gib(record.process_bytes)}"
        f", peak {format_gib(record.process_peak_bytes)} of {format_gib(budget_bytes)}"
    )


def _expected(plan: "Plan", steps: int | None, price_per_hour: float | None) -> str:
    """How long the plan says that the run takes; empty where it does not know."""
    from budgetft.duration import run_time

    contract = plan.contract
    examples = plan.workload.examples if steps is None else steps * contract.effective_batch
    if examples is None:
        return ""
    epochs = contract.epochs if steps is None else 1
    time = run_time(plan.estimate, examples=examples, epochs=epochs, effective_batch=contract.effective_batch)
    if time is None:
        return ""
    text = time.text() if steps is None else f"{steps:,} steps, {time.text().partition(', ')[2]}"
    where = {"emulated": "at the speed of another GPU, limited to stand in"}.get(time.evidence, time.evidence)
    cost = "" if price_per_hour is None else f"; {time.price_text(price_per_hour)} at {price_per_hour:g} an hour"
    return f"{text}; {where}{cost}"


def _took(summary: "Summary", price_per_hour: float | None) -> str:
    """The time of the steps as it was, and what it cost."""
    cost = (
        "" if price_per_hour is None else f"; {summary.train_seconds / HOUR * price_per_hour:.2f} at {price_per_hour:g} an hour"
    )
    return f"{duration_text(summary.train_seconds)} for the steps, loading and evaluation aside{cost}"


def _print_summary(summary: "Summary", plan: "Plan", out: Path, price_per_hour: float | None) -> None:
    over = "OVER the budget" if summary.over_budget else "of the budget"
    rows = {
        "steps": f"{summary.steps} ({summary.skipped_steps} skipped as not finite)"
        + (", ended early: the held-out loss did not fall any more" if summary.ended_early else ""),
        "time": _took(summary, price_per_hour),
        "loss": " to ".join("-" if loss is None else f"{loss:.4f}" for loss in (summary.first_loss, summary.last_loss)),
        "examples/s": f"{summary.samples_per_second:.2f} (median step), {summary.samples_per_second_overall:.2f} (whole run)",
        "peak": f"{format_gib(summary.process_peak_bytes)} {over} {format_gib(summary.budget_bytes)}"
        f" (allocated {format_gib(summary.allocated_peak_bytes)}, reserved {format_gib(summary.reserved_peak_bytes)})",
        "out of memory": _fallbacks(summary),
        "evidence": f"{summary.evidence}: {summary.note}",
        "adapter": str(out / "adapter"),
    }
    if summary.predicted_peak_bytes is not None:
        peaks = ", ".join(map(format_gib, summary.processes_peak_bytes))
        rows["each process"] = f"{peaks} ({format_gib(summary.predicted_peak_bytes)} predicted)"
    if summary.heldout_peak_bytes is not None:
        peak = format_gib(summary.heldout_peak_bytes)
        stage, train = plan.stage("evaluation"), format_gib(summary.preflight_peak_bytes)
        planned = "" if stage is None else f", planned {format_gib(stage.process_peak_bytes)}"
        rows["held-out loss"] = f"{summary.heldout_loss}, peak {peak}{planned} (train {train})"
    if summary.best_step is not None:
        rows["adapter"] += f", of step {summary.best_step}, whose held-out loss of {summary.best_heldout_loss} is the lowest"
    if summary.other_processes:
        rows["other_processes"] = ", ".join(
            f"process {one.pid} ({one.name}, {format_gib(one.memory_bytes)})" for one in summary.other_processes
        )
    width = max(len(name) for name in rows)
    for name, text in rows.items():
        put(f"{name:<{width}}  {text}")


def _fallbacks(summary: "Summary") -> str:
    reduced = f"; {summary.reduced_steps} steps began smaller, beside others on the GPU" if summary.reduced_steps else ""
    if not summary.fallbacks:
        return f"{summary.ooms} times, {summary.alloc_retries} allocator retries{reduced}"
    training = [fallback for fallback in summary.fallbacks if fallback.during == "training"]
    evaluation = [fallback for fallback in summary.fallbacks if fallback.during == "evaluation"]
    told = []
    if training:
        blamed = any(not fallback.crowded for fallback in training)
        then = "The ledger knows: plan again" if blamed else "Other processes held the GPU's memory"
        told.append(f"{_again(training)}, nothing learned was changed; {_first(training)}{reduced}. {then}")
    if evaluation:
        told.append(f"{_again(evaluation)} in the evaluation after them; {_first(evaluation)}")
    return ". ".join(told)


def _again(fallbacks: Sequence["Fallback"]) -> str:
    steps = sorted({fallback.step for fallback in fallbacks})
    shown = ", ".join(map(str, steps[:8])) + (", ..." if len(steps) > 8 else "")
    least = min(fallback.reduced_to or 1 for fallback in fallbacks)
    return f"{len(fallbacks)} times, in steps {shown}: done again with as few as {least} at a time"


def _first(fallbacks: Sequence["Fallback"]) -> str:
    first = fallbacks[0]
    return f"first in phase {first.phase!r} with examples {', '.join(first.examples[:4])}"
