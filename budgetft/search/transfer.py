"""What probes on one GPU say of another: residuals of the prediction that do not belong to the GPU.

A probe's reserved bytes against their prediction tell how far the trace and the allocator's replay are off: that carries
over, less surely to another attention kernel. What the process holds outside the allocator and how fast it runs belong to
the GPU, and carry over only when the probes run on that same GPU again; else the new GPU's calibration has them.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import mean, median

import numpy as np

from budgetft.gpu import gpu_of_device
from budgetft.knobs import Knobs
from budgetft.measure.job import Device, Job, planned_job
from budgetft.model import Model
from budgetft.outcome import Estimate, Outcome, Term
from budgetft.plan import Plan
from budgetft.predict.calibrate import Calibration
from budgetft.predict.clock import Clock, Speeds
from budgetft.predict.estimator import Estimator
from budgetft.predict.gaussian import Prior, posterior
from budgetft.predict.memory_model import MemoryModel
from budgetft.search.sampler import features

BYTES_PRIOR = Prior(offset=0.02, smooth=0.01, noise=0.003)
"""Of the log residual of reserved bytes: the trace is exact, the rest is the allocator's and the kernels'."""
TIME_PRIOR = Prior(offset=1.0, smooth=0.12, noise=0.05)
"""Of the log residual of seconds."""
SURENESS = 2.0
"""Standard deviations that are left free."""
CONTEXT_SHARE = 0.003
"""Of a process peak: how far its context is off when it was measured on this GPU by other probes."""
CORRECTION = "correction learned from probes elsewhere"


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One probe beside its prediction."""

    knobs: Knobs
    gpu: str | None
    """The GPU that it ran on, as the driver names it; the processor for the CPU's byte meter."""
    log_bytes: float
    """Log of reserved bytes, measured over predicted."""
    log_seconds: float | None
    """Log of step seconds, measured over predicted."""
    context_bytes: int
    """What the process held outside the allocator."""


def learn(pairs: Iterable[tuple[Job, Outcome]]) -> list[Lesson]:
    """The lessons of all outcomes that ended well, each against the estimate of its own job."""
    estimators: dict[str, Estimator] = {}
    lessons = []
    for job, outcome in pairs:
        reserved, process = outcome.reserved_peak_bytes, outcome.process_peak_bytes
        if not outcome.fits or outcome.alloc_retries or not reserved or not process:
            continue
        estimator = estimators.setdefault(job.fingerprint(), Estimator(job))
        said = estimator.estimate(outcome.knobs)
        speeds = said.samples_per_second, outcome.samples_per_second
        lessons.append(
            Lesson(
                knobs=outcome.knobs,
                gpu=None if outcome.stack is None else outcome.stack.gpu,
                log_bytes=math.log(reserved / said.reserved_peak_bytes),
                log_seconds=math.log(speeds[0] / speeds[1]) if speeds[0] and speeds[1] else None,
                context_bytes=process - reserved,
            )
        )
    return lessons


def plan_evidence(plan: Plan, model: Model) -> list[tuple[Job, Outcome]]:
    """The plan's own probes, each with the job that it was of."""
    emulated = [o.stack.gpu for o in plan.evidence.outcomes if o.evidence == "emulated" and o.stack is not None]
    hosts = {gpu: gpu_of_device(gpu) for gpu in set(emulated)}
    pairs = []
    for outcome in plan.evidence.outcomes:
        device: Device = "cpu" if outcome.evidence == "predicted" else "cuda"
        host = hosts[outcome.stack.gpu] if outcome.evidence == "emulated" and outcome.stack is not None else None
        pairs.append((planned_job(plan, device=device, evidence=outcome.evidence, host=host, model=model), outcome))
    return pairs


class Transferred:
    """An estimator of one job that has learned from probes of the same work on other GPUs or under other budgets."""

    def __init__(self, estimator: Estimator, lessons: Sequence[Lesson], *, gpu: str | None) -> None:
        """``gpu``: where this job's probes run, as the driver names it; None when there are none."""
        self.job = estimator.job
        self._estimator = estimator
        self._lessons = list(lessons)
        self._here = [lesson for lesson in self._lessons if gpu is not None and lesson.gpu == gpu]

    def memory_model(self, knobs: Knobs) -> MemoryModel:
        """The memory model of everything but micro-batch and checkpointed layers."""
        return self._estimator.memory_model(knobs)

    @property
    def speeds(self) -> Speeds:
        """What is believed of the speed of the GPU that the probes run on, else of the planned one."""
        return self._estimator.speeds

    def clock(self, grid: Sequence[Knobs]) -> Clock:
        """The seconds of every setting of ``grid`` as functions of the parameters of speed, not corrected."""
        return self._estimator.clock(grid)

    def ratio_range(self, knobs: Knobs, other: Knobs) -> tuple[float, float]:
        """As of :meth:`budgetft.predict.estimator.Estimator.ratio_range`, corrected."""
        low, high = self._estimator.ratio_range(knobs, other)
        moved = math.exp(self._seconds(other) - self._seconds(knobs))
        return low * moved, high * moved

    @property
    def calibration(self) -> Calibration:
        """The GPU's, with the uncertainty that is left."""
        known = self._estimator.calibration
        return known.replace(context_bytes=self._context_bytes, uncertainty_share=self.uncertainty_share)

    @cached_property
    def uncertainty_share(self) -> float:
        """Half-width of the interval around a process peak, as a share of it: the median over the settings that were probed."""
        attention = "flash" if self.job.gpu.flash_attention else "efficient"
        asked = [lesson.knobs.replace(attention=attention) for lesson in self._lessons]
        return round(median(self._share(self._bytes(knobs)[1]) for knobs in asked), 4) if asked else self._gpu_share

    def uncertainty_of(self, knobs: Knobs) -> float:
        """Half-width of the interval around the process peak of ``knobs``, as a share of it."""
        return self._share(self._bytes(knobs)[1])

    def estimate(self, knobs: Knobs) -> Estimate:
        """The estimate of the memory model and the calibration, corrected; ``fits`` leaves the uncertainty at this setting
        free.
        """
        said = self._estimator.estimate(knobs)
        shift, spread = self._bytes(knobs)
        extra = round(said.reserved_peak_bytes * math.expm1(shift))
        context = self._context_bytes
        process = said.reserved_peak_bytes + extra + context
        seconds = None if said.step_seconds is None else said.step_seconds * math.exp(self._seconds(knobs))
        slower = 1.0 if said.step_seconds is None or seconds is None else said.step_seconds / seconds
        fixed = [term for term in said.terms if term.name != "context and kernels"]
        terms = (
            *fixed,
            Term(name=CORRECTION, memory_bytes=extra),
            Term(name="context and kernels", memory_bytes=context),
        )
        return said.replace(
            tensor_peak_bytes=said.tensor_peak_bytes + extra,
            reserved_peak_bytes=said.reserved_peak_bytes + extra,
            process_peak_bytes=process,
            step_seconds=seconds,
            samples_per_second=None if seconds is None else self.job.contract.effective_batch / seconds,
            speed_low=None if said.speed_low is None else said.speed_low * slower,
            speed_high=None if said.speed_high is None else said.speed_high * slower,
            fits=process * (1 + self._share(spread)) <= self.job.budget_bytes,
            terms=terms,
        )

    @property
    def _gpu_share(self) -> float:
        return CONTEXT_SHARE if self._here else self._estimator.calibration.uncertainty_share

    def _share(self, spread: float) -> float:
        return math.hypot(self._gpu_share, SURENESS * spread)

    @cached_property
    def _context_bytes(self) -> int:
        if not self._here:
            return self._estimator.calibration.context_bytes
        return int(median(lesson.context_bytes for lesson in self._here))

    def _bytes(self, knobs: Knobs) -> tuple[float, float]:
        """Mean and standard deviation of the log residual of reserved bytes."""
        if not self._lessons:
            return 0.0, 0.0
        seen, values = _places(self._lessons), np.array([lesson.log_bytes for lesson in self._lessons])
        shift, spread = posterior(seen, values, _place(knobs)[None], BYTES_PRIOR)
        return float(shift[0]), float(spread[0])

    def _seconds(self, knobs: Knobs) -> float:
        """Mean of the log residual of seconds: between settings, and of all of them only on the same GPU."""
        timed = [lesson for lesson in self._lessons if lesson.log_seconds is not None]
        if not timed:
            return 0.0
        values = np.array([lesson.log_seconds for lesson in timed])
        level = 0.0 if len(self._here) == len(self._lessons) else mean(values)
        shift, _ = posterior(_places(timed), values - level, _place(knobs)[None], TIME_PRIOR)
        return float(shift[0])


def _places(lessons: Sequence[Lesson]) -> np.ndarray:
    return np.array([_place(lesson.knobs) for lesson in lessons])


def _place(knobs: Knobs) -> np.ndarray:
    """Distances as the search has them, and another attention kernel a whole length away, other pointwise kernels half."""
    kernels = float(knobs.attention == "flash"), float(knobs.attention == "math"), 0.5 * (knobs.pointwise == "fused")
    return np.array([*features(knobs), *kernels])


def describe_lessons(lessons: Sequence[Lesson]) -> str:
    """In words: how many, and how far the bytes were off."""
    if not lessons:
        return "no probe carries over"
    off = [abs(math.expm1(lesson.log_bytes)) for lesson in lessons]
    word = "probe" if len(lessons) == 1 else "probes"
    return f"{len(lessons)} {word} carry over, their allocator bytes {mean(off):.1%} from the memory model on average"
