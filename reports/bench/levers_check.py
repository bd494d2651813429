"""What four-bit weights, the eight-bit optimizer, host activations and bucketing give on a GPU, predicted beside measured.

    python reports/bench/levers_check.py --model qwen2.5-vl-3b > reports/bench/levers.jsonl      # on a GPU, ten minutes
    python reports/bench/levers_check.py --predict                                               # without: predictions only

Every row is a probe of the tool itself: a child process under the budget, heaviest batch first. The GPU stands in for a
V100, so measured rows are ``emulated``. What is not installed is skipped, with the reason in the row.
"""

import random
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser
from harness.evidence import tell
from harness.jobs import job, kept, probed, replayed

from budgetft.contract import Contract
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.predict.calibrate import Calibration, load_calibration
from budgetft.predict.estimator import Estimator
from budgetft.predict.memory_model import Work
from budgetft.search.space import padding_of
from budgetft.units import parse_bytes
from budgetft.workload import Shape, Workload

EFFECTIVE = 32
LEVERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "nf4": {"base_precision": "nf4"},
    "adamw8bit": {"optimizer": "adamw8bit"},
    "activations on the host": {"offload": "activations"},
    "nf4, adamw8bit, activations on the host": {"base_precision": "nf4", "optimizer": "adamw8bit", "offload": "activations"},
}


def questions(uniform: Job, size: int) -> Iterator[tuple[dict[str, Any], Job, Knobs]]:
    """Each lever with all layers checkpointed, four bits also with half of them; then both batchings."""
    layers, ragged = uniform.model.layers, uniform.replace(workload=ragged_work())
    base = Knobs(
        micro_batch=size, grad_accum=EFFECTIVE // size, checkpointed_layers=layers, pointwise="fused", allocator="expandable"
    )
    for name, changes in LEVERS.items():
        yield {"lever": name, "data": "uniform"}, uniform, base.replace(**changes)
    for name in ("plain", "nf4"):
        row = {"lever": f"{name}, half of the layers checkpointed", "data": "uniform"}
        yield row, uniform, base.replace(checkpointed_layers=layers // 2, **LEVERS[name])
    padding = padding_of(ragged, size).model_dump()
    for batching in ("padded", "bucketed"):
        yield {"lever": batching, "data": "ragged", "padding": padding}, ragged, base.replace(batching=batching)


def ragged_work() -> Workload:
    """64 captions whose lengths are spread as written ones are (log-normal, a factor of two), one image each."""
    draw, shapes = random.Random(0), []
    for _ in range(64):
        answer = min(600, max(16, round(120 * 2 ** draw.gauss(0, 1))))
        side = draw.choice((252, 336, 448))
        shapes.append(Shape(images=((side, side),), text_tokens=96 + answer, supervised_tokens=answer))
    heaviest = sorted(shapes, key=lambda shape: (shape.total_tokens(28), shape.visual_tokens(28)), reverse=True)
    return Workload(worst=tuple(heaviest), typical=tuple(shapes))


def predict(problem: Job, knobs: Knobs, calibration: Calibration) -> dict[str, Any]:
    """Uniform data: the whole step traced and replayed. Ragged: as `estimate` does, which knows the lengths."""
    if problem.workload.typical != problem.workload.worst:
        said = Estimator(problem, calibration=calibration).estimate(knobs)
        bytes_ = (said.tensor_peak_bytes, said.reserved_peak_bytes, said.process_peak_bytes)
        return {
            **dict(zip(("allocated", "reserved", "process"), bytes_, strict=True)),
            "samples_per_second": said.samples_per_second,
        }
    peaks, trace = replayed(problem, knobs, calibration)
    work = [Work(phase=s.label[0], **kept(s, "flops", "moved_bytes", "kernels", "host_bytes")) for s in trace.segments]
    assert problem.host is not None
    seconds = calibration.micro_seconds(work, problem.host)
    speed = None if seconds is None else knobs.micro_batch / seconds
    return {
        "allocated": peaks["tensors"],
        "reserved": peaks["reserved"],
        "process": peaks["process"],
        "samples_per_second": speed,
    }


def measure(problem: Job, knobs: Knobs) -> dict[str, Any]:
    """One probe in a process of its own."""
    if (knobs.base_precision == "nf4" or knobs.optimizer == "adamw8bit") and find_spec("bitsandbytes") is None:
        return {"skipped": 'bitsandbytes is not installed: pip install "budgetft[nf4]"'}
    names = (
        "status",
        "phase",
        "detail",
        "evidence",
        "samples_per_second",
        "micro_seconds",
        "optimizer_seconds",
        "alloc_retries",
    )
    outcome = probed(problem, knobs)
    peaks = {name: getattr(outcome, f"{name}_peak_bytes") for name in ("allocated", "reserved", "process")}
    return {"measured": {**kept(outcome, *names), **peaks}}


options = parser(__doc__, model="qwen2.5-vl-3b", gpu="v100-16g")
flag(options, "--host", default="h100-80g", help="the profile of the GPU that is here, in the place of --gpu")
flag(options, "--budget", default="14GiB")
flag(options, "--micro-batch", type=int, default=8)
flag(options, "--predict", action="store_true", help="no GPU: predictions only")


def main() -> None:
    asked = options.parse_args()
    contract = Contract(effective_batch=EFFECTIVE, allow_nf4=True, allow_adamw8bit=True)
    place: dict[str, Any] = {"budget_bytes": parse_bytes(asked.budget), "host": asked.host, "evidence": "emulated"}
    for row, problem, knobs in questions(job(asked.gpu, asked.model, contract=contract, **place), asked.micro_batch):
        row["knobs"] = knobs.model_dump()
        row["predicted"] = predict(problem, knobs, load_calibration(asked.host, "emulated"))
        tell(row if asked.predict else {**row, **measure(problem, knobs)})


if __name__ == "__main__":
    main()
