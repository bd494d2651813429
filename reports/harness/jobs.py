"""Planning problems of one example, what they are estimated by, and one probe or one replayed trace of a setting."""

from typing import Any

from budgetft.contract import Contract
from budgetft.gpu import Gpu, load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import Model, load_model
from budgetft.outcome import Outcome
from budgetft.predict.calibrate import Calibration, load_calibration
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

SMALL, LARGE = (448, 448), (1288, 728)
"""The two image sizes of most tables."""
BUDGET_BYTES = 14 * GIB
"""What a V100 of 16 GB has to use."""
UNCAPPED_BYTES = 70 * GIB
"""For a large GPU, so that settings on both sides of the budget end well."""


def shape(size: tuple[int, int] = SMALL, *, images: int = 1, text: int = 256, labels: int = 160) -> Shape:
    """An example of ``images`` equal images of ``size`` pixels and ``text`` tokens, of which ``labels`` are learned."""
    return Shape(images=(size,) * images, text_tokens=text, supervised_tokens=labels)


def job(
    gpu: str | Gpu,
    model: str | Model,
    work: Shape | Workload | None = None,
    contract: Contract | None = None,
    *,
    budget_bytes: int | None = None,
    host: str | None = None,
    evidence: Any = "predicted",
) -> Job:
    """A planning problem: every example is ``work``; the GPU's own budget unless given; ``host`` stands in for the GPU."""
    profile, architecture = (
        load_gpu(gpu) if isinstance(gpu, str) else gpu,
        load_model(model) if isinstance(model, str) else model,
    )
    work = shape() if work is None else work
    return Job(
        gpu=profile,
        budget_bytes=profile.budget_bytes if budget_bytes is None else budget_bytes,
        model=architecture,
        contract=Contract() if contract is None else contract,
        workload=work if isinstance(work, Workload) else Workload.uniform(work),
        host=None if host is None else load_gpu(host),
        evidence=evidence,
    )


def uncalibrated() -> Calibration:
    """What a GPU has that nobody has calibrated."""
    return load_calibration("no GPU has this name")


def replayed(problem: Job, knobs: Knobs, calibration: Calibration) -> tuple[dict[str, int], Any]:
    """Peaks (tensors, reserved, process; bytes) by a trace of the whole step, replayed through the allocator; and the trace."""
    from budgetft.predict.allocator import CachingAllocator
    from budgetft.predict.trace import trace_step

    trace = trace_step(problem.model, problem.contract, knobs, problem.worst_micro_batch(knobs), gpu=problem.gpu)
    allocator, half = CachingAllocator(knobs.allocator), calibration.workspace_bytes // 2
    for events in (trace.static_events, [(-1, half), (-2, half)], trace.events):
        allocator.run(events)
    reserved = allocator.reserved_peak_bytes
    peaks = {"tensors": allocator.allocated_peak_bytes, "reserved": reserved, "process": reserved + calibration.context_bytes}
    return peaks, trace


def probed(problem: Job, knobs: Knobs, **how: Any) -> Outcome:
    """One probe of the tool itself: a child process on this machine's GPU under the budget, the heaviest examples first."""
    from budgetft.measure.child import current_stack
    from budgetft.measure.probe import Prober

    with Prober(problem, stack=current_stack("cuda"), **how) as prober:
        return prober.probe(knobs)


def kept(value: Any, *names: str) -> dict[str, Any]:
    """These attributes of ``value``, by name."""
    return {name: getattr(value, name) for name in names}
