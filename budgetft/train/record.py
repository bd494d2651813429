"""What a run says of itself: one record per optimizer step, and a summary at the end."""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import AliasChoices, Field

from budgetft.outcome import Evidence, Phase, Stack
from budgetft.plan import Plan
from budgetft.train.readings import Held, OtherProcess
from budgetft.value import Value

if TYPE_CHECKING:
    from budgetft.step.step import Update


class Fallback(Value):
    """Memory ran out in a step, and the whole step was done again with smaller micro-batches; or in the evaluation after it,
    and the batch was."""

    step: int
    during: Literal["training", "evaluation"] = "training"
    """An evaluation says nothing of the setting that was planned for training."""
    process: int = 0
    """Of several that share the run, the one whose memory ran out."""
    phase: Phase
    micro_batch: int
    """Examples in the micro-batch that failed; where the update did, in the largest of the try."""
    reduced_to: int | None
    """Most examples in a micro-batch of the next try; None when nothing was left to halve, and the run ended."""
    examples: tuple[str, ...]
    """The ids of the micro-batch that failed; of the step's in its process where it was the update that failed."""
    detail: str
    """What torch said."""
    cap_bytes: int
    crowded: bool
    """The GPU could not have given what the cap allowed: others hold its memory, so the setting is not to blame."""
    other_processes: tuple[OtherProcess, ...] = Field(
        default=(), validation_alias=AliasChoices("other_processes", "neighbours")
    )
    """Other processes on the GPU at that time."""


class Record(Value):
    """One optimizer step. Bytes are of the whole run so far for peaks, and after the step for the others."""

    step: int
    """Counted from 1."""
    steps: int
    """Of the whole run."""
    epoch: float
    """Passes over the data finished after this step."""
    loss: float | None
    """Mean over the supervised tokens of the effective batch; None when it is not finite."""
    grad_norm: float | None
    """Before clipping; None when it is not finite."""
    finite: bool
    """False: the step was skipped, the adapter is what it was before."""
    scale: float
    """Of the gradient scaler after the step; 1 without one."""
    learning_rate: float
    seconds: float
    """Of the whole step, the wait for its data included."""
    data_seconds: float
    """Of the step, how long it waited for data."""
    samples_per_second: float
    allocated_bytes: int
    allocated_peak_bytes: int
    reserved_bytes: int | None
    """By the caching allocator; None on the CPU, which has none."""
    reserved_peak_bytes: int | None
    process_bytes: int
    """Everything the process holds on the GPU; on the CPU, the live tensor bytes."""
    process_peak_bytes: int
    peak_examples: tuple[str, ...] | None = None
    """The ids of the step's examples, when it reached a new peak of allocated bytes."""
    fallbacks: tuple[Fallback, ...] = ()
    """The failed tries of this step, and of the evaluation after it; those of a process that ended in it included."""
    began_with: int | None = Field(default=None, exclude_if=lambda most: most is None)
    """Most examples in a micro-batch of the step's first try, where larger ones had failed in a step before because other
    processes held the GPU's memory; None where it began as planned."""
    nonfinite: str | None = None
    """Where the step first was not finite: a module in forward, or a parameter's gradient."""
    heldout_loss: float | None = None
    """Mean over the supervised tokens of the held-out examples after this step, where it was due."""

    def numbers(self) -> dict[str, float]:
        """What a tracker can draw."""
        steps = ("step", "steps")
        return {name: float(value) for name, value in self if isinstance(value, int | float) and name not in steps}


class Sample(Value):
    """One line of ``samples.jsonl``: what was generated for a held-out example after a step, and what it should be."""

    step: int
    id: str
    text: str
    reference: str


class Unfinished(Value):
    """The last line of a log whose run ended in a step that is not done; a resumed run puts it into the step's record."""

    unfinished_step: int
    fallbacks: tuple[Fallback, ...]


class Summary(Value):
    """A finished run. Seconds and rates are of all its steps, those before a resume included."""

    steps: int
    examples: int
    """How many the data holds."""
    effective_batch: int
    samples_per_second: float
    """At the median of the step seconds."""
    samples_per_second_overall: float
    """Over the sum of the step seconds."""
    step_seconds: float
    """Their median."""
    train_seconds: float
    """Their sum; loading, pre-flight and checkpoints are not in it."""
    first_loss: float | None
    last_loss: float | None
    skipped_steps: int
    """Steps that were not finite."""
    allocated_peak_bytes: int
    reserved_peak_bytes: int | None
    process_peak_bytes: int
    preflight_peak_bytes: int
    """Of the process, in the heaviest batch of the data, which came before the first step."""
    budget_bytes: int
    cap_bytes: int
    """What the allocator was allowed at the end."""
    over_budget: bool
    heldout_peak_bytes: int | None = None
    """Of the process, in the heaviest held-out batch, which came before the first step too; None without such data."""
    heldout_loss: float | None = None
    """The last one."""
    best_step: int | None = None
    """The one with the lowest held-out loss, whose adapter the run's is; None where that is the last step's."""
    best_heldout_loss: float | None = None
    """Of that step."""
    ended_early: bool = False
    """Its held-out loss had stopped falling: it has fewer steps than its schedule was laid out for."""
    ooms: int
    alloc_retries: int
    fallbacks: tuple[Fallback, ...] = ()
    """Every time memory ran out; each was made good, those that ended a run by the run that went on."""
    reduced_steps: int = Field(default=0, exclude_if=lambda steps: not steps)
    """Steps that began with smaller micro-batches than planned, because other processes held the GPU's memory."""
    other_processes: tuple[OtherProcess, ...] = Field(
        default=(), validation_alias=AliasChoices("other_processes", "neighbours")
    )
    """Every other process that was seen on the GPU."""
    fp32_blocks: tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("fp32_blocks", "islands"))
    """Modules that ran in fp32, because they would overflow fp16."""
    evidence: Evidence
    note: str
    """In words: what the bytes were measured on."""
    stack: Stack
    processes_peak_bytes: tuple[int, ...] = ()
    """The highest of each process, pre-flight included; empty in older runs."""
    predicted_peak_bytes: int | None = None
    """Of each of several processes, from the planned peak and what they hold else than one; None for a run in one."""


def record_step(loss: float, update: "Update", held: Held, **facts: Any) -> Record:
    """The record of a step; ``facts`` are fields that neither its update nor what is ``held`` says."""
    return Record(
        loss=loss if math.isfinite(loss) else None,
        grad_norm=update.grad_norm if math.isfinite(update.grad_norm) else None,
        finite=update.finite and math.isfinite(loss),
        scale=update.scale,
        allocated_bytes=held.allocated_bytes,
        allocated_peak_bytes=held.allocated_peak_bytes,
        reserved_bytes=held.reserved_bytes,
        reserved_peak_bytes=held.reserved_peak_bytes,
        process_bytes=held.process_bytes,
        **facts,
    )


def summarize(records: Sequence[Record], plan: Plan, *, preflight_peak_bytes: int, **facts: Any) -> Summary:
    """The summary of a run from all its ``records`` (at least one); ``facts`` are fields that no record holds."""
    batch = plan.contract.effective_batch
    seconds = [record.seconds for record in records]
    reserved = [record.reserved_peak_bytes for record in records if record.reserved_peak_bytes is not None]
    process_peak = max(record.process_peak_bytes for record in records)
    heldout = [record.heldout_loss for record in records if record.heldout_loss is not None]
    highest = max(process_peak, preflight_peak_bytes, facts.get("heldout_peak_bytes") or 0)
    return Summary(
        steps=len(records),
        effective_batch=batch,
        samples_per_second=batch / statistics.median(seconds),
        samples_per_second_overall=batch * len(records) / sum(seconds),
        step_seconds=statistics.median(seconds),
        train_seconds=sum(seconds),
        first_loss=records[0].loss,
        last_loss=records[-1].loss,
        heldout_loss=heldout[-1] if heldout else None,
        skipped_steps=sum(not record.finite for record in records),
        allocated_peak_bytes=max(record.allocated_peak_bytes for record in records),
        reserved_peak_bytes=max(reserved) if reserved else None,
        process_peak_bytes=process_peak,
        preflight_peak_bytes=preflight_peak_bytes,
        budget_bytes=plan.gpu.budget_bytes,
        over_budget=highest > plan.gpu.budget_bytes,
        reduced_steps=sum(record.began_with is not None for record in records),
        fallbacks=tuple(fallback for record in records for fallback in record.fallbacks),
        **facts,
    )
