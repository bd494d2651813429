"""What a run says of itself: one record per optimizer step, and a summary at the end."""

import statistics
from collections.abc import Sequence

from budgetft.outcome import Evidence, Stack
from budgetft.plan import Plan
from budgetft.value import Value


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
    """Everything the process holds on the card; on the CPU, the live tensor bytes."""
    process_peak_bytes: int
    peak_examples: tuple[str, ...] | None = None
    """The ids of the step's examples, when it reached a new peak of allocated bytes."""


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
    ooms: int
    alloc_retries: int
    evidence: Evidence
    note: str
    """In words: what the bytes were measured on."""
    stack: Stack


def summarize(
    records: Sequence[Record],
    plan: Plan,
    *,
    examples: int,
    preflight_peak_bytes: int,
    cap_bytes: int,
    ooms: int,
    alloc_retries: int,
    evidence: Evidence,
    note: str,
    stack: Stack,
) -> Summary:
    """The summary of a run from all its ``records`` (at least one)."""
    batch = plan.contract.effective_batch
    seconds = [record.seconds for record in records]
    reserved = [record.reserved_peak_bytes for record in records if record.reserved_peak_bytes is not None]
    process_peak = max(record.process_peak_bytes for record in records)
    return Summary(
        steps=len(records),
        examples=examples,
        effective_batch=batch,
        samples_per_second=batch / statistics.median(seconds),
        samples_per_second_overall=batch * len(records) / sum(seconds),
        step_seconds=statistics.median(seconds),
        train_seconds=sum(seconds),
        first_loss=records[0].loss,
        last_loss=records[-1].loss,
        skipped_steps=sum(not record.finite for record in records),
        allocated_peak_bytes=max(record.allocated_peak_bytes for record in records),
        reserved_peak_bytes=max(reserved) if reserved else None,
        process_peak_bytes=process_peak,
        preflight_peak_bytes=preflight_peak_bytes,
        budget_bytes=plan.gpu.budget_bytes,
        cap_bytes=cap_bytes,
        over_budget=max(process_peak, preflight_peak_bytes) > plan.gpu.budget_bytes,
        ooms=ooms,
        alloc_retries=alloc_retries,
        evidence=evidence,
        note=note,
        stack=stack,
    )
