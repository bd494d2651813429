"""What a report tells, collected from a plan, a ledger and a run; what could not be had is said in its place."""

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

from budgetft.errors import BudgetftError, UsageError
from budgetft.gpu import Gpu, gpu_of_device
from budgetft.measure.job import planned_job
from budgetft.measure.ledger import outcomes_of
from budgetft.outcome import Estimate, Outcome
from budgetft.plan import Plan, load_planned_model, read_plan
from budgetft.predict.estimator import Estimator
from budgetft.predict.memory_model import Moment
from budgetft.report.samples import sampled
from budgetft.report.story import Probe, Story
from budgetft.train.record import Record, Summary, Unfinished
from budgetft.units import counted
from budgetft.value import json_lines, read_json


def gather(
    path: Path,
    *,
    ledger: Path,
    plan: Plan | None = None,
    predictions: Path | None = None,
    data: Path | None = None,
    on_trace: Callable[[str], None] = lambda text: None,
) -> Story:
    """The story of ``path``, a plan file or a run folder; or of ``plan``, which ``path`` is to hold.

    ``predictions`` is a file of ``budgetft predict`` in place of the captions that the run kept; ``data`` holds its pictures.
    Raises ``UsageError`` when there is no readable plan. Anything else that is missing or damaged becomes a note.
    """
    run, plan_path = _places(path) if plan is None else (None, path)
    plan = plan or read_plan(plan_path)
    outcomes = plan.evidence.outcomes
    foretold: list[Estimate] = list(plan.evidence.predictions)
    prediction_note = "Predictions were made before each trial." if foretold else ""
    moments, predicted, model, key = (), None, None, None
    try:
        estimator = _estimator(plan, on_trace)
        key, model, predicted = estimator.job.fingerprint(), estimator.job.model, estimator.estimate(plan.knobs)
        moments = _moments(plan, estimator)
        timeline_note = ""
        if outcomes and not foretold:
            foretold = [estimator.estimate(outcome.knobs) for outcome in outcomes]
            prediction_note = (
                "The plan keeps no predictions: these were made again by this version, after the trials"
                f" (calibration {estimator.calibration.name!r})."
            )
    except BudgetftError as error:
        timeline_note = f"No picture over time: the step cannot be traced here: {error.message}."
        prediction_note = prediction_note or f"No predictions: {error.message}."
    earlier, ledger_note = _earlier(plan, ledger, key)
    records, summary, run_note, stopped = _read_run(run) if run else ((), None, "", "")
    samples, samples_note = sampled(run, predictions, data or _folder(plan.data))
    return Story(
        plan=plan,
        plan_path=plan_path,
        run=run,
        layers=model.layers if model else plan.model.layers,
        pixel_step=model.pixel_step if model else None,
        moments=moments,
        predicted=predicted,
        timeline_note=timeline_note,
        probes=tuple(Probe(outcome=o, prediction=p) for o, p in zip_longest(outcomes, foretold[: len(outcomes)]) if o),
        prediction_note=prediction_note,
        earlier=earlier,
        ledger_note=ledger_note,
        records=records,
        summary=summary,
        run_note=run_note,
        stopped=stopped,
        samples=samples,
        samples_note=samples_note,
    )


def glance(path: Path) -> Story:
    """The story of ``path`` without what takes a trace, a ledger or pictures: enough to set it beside others.

    Raises ``UsageError`` when there is no readable plan.
    """
    run, plan_path = _places(path)
    plan = read_plan(plan_path)
    records, summary, run_note, stopped = _read_run(run) if run else ((), None, "", "")
    return Story(
        plan=plan,
        plan_path=plan_path,
        run=run,
        layers=plan.model.layers or _layers(plan),
        moments=(),
        predicted=None,
        timeline_note="",
        probes=(),
        prediction_note="",
        earlier=(),
        ledger_note="",
        records=records,
        summary=summary,
        run_note=run_note,
        stopped=stopped,
    )


def _layers(plan: Plan) -> int | None:
    try:
        return load_planned_model(plan).layers
    except BudgetftError:
        return None


def _places(path: Path) -> tuple[Path | None, Path]:
    """The folder of the run, where ``path`` is one, and the plan file. Raises ``UsageError`` for a folder without a plan."""
    if not path.is_dir():
        return None, path
    plan_path = path / "plan.json"
    if not plan_path.is_file():
        raise UsageError(f"{path} holds no plan.json", hint="give a plan file, or the folder of a run (budgetft train --out)")
    return path, plan_path


def _folder(data: str | None) -> Path | None:
    return Path(data) if data else None


def _estimator(plan: Plan, on_trace: Callable[[str], None]) -> Estimator:
    """Of the plan's job again. Only probes on the CPU's byte meter leave outcomes that are ``predicted``."""
    on_cpu = plan.evidence.kind == "predicted" and bool(plan.evidence.outcomes)
    job = planned_job(plan, device="cpu" if on_cpu else "cuda", evidence=plan.evidence.kind, host=_host(plan))
    return Estimator(job, on_trace=on_trace)


def _host(plan: Plan) -> Gpu | None:
    """The GPU that stood in, if a profile knows its name."""
    gpu = plan.made_on
    if plan.evidence.kind != "emulated" or gpu is None:
        return None
    return gpu_of_device(gpu)


def _moments(plan: Plan, estimator: Estimator) -> tuple[Moment, ...]:
    knobs = plan.knobs
    found = estimator.memory_model(knobs).timeline(
        knobs.micro_batch, knobs.checkpointed_layers, accumulating=knobs.grad_accum > 1
    )
    saved = estimator.saved_bytes(knobs)
    moved = [moment for moment in found if not moment.before_bytes == moment.peak_bytes == moment.after_bytes]
    return tuple(Moment(phase, layer, *(size - saved for size in sizes)) for phase, layer, *sizes in moved)


def _earlier(plan: Plan, ledger: Path, key: str | None) -> tuple[tuple[Outcome, ...], str]:
    if not plan.evidence.outcomes:
        return (), ""
    if key is None:
        return (), "Earlier trials of this job are not shown: without its model it cannot be told from others."
    try:
        found = outcomes_of(ledger, key)
    except UsageError as error:
        return (), f"Only the plan's own trials are shown: {error.message}."
    extra = tuple(outcome for outcome in found if outcome not in plan.evidence.outcomes)
    return extra, f"{ledger.name} holds {counted(len(extra), 'more trial')} of this job, from other plans." if extra else ""


def _read_run(folder: Path) -> tuple[tuple[Record, ...], Summary | None, str, str]:
    """Log, summary, note and how it ended, of a run finished or not; lines that cannot be read are counted, not fatal."""
    log, records, damaged, ended = folder / "log.jsonl", [], 0, ""
    try:
        lines = json_lines(log.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        return (), None, f"No training curves: {log.name} cannot be read ({error.strerror}).", ""
    for line in lines:
        try:
            records.append(Record.read_text(line, source=str(log)))
        except UsageError:
            told = _unfinished(line)
            damaged, ended = damaged + (told is None), told or ended
    note = f"{counted(damaged, 'line')} of {log.name} cannot be read and left out. " if damaged else ""
    try:
        summary = Summary.read(read_json(folder / "summary.json"), source="summary.json")
    except UsageError as error:
        summary = None
        note += "" if not (folder / "summary.json").exists() else f"No summary: {error.message}."
    return tuple(records), summary, note.strip(), ended


def _unfinished(line: str) -> str | None:
    """In words: what a step that was not done met, if ``line`` of the log says that."""
    try:
        last = Unfinished.read_text(line, source="line").fallbacks[-1]
    except (UsageError, IndexError):
        return None
    where = f"in phase {last.phase!r} with examples {', '.join(last.examples)}"
    return f"Step {last.step} was not done: out of memory {where}."
