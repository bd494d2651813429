"""What a report tells, collected from a plan, a ledger and a run; what could not be had is said in its place."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from budgetft.errors import BudgetftError, UsageError
from budgetft.gpu import Gpu, gpu_of_device
from budgetft.measure.job import planned_job
from budgetft.measure.ledger import outcomes_of
from budgetft.outcome import Estimate, Outcome
from budgetft.plan import Plan, read_plan
from budgetft.predict.estimator import Estimator
from budgetft.predict.memory_model import Moment
from budgetft.train.record import Record, Summary, Unfinished
from budgetft.value import json_lines, read_json


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One outcome beside what was predicted of it."""

    outcome: Outcome
    prediction: Estimate | None

    @property
    def source(self) -> str:
        """Where the outcome is from; a real step on the CPU's byte meter counts as predicted for the GPU, but was run."""
        return "on the CPU" if self.outcome.evidence == "predicted" else self.outcome.evidence

    @property
    def peak_residual(self) -> float | None:
        """Measured process peak over the predicted one, less one; None where either is unknown or the probe was cut short."""
        peak = self.outcome.process_peak_bytes
        if self.prediction is None or not peak or not self.outcome.fits:
            return None
        return peak / self.prediction.process_peak_bytes - 1


@dataclass(frozen=True, kw_only=True)
class Story:
    """Everything that a page shows. A ``_note`` says where a part is from, or why it is missing."""

    plan: Plan
    plan_path: Path
    layers: int | None
    moments: tuple[Moment, ...]
    """One micro-batch of the plan, predicted; empty when its model cannot be traced here."""
    predicted: Estimate | None
    """Of the plan's knobs, whatever was measured of them."""
    timeline_note: str
    probes: tuple[Probe, ...]
    prediction_note: str
    earlier: tuple[Outcome, ...]
    """Outcomes of the same job in the ledger that are not in the plan."""
    ledger_note: str
    records: tuple[Record, ...] = ()
    summary: Summary | None = None
    run_note: str = ""


def gather(path: Path, *, ledger: Path, plan: Plan | None = None, on_trace: Callable[[str], None] = lambda text: None) -> Story:
    """The story of ``path``, a plan file or a run folder; or of ``plan``, which ``path`` is to hold.

    Raises ``UsageError`` when there is no readable plan. Anything else that is missing or damaged becomes a note.
    """
    run = path if plan is None and path.is_dir() else None
    plan_path = path / "plan.json" if run else path
    if run and not plan_path.is_file():
        raise UsageError(f"{path} holds no plan.json", hint="give a plan file, or the folder of a run (budgetft train --out)")
    plan = plan or read_plan(plan_path)
    outcomes = plan.evidence.outcomes
    predictions: list[Estimate] = list(plan.evidence.predictions)
    prediction_note = "Predictions are those made before each probe." if predictions else ""
    moments, predicted, layers, key = (), None, None, None
    try:
        estimator = _estimator(plan, on_trace)
        key, layers, predicted = estimator.job.fingerprint(), estimator.job.model.layers, estimator.estimate(plan.knobs)
        moments = _moments(plan, estimator)
        timeline_note = "What the step allocates, in order, by its trace: a prediction. The peaks beside it say what they are."
        if outcomes and not predictions:
            predictions = [estimator.estimate(outcome.knobs) for outcome in outcomes]
            prediction_note = (
                "This plan was written before predictions were kept in it: they were computed again by this version,"
                f" with calibration {estimator.calibration.name!r}."
            )
    except BudgetftError as error:
        timeline_note = f"The step cannot be traced here: {error.message}."
        prediction_note = prediction_note or f"No predictions: {error.message}."
    earlier, ledger_note = _earlier(plan, ledger, key)
    records, summary, run_note = _read_run(run) if run else ((), None, "")
    return Story(
        plan=plan,
        plan_path=plan_path,
        layers=layers,
        moments=moments,
        predicted=predicted,
        timeline_note=timeline_note,
        probes=tuple(Probe(outcome=o, prediction=p) for o, p in zip_longest(outcomes, predictions[: len(outcomes)]) if o),
        prediction_note=prediction_note,
        earlier=earlier,
        ledger_note=ledger_note,
        records=records,
        summary=summary,
        run_note=run_note,
    )


def _estimator(plan: Plan, on_trace: Callable[[str], None]) -> Estimator:
    """Of the plan's job again. Only probes on the CPU's byte meter leave outcomes that are ``predicted``."""
    on_cpu = plan.evidence.kind == "predicted" and bool(plan.evidence.outcomes)
    job = planned_job(plan, device="cpu" if on_cpu else "cuda", evidence=plan.evidence.kind, host=_host(plan))
    return Estimator(job, on_trace=on_trace)


def _host(plan: Plan) -> Gpu | None:
    """The GPU that stood in, if a profile knows its name."""
    gpu = plan.environment.get("gpu")
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
        return (), "Nothing was probed, so no ledger was read."
    if key is None:
        return (), "The ledger was not read: without its model this plan's job cannot be told from others."
    try:
        found = outcomes_of(ledger, key)
    except UsageError as error:
        return (), f"Only the plan's own probes are shown: {error.message}."
    extra = tuple(outcome for outcome in found if outcome not in plan.evidence.outcomes)
    return extra, f"{ledger.name} holds {len(extra)} more probes of this job, from other plans." if extra else (
        f"{ledger.name} holds no further probes of this job."
    )


def _read_run(folder: Path) -> tuple[tuple[Record, ...], Summary | None, str]:
    """Log and summary of a run, finished or not; lines that cannot be read are counted, not fatal."""
    log, records, damaged, ended = folder / "log.jsonl", [], 0, ""
    try:
        lines = json_lines(log.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        return (), None, f"No training curves: {log.name} cannot be read ({error.strerror})."
    for line in lines:
        try:
            records.append(Record.read_text(line, source=str(log)))
        except UsageError:
            told = _unfinished(line)
            damaged, ended = damaged + (told is None), told or ended
    note = f"{damaged} lines of {log.name} cannot be read and are left out. " if damaged else ""
    try:
        summary = Summary.read(read_json(folder / "summary.json"), source="summary.json")
    except UsageError as error:
        summary = None
        note += "The run has not finished." if not (folder / "summary.json").exists() else f"No summary: {error.message}."
    return tuple(records), summary, " ".join(part for part in (note.strip(), ended) if part)


def _unfinished(line: str) -> str | None:
    """In words: what a step that was not done met, if ``line`` of the log says that."""
    try:
        last = Unfinished.read_text(line, source="line").fallbacks[-1]
    except (UsageError, IndexError):
        return None
    where = f"in phase {last.phase!r} with examples {', '.join(last.examples)}"
    return f"Step {last.step} was not done: memory ran out {where}."
