"""What four-bit weights, the eight-bit optimizer, host activations and bucketing give on a GPU, predicted beside measured.

    python reports/bench/levers_check.py --model qwen2.5-vl-3b > reports/bench/levers.jsonl

Every row is a probe of the tool itself: a child process under the budget, worst batch first. The GPU stands in for a
V100, so measured rows are ``emulated``. What is not installed is skipped, with the reason in the row. Without a GPU
(``--predict``) only the predictions are made.
"""

import argparse
import json
import random
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from budgetft.contract import Contract
from budgetft.gpu import Gpu, load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.child import current_stack
from budgetft.measure.job import Job
from budgetft.measure.probe import Prober
from budgetft.model import Model, load_model
from budgetft.predict.allocator import CachingAllocator
from budgetft.predict.calibrate import Calibration, load_calibration
from budgetft.predict.estimator import Estimator
from budgetft.predict.memory_model import Work
from budgetft.predict.trace import trace_step
from budgetft.search.space import padding_of
from budgetft.units import parse_bytes
from budgetft.workload import Shape, Workload

EFFECTIVE = 32
SHAPE = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
LEVERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nf4": {"base_precision": "nf4"},
    "adamw8bit": {"optimizer": "adamw8bit"},
    "activations on the host": {"offload": "activations"},
    "nf4, adamw8bit, activations on the host": {
        "base_precision": "nf4",
        "optimizer": "adamw8bit",
        "offload": "activations",
    },
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="qwen2.5-vl-3b")
    parser.add_argument("--gpu", default="v100-16g", help="the GPU that is stood in for")
    parser.add_argument("--host", default="h100-80g", help="the profile of the GPU that is here")
    parser.add_argument("--budget", default="14GiB")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--predict", action="store_true", help="no GPU: predictions only")
    chosen = parser.parse_args()
    gpu, model = load_gpu(chosen.gpu), load_model(chosen.model)
    host = load_gpu(chosen.host)
    jobs = {"uniform": job_of(model, gpu, host, chosen.budget, Workload.uniform(SHAPE))}
    jobs["ragged"] = jobs["uniform"].replace(workload=ragged())
    for row, job, knobs in questions(jobs, model, chosen.micro_batch):
        row["knobs"] = knobs.model_dump()
        row["predicted"] = predict(job, knobs, load_calibration(chosen.host, "emulated"), host)
        if not chosen.predict:
            row |= measure(job, knobs)
        print(json.dumps(row), flush=True)


def questions(jobs: dict[str, Job], model: Model, size: int) -> Iterator[tuple[dict[str, Any], Job, Knobs]]:
    """Each lever with all layers checkpointed, four bits also with half of them; then both batchings."""
    base = Knobs(
        micro_batch=size,
        grad_accum=EFFECTIVE // size,
        checkpointed_layers=model.layers,
        pointwise="fused",
        allocator="expandable",
    )
    for name, changes in LEVERS.items():
        yield {"lever": name, "data": "uniform"}, jobs["uniform"], base.replace(**changes)
    for name in ("plain", "nf4"):
        fewer = base.replace(checkpointed_layers=model.layers // 2, **LEVERS[name])
        yield {"lever": f"{name}, half of the layers checkpointed", "data": "uniform"}, jobs["uniform"], fewer
    padding = padding_of(jobs["ragged"], size).model_dump()
    for batching in ("padded", "bucketed"):
        row = {"lever": batching, "data": "ragged", "padding": padding}
        yield row, jobs["ragged"], base.replace(batching=batching)


def job_of(model: Model, gpu: Gpu, host: Gpu, budget: str, workload: Workload) -> Job:
    """The planning problem, all levers allowed."""
    return Job(
        gpu=gpu,
        budget_bytes=parse_bytes(budget),
        model=model,
        contract=Contract(effective_batch=EFFECTIVE, allow_nf4=True, allow_adamw8bit=True),
        workload=workload,
        host=host,
        evidence="emulated",
    )


def ragged() -> Workload:
    """64 captions whose lengths are spread as written ones are (log-normal, a factor of two), one image each."""
    draw = random.Random(0)
    shapes = []
    for _ in range(64):
        answer = min(600, max(16, round(120 * 2 ** draw.gauss(0, 1))))
        side = draw.choice((252, 336, 448))
        shapes.append(Shape(images=((side, side),), text_tokens=96 + answer, supervised_tokens=answer))
    heaviest = sorted(shapes, key=lambda shape: (shape.total_tokens(28), shape.visual_tokens(28)), reverse=True)
    return Workload(worst=tuple(heaviest), typical=tuple(shapes))


def predict(job: Job, knobs: Knobs, calibration: Calibration, host: Gpu) -> dict[str, Any]:
    """Uniform data: the whole step traced and replayed. Ragged: by the memory model, which knows the lengths."""
    if job.workload.typical != job.workload.worst:
        estimate = Estimator(job, calibration=calibration).estimate(knobs)
        return {
            "allocated": estimate.tensor_peak_bytes,
            "reserved": estimate.reserved_peak_bytes,
            "process": estimate.process_peak_bytes,
            "samples_per_second": estimate.samples_per_second,
        }
    trace = trace_step(job.model, job.contract, knobs, job.worst_micro_batch(knobs), gpu=job.gpu)
    allocator = CachingAllocator(knobs.allocator)
    allocator.run(trace.static_events)
    allocator.run([(-1 - number, calibration.workspace_bytes // 2) for number in range(2)])
    allocator.run(trace.events)
    work = [
        Work(phase=s.label[0], flops=s.flops, moved_bytes=s.moved_bytes, kernels=s.kernels, host_bytes=s.host_bytes)
        for s in trace.segments
    ]
    seconds = calibration.micro_seconds(work, host)
    return {
        "allocated": allocator.allocated_peak_bytes,
        "reserved": allocator.reserved_peak_bytes,
        "process": allocator.reserved_peak_bytes + calibration.context_bytes,
        "samples_per_second": None if seconds is None else knobs.micro_batch / seconds,
    }


def measure(job: Job, knobs: Knobs) -> dict[str, Any]:
    """One probe in a process of its own."""
    if (knobs.base_precision == "nf4" or knobs.optimizer == "adamw8bit") and find_spec("bitsandbytes") is None:
        return {"skipped": 'bitsandbytes is not installed: pip install "budgetft[nf4]"'}
    with Prober(job, stack=current_stack("cuda")) as prober:
        outcome = prober.probe(knobs)
    kept = (
        "status",
        "phase",
        "detail",
        "evidence",
        "samples_per_second",
        "micro_seconds",
        "optimizer_seconds",
        "alloc_retries",
    )
    peaks = {name: getattr(outcome, f"{name}_peak_bytes") for name in ("allocated", "reserved", "process")}
    return {"measured": {name: getattr(outcome, name) for name in kept} | peaks}


if __name__ == "__main__":
    main()
