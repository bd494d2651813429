"""Where the language model's part of a step goes on the GPU: share of the measured matmul rate, and time by kernel.

    python reports/bench/lm_profile.py OUT.json [MODEL]      # on a GPU, measured; three minutes

One example is 514 tokens without an image, which costs the language model what 256 visual and 258 text tokens do; the
weights are fp16, all layers are checkpointed, and FLOPs are those of a trace, the recomputation included.
"""

import sys
import time
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness.arguments import flag, parser
from harness.children import clocked
from harness.evidence import write
from harness.jobs import UNCAPPED_BYTES, job
from torch._C._autograd import DeviceType

from budgetft.contract import Contract
from budgetft.knobs import Knobs
from budgetft.measure.child import Probing, current_stack
from budgetft.predict.trace import trace_step
from budgetft.workload import Shape

SHAPE = Shape(images=(), text_tokens=514, supervised_tokens=160)


def matmul_rate(device: torch.device) -> float:
    """FLOP/s of square fp16 products, the best of a few sizes."""
    best = 0.0
    for size in (4096, 8192, 16384):
        left, right = (torch.randn(size, size, device=device, dtype=torch.float16) for _ in range(2))
        for _ in range(3):
            torch.mm(left, right)
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(10):
            torch.mm(left, right)
        torch.cuda.synchronize()
        best = max(best, 10 * 2 * size**3 / (time.perf_counter() - started))
    return best


def profiled(probing: Probing, knobs: Knobs) -> dict[str, Any]:
    """Seconds of a micro-batch, its FLOPs, and CUDA time by kernel and by phase."""
    step = probing.new_step(knobs)
    inputs = probing._inputs(step, probing.job.micro_batch_shapes(knobs, worst=True))

    def micro() -> None:
        step.micro(inputs, total_supervised=inputs.supervised_tokens)
        torch.cuda.synchronize()

    for _ in range(2):
        micro()
    seconds = [clocked(micro) for _ in range(5)]
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        micro()
    kernels = [event for event in profile.key_averages() if event.device_type == DeviceType.CUDA]
    kernels.sort(key=lambda event: event.self_device_time_total, reverse=True)
    total = sum(event.self_device_time_total for event in kernels)
    job = probing.job
    flops = trace_step(job.model, job.contract, knobs, job.micro_batch_shapes(knobs, worst=True), gpu=job.gpu).flops
    return {
        "pointwise": knobs.pointwise,
        "micro_batch": knobs.micro_batch,
        "checkpointed_layers": knobs.checkpointed_layers,
        "seconds": median(seconds),
        "flops": flops,
        "device_seconds": total / 1e6,
        "kernels": [{"name": e.key[:150], "seconds": e.self_device_time_total / 1e6, "count": e.count} for e in kernels[:40]],
    }


def gradient_difference(probing: Probing, knobs: Knobs) -> float:
    """Norm of the difference between the adapters' gradients of both ways, over the norm."""
    found = []
    for pointwise in ("stock", "fused"):
        step = probing.new_step(knobs.replace(micro_batch=4, grad_accum=16, pointwise=pointwise))
        step.optimizer.zero_grad(set_to_none=True)
        inputs = probing._inputs(step, (SHAPE,) * 4)
        step.micro(inputs, total_supervised=inputs.supervised_tokens)
        found.append(torch.cat([parameter.grad.flatten() for parameter in step.parameters if parameter.grad is not None]))
        step.optimizer.zero_grad(set_to_none=True)
    return float((found[0] - found[1]).norm() / found[0].norm())


options = flag(parser(__doc__), "out", type=Path)
flag(options, "model", nargs="?", default="qwen2.5-vl-3b")


def main() -> None:
    asked = options.parse_args()
    contract = Contract(rank=16, effective_batch=64)
    problem = job("v100-16g", asked.model, SHAPE, contract, budget_bytes=UNCAPPED_BYTES, evidence="emulated")
    knobs = Knobs(micro_batch=16, grad_accum=4, checkpointed_layers=problem.model.layers, allocator="default")
    probing = Probing(problem, knobs, lambda phase: None)
    rate = matmul_rate(torch.device("cuda"))
    rows = []
    for pointwise, micro_batch in product(("stock", "fused"), (16, 32)):
        chosen = knobs.replace(micro_batch=micro_batch, grad_accum=64 // micro_batch, pointwise=pointwise)
        row = profiled(probing, chosen)
        row["share_of_matmul_rate"] = row["flops"] / row["seconds"] / rate
        rows.append(row)
        speed = row["flops"] / row["seconds"]
        print(
            f"{pointwise}, micro-batch {micro_batch}: {micro_batch / row['seconds']:.1f} samples/s, {speed / 1e12:.0f} TFLOP/s,"
            f" {row['share_of_matmul_rate']:.1%} of {rate / 1e12:.0f} measured; kernels run {row['device_seconds']:.3f}"
            f" of {row['seconds']:.3f} s"
        )
        for kernel in row["kernels"][:25]:
            print(f"{kernel['seconds'] / row['device_seconds']:6.1%} {kernel['count']:6} {kernel['name'][:100]}")
    difference = gradient_difference(probing, knobs)
    print(f"gradients of fused against stock, relative: {difference:.2e}")
    made = {"matmul_flops_per_second": rate, "stack": current_stack("cuda").model_dump(mode="json")}
    write(asked.out, {**made, "gradient_difference": difference, "rows": rows}, "emulated")


if __name__ == "__main__":
    main()
