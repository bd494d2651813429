"""A GPU, a job on it, and what the settings of that job "really" need: everything that a search asks, without torch."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, is_stock
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.outcome import Estimate, Outcome, Term
from budgetft.predict.calibrate import load_calibration
from budgetft.units import GIB, MIB
from budgetft.workload import Shape, Workload

SHAPE = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """Qwen2.5-VL-3B on the V100 with the default contract; keyword arguments replace fields of the job."""

    def make(**changes) -> Job:
        job = Job(
            gpu=load_gpu("v100-16g"),
            budget_bytes=14 * GIB,
            model=load_model("qwen2.5-vl-3b"),
            contract=Contract(),
            workload=Workload.uniform(SHAPE),
            evidence="measured",
        )
        return job.replace(**changes)

    return make


@pytest.fixture
def formula() -> "type[Formula]":
    """To be subclassed."""
    return Formula


class Formula:
    """An estimator of the memory model's shape, by formula: affine in the micro-batch, linear in the checkpointed layers."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.calibration = load_calibration("no such GPU")

    def clock(self, grid) -> None:
        """Nothing is known of what its seconds depend on."""

    def estimate(self, knobs: Knobs) -> Estimate:
        layers = self.job.model.layers
        plain = layers - knobs.checkpointed_layers
        stock = is_stock(knobs)
        fixed = int((1.2 + 6 / self.job.gpus) * GIB)
        moving = knobs.micro_batch * (90 * MIB + 45 * MIB * plain + 2 * MIB * knobs.checkpointed_layers)
        moving += knobs.micro_batch * 600 * MIB * stock
        fragmentation = int((0.04 if knobs.allocator == "default" else 0.015) * moving)
        context = 450 * MIB
        micro = 0.12 + knobs.micro_batch * (0.05 + 0.0025 * knobs.checkpointed_layers) * (1.6 if stock else 1.0)
        seconds = micro * knobs.grad_accum
        process = fixed + moving + fragmentation + context
        return Estimate(
            tensor_peak_bytes=fixed + moving,
            reserved_peak_bytes=fixed + moving + fragmentation,
            process_peak_bytes=process,
            step_seconds=seconds,
            samples_per_second=self.job.contract.effective_batch / seconds,
            fits=process * (1 + self.calibration.uncertainty_share) <= self.job.budget_bytes,
            terms=(
                Term(name="weights", memory_bytes=fixed),
                Term(name="backward (activations and temporaries)", memory_bytes=moving),
                Term(name="allocator (fragmentation)", memory_bytes=fragmentation),
                Term(name="context and kernels", memory_bytes=context),
            ),
        )


class Truth:
    """What settings really need: the formula times smooth errors that differ by seed, a speed far off included."""

    def __init__(self, formula: Formula, seed: int) -> None:
        self.formula = formula
        self.budget_bytes = formula.job.budget_bytes
        draw = np.random.default_rng(seed)
        self._peak = draw.normal(size=4) * (0.05, 0.01, 0.01, 0.005)
        self._time = draw.normal(size=4) * (0.6, 0.06, 0.06, 0.01)
        self._noise = draw

    def _error(self, weights: np.ndarray, knobs: Knobs) -> float:
        steps = math.log2(knobs.micro_batch) / 2.5 - 1, knobs.checkpointed_layers / 18 - 1, knobs.allocator == "expandable"
        return math.exp(weights[0] + float(np.dot(weights[1:], steps)))

    def peak(self, knobs: Knobs) -> int:
        return int(self.formula.estimate(knobs).process_peak_bytes * self._error(self._peak, knobs))

    def speed(self, knobs: Knobs) -> float:
        return self.formula.estimate(knobs).samples_per_second / self._error(self._time, knobs)

    def best_speed(self, grid: list[Knobs]) -> float:
        return max((self.speed(knobs) for knobs in grid if self.peak(knobs) <= self.budget_bytes), default=0.0)

    def outcome(self, knobs: Knobs) -> Outcome:
        """As a probe would report it: half a percent of noise on seconds."""
        peak, fields = self.peak(knobs), {"knobs": knobs, "evidence": "measured", "budget_bytes": self.budget_bytes}
        if peak > self.budget_bytes:
            return Outcome(status="oom", phase="backward", detail="it was too much", **fields)
        speed = self.speed(knobs) * math.exp(0.005 * self._noise.normal())
        return Outcome(
            status="ok",
            allocated_peak_bytes=int(peak * 0.93),
            reserved_peak_bytes=int(peak * 0.96),
            process_peak_bytes=peak,
            alloc_retries=0,
            step_seconds=self.formula.job.contract.effective_batch / speed,
            samples_per_second=speed,
            **fields,
        )


@pytest.fixture
def make_truth(make_job) -> Callable[..., Truth]:
    def make(seed: int = 0, **changes) -> Truth:
        return Truth(Formula(make_job(**changes)), seed)

    return make
