"""What peft's LoRA forward costs beside the lean one, and what is left of it: traced on fake tensors, no GPU.

    python reports/bench/lora_path.py > reports/bench/lora_path.txt        # predicted, about 2 minutes

Qwen2.5-VL-3B with a V100's kernels, one image of 448x448, 256 text tokens (160 supervised), rank 16, fused norms. A layer's
share of a micro-batch of 8: live bytes that its forward leaves for backward, bytes that element-wise kernels read and write,
kernels, and FLOPs; then the whole step by the H100's calibration.
"""

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, Lora
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.calibrate import load_calibration
from budgetft.predict.estimator import Estimator
from budgetft.predict.trace import trace_step
from budgetft.workload import Shape, Workload

GIB, MIB = 2**30, 2**20
MODEL, SHAPE, SIZE = load_model("qwen2.5-vl-3b"), Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160), 8
CONTRACT = Contract(rank=16, effective_batch=32)
PATHS: tuple[Lora, ...] = ("stock", "lean")


def layer_share(knobs: Knobs) -> dict[str, float]:
    """Of one inner layer: what a model of six has more than one of five."""
    gpu = load_gpu("v100-16g")
    five, six = (trace_step(MODEL, CONTRACT, knobs, [SHAPE] * SIZE, gpu=gpu, layers=layers) for layers in (5, 6))

    def kept(trace) -> int:
        return sum(segment.net_bytes for segment in trace.segments if segment.label[0] == "forward")

    def total(trace, name: str) -> int:
        return sum(getattr(segment, name) for segment in trace.segments)

    found = {name: total(six, name) - total(five, name) for name in ("moved_bytes", "kernels", "flops")}
    return {"kept": kept(six) - kept(five), **found}


def main() -> None:
    """A table line for each path, without and with checkpointing."""
    print("| LoRA forward | layers checkpointed | kept by a layer | moved in a layer | kernels | GFLOP | peak | samples/s |")
    print("|---|---|---|---|---|---|---|---|")
    job = Job(
        gpu=load_gpu("v100-16g"), host=load_gpu("h100-80g"), budget_bytes=80 * GIB, model=MODEL, contract=CONTRACT,
        workload=Workload.uniform(SHAPE), evidence="emulated",
    )  # fmt: skip
    estimator = Estimator(job, calibration=load_calibration("h100-80g", "emulated"))
    for checkpointed in (0, MODEL.layers):
        for path in PATHS:
            knobs = Knobs(
                micro_batch=SIZE, grad_accum=32 // SIZE, checkpointed_layers=checkpointed, lora=path, pointwise="fused",
                allocator="expandable",
            )  # fmt: skip
            share, whole = layer_share(knobs), estimator.estimate(knobs)
            cells = [
                "peft's" if path == "stock" else "lean",
                "none" if checkpointed == 0 else "all",
                f"{share['kept'] / MIB:.0f} MiB",
                f"{share['moved_bytes'] / GIB:.2f} GiB",
                f"{share['kernels']:.0f}",
                f"{share['flops'] / 1e9:.0f}",
                f"{whole.process_peak_bytes / GIB:.2f} GiB",
                f"{whole.samples_per_second:.1f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
