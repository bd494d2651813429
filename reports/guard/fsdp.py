"""The step with a frozen base that two processes share out (FSDP2): same loss, same gradients, fewer weights held.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 reports/guard/fsdp.py

What it does not show, and why `train` refuses such a launch, is in the README. Evidence: predicted (the CPU, no card).
"""

from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.step.build import build_model
from budgetft.step.step import Step
from budgetft.workload import Shape

SHAPES = (Shape(images=((56, 56),), text_tokens=40, supervised_tokens=8),) * 2
SETTINGS: dict[str, dict[str, Any]] = {
    "stock LoRA and kernels": {"lora": "stock", "pointwise": "stock", "checkpointed_layers": 0},
    "lean LoRA, fused kernels": {"lora": "lean", "pointwise": "fused", "checkpointed_layers": 0},
    "the same, checkpointed": {"lora": "lean", "pointwise": "fused", "checkpointed_layers": 2},
}


def measure(changes: dict[str, Any], mesh: DeviceMesh | None) -> tuple[float, float, int]:
    """(loss, norm of the adapter's gradient, numbers held of the decoder layers and their adapters)."""
    model, contract = load_model("tiny-qwen2.5-vl"), Contract(rank=4, alpha=8, effective_batch=2)
    knobs = Knobs(micro_batch=2, grad_accum=1, base_precision="fp32", **changes)
    device = torch.device("cpu")
    peft_model = build_model(model, contract, base_precision="fp32", device=device, weights=None, vision=knobs.vision)
    step = Step(peft_model, contract, knobs, device=device)
    layers, adapter = step.base.model.language_model.layers, set(step.parameters)
    for layer in layers if mesh is not None else ():
        fully_shard(layer, mesh=mesh, ignored_params={each for each in layer.parameters() if each in adapter})
    inputs = step.prepare(synthetic_batch(SHAPES, model, seed=1, vision=knobs.vision))
    loss = float(step.micro(inputs, total_supervised=inputs.supervised_tokens))
    gradients = [each.grad.norm() for each in step.parameters if each.grad is not None]
    held = sum((each.to_local() if hasattr(each, "to_local") else each).numel() for each in layers.parameters())
    return loss, float(torch.stack(gradients).norm()), held


def main() -> None:
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    lines = [
        "| setting | loss, whole | shared out | gradient, whole | shared out | held, whole | shared out |",
        "|---|" + "---|" * 6,
    ]
    for name, changes in SETTINGS.items():
        pairs = zip(measure(changes, None), measure(changes, mesh), strict=True)
        lines.append(f"| {name} | " + " | ".join(f"{whole:.9g} | {shared:.9g}" for whole, shared in pairs) + " |")
    if distributed.get_rank() == 0:
        print("\n".join(lines))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
