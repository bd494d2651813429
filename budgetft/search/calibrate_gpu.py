"""A calibration of the GPU at hand: ten seconds of measuring, then a short fixed set of probes."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from budgetft.contract import Contract
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs, is_stock
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.outcome import Outcome, Stack
from budgetft.predict.calibrate import Calibration, Observation, check_calibration, fit_calibration
from budgetft.predict.clock import prior_speeds
from budgetft.predict.estimator import Estimator
from budgetft.predict.machine import Machine
from budgetft.search.events import Event
from budgetft.search.space import settings, stock_settings
from budgetft.workload import Shape, Workload

MODEL = "qwen2-vl-2b"
"""The smallest bundled model of full size: its weights take 4.2 GiB, and nothing is downloaded for it."""
SHAPE = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
EFFECTIVE_BATCH = 8
SECONDS = 240.0
"""After which no further probe is begun; each takes some ten."""


class Probes(Protocol):
    """What probes: :class:`budgetft.measure.probe.Prober`."""

    def probe(self, knobs: Knobs) -> Outcome: ...


def calibration_job(gpu: Gpu) -> Job:
    """The same for every GPU, but for its budget and its kernels."""
    return Job(
        gpu=gpu,
        budget_bytes=gpu.budget_bytes,
        model=load_model(MODEL),
        contract=Contract(effective_batch=EFFECTIVE_BATCH),
        workload=Workload.uniform(SHAPE),
        evidence="measured",
    )


def calibration_settings(estimator: Estimator) -> list[Knobs]:
    """Corners of the grid among what fits: few and many examples, no layer and all checkpointed, and stock."""
    job = estimator.job
    fitting = [k for k in settings(job) if estimator.estimate(k).fits]
    wanted: list[Knobs] = []
    for checkpointed in (0, job.model.layers // 2, job.model.layers):
        same = [k for k in fitting if abs(k.checkpointed_layers - checkpointed) <= 1]
        wanted += [same[0], same[-1]] if same else []
    wanted += [k for k in stock_settings(job) if estimator.estimate(k).fits][:1]
    return list({k.model_dump_json(): k for k in wanted}.values())


def calibrate(
    gpu: Gpu,
    stack: Stack,
    machine: Machine,
    prober: Probes,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Calibration, Sequence[Outcome]]:
    """The calibration of ``gpu``, and the probes that it was made from.

    Raises ``UsageError`` when too few probes end well, or when what they say is physically impossible.
    """
    job = calibration_job(gpu)
    estimator = Estimator(job, speeds=machine.teach(prior_speeds(gpu), gpu))
    chosen, began = calibration_settings(estimator), clock()
    outcomes: list[Outcome] = []
    for number, knobs in enumerate(chosen, 1):
        if clock() - began > SECONDS:
            break
        estimate = estimator.estimate(knobs)
        told = {"stage": "search", "number": number, "most": len(chosen), "knobs": knobs, "estimate": estimate}
        on_event(Event(**told))
        outcomes.append(prober.probe(knobs))
        on_event(Event(**told, outcome=outcomes[-1]))
    made = fit_calibration(
        [observation(estimator, outcome) for outcome in outcomes if outcome.fits],
        gpu,
        name=gpu.name,
        evidence="measured",
        torch=stack.torch.split("+")[0],
        source=f"{len(outcomes)} probes by budgetft gpus --calibrate, {machine.host}, driver {machine.driver}",
        speeds=estimator.speeds,
    )
    check_calibration(made, gpu)
    return made, outcomes


def observation(estimator: Estimator, outcome: Outcome) -> Observation:
    """What a probe that ended well says, beside what is predicted without a calibration."""
    knobs, memory_model = outcome.knobs, estimator.memory_model(outcome.knobs)
    live, _ = memory_model.peak_bytes(knobs.micro_batch, knobs.checkpointed_layers, accumulating=knobs.grad_accum > 1)
    blocks, kept = estimator.overhead(knobs)
    return Observation(
        blocks_bytes=live + blocks,
        reserved_bytes=live + kept,
        work=estimator.step_work(knobs),
        allocated_peak_bytes=outcome.allocated_peak_bytes or 0,
        reserved_peak_bytes=outcome.reserved_peak_bytes or 0,
        process_peak_bytes=outcome.process_peak_bytes or 1,
        step_seconds=outcome.step_seconds,
        error=outcome.speed_error,
        stock=is_stock(knobs),
    )
