"""What peft's LoRA forward costs beside the lean one, and what is left of it: traced on fake tensors, no GPU.

    python reports/bench/lora_path.py > reports/bench/lora_path.txt        # predicted, about 2 minutes

Qwen2.5-VL-3B with a V100's kernels, one image of 448x448, 256 text tokens (160 label tokens), rank 16, fused norms. A layer's
share of a micro-batch of 8: live bytes that its forward leaves for backward, bytes that element-wise kernels read and write,
kernels, and FLOPs; then the whole step by the H100's calibration.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import parser
from harness.jobs import job
from harness.tables import GIB, MIB, gib, head, show

from budgetft.contract import Contract
from budgetft.knobs import Knobs, Lora
from budgetft.measure.job import Job
from budgetft.predict.calibrate import load_calibration
from budgetft.predict.estimator import Estimator

SIZE, EFFECTIVE = 8, 32
PATHS: tuple[Lora, ...] = ("stock", "lean")


def layer_share(problem: Job, knobs: Knobs) -> dict[str, float]:
    """Of one inner layer: what a model of six has more than one of five."""
    from budgetft.predict.trace import trace_step

    shapes = [problem.workload.worst[0]] * SIZE
    five, six = (
        trace_step(problem.model, problem.contract, knobs, shapes, gpu=problem.gpu, layers=layers).segments for layers in (5, 6)
    )

    def total(segments: Any, name: str, phase: str = "") -> int:
        return sum(getattr(segment, name) for segment in segments if phase in ("", segment.label[0]))

    found = {name: total(six, name) - total(five, name) for name in ("moved_bytes", "kernels", "flops")}
    return {"kept": total(six, "net_bytes", "forward") - total(five, "net_bytes", "forward"), **found}


options = parser(__doc__)


def main() -> None:
    options.parse_args()
    names = (
        "LoRA forward",
        "layers checkpointed",
        "kept by a layer",
        "moved in a layer",
        "kernels",
        "GFLOP",
        "peak",
        "samples/s",
    )
    print(head(*names))
    contract, model = Contract(rank=16, effective_batch=EFFECTIVE), "qwen2.5-vl-3b"
    problem = job("v100-16g", model, contract=contract, budget_bytes=80 * GIB, host="h100-80g", evidence="emulated")
    estimator = Estimator(problem, calibration=load_calibration("h100-80g", "emulated"))
    for checkpointed in (0, problem.model.layers):
        for path in PATHS:
            knobs = Knobs(
                micro_batch=SIZE, grad_accum=EFFECTIVE // SIZE, checkpointed_layers=checkpointed, lora=path, pointwise="fused",
                allocator="expandable",
            )  # fmt: skip
            share, whole = layer_share(problem, knobs), estimator.estimate(knobs)
            show(
                "peft's" if path == "stock" else "lean", "none" if checkpointed == 0 else "all",
                f"{share['kept'] / MIB:.0f} MiB", f"{gib(share['moved_bytes'])} GiB", f"{share['kernels']:.0f}",
                f"{share['flops'] / 1e9:.0f}", f"{gib(whole.process_peak_bytes)} GiB", f"{whole.samples_per_second:.1f}",
            )  # fmt: skip


if __name__ == "__main__":
    main()
