"""The step with frozen layers that two processes share out: loss, gradient and bytes against those of the whole base.

    OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc-per-node 2 reports/guard/fsdp.py      # a minute, no GPU

Whole runs are in :mod:`tests.train.test_shared_base`, a host with GPUs is ``gpus.py``. Evidence: predicted (the CPU, no GPU).
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness.arguments import parser
from harness.tables import head, row
from torch import distributed

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.knobs import Knobs
from budgetft.meter.live import LiveBytes
from budgetft.model import load_model
from budgetft.step.build import build_model
from budgetft.step.shared import SharedLayers
from budgetft.step.step import Step
from budgetft.workload import Shape

LAYERS = 12
SHAPES = (Shape(images=((56, 56),), text_tokens=40, supervised_tokens=8),) * 2
CPU = torch.device("cpu")
SETTINGS: dict[str, dict[str, Any]] = {
    "stock LoRA and kernels": {"lora": "stock", "pointwise": "stock"},
    "lean LoRA, fused kernels": {"lora": "lean", "pointwise": "fused"},
    "the same, half checkpointed": {"lora": "lean", "pointwise": "fused", "checkpointed_layers": LAYERS // 2},
    "the same, in four bits": {
        "lora": "lean", "pointwise": "fused", "checkpointed_layers": LAYERS // 2, "base_precision": "nf4"
    },
}  # fmt: skip


def measure(changes: dict[str, Any], shared: SharedLayers | None) -> tuple[float, float, int]:
    """(loss, norm of the adapter's gradient, peak of the live bytes in a micro-batch)."""
    model, contract = load_model("tiny-qwen2.5-vl"), Contract(rank=4, alpha=8, effective_batch=2, allow_nf4=True)
    model = model.replace(config={**model.config, "text_config": {**model.text, "num_hidden_layers": LAYERS}})
    fixed = {"micro_batch": 2, "grad_accum": 1, "base_precision": "fp32", "checkpointed_layers": 0}
    knobs, meter = Knobs(**{**fixed, **changes}), LiveBytes()
    peft_model = build_model(
        model, contract, base_precision=knobs.base_precision, device=CPU, vision=knobs.vision, shared=shared
    )
    step = Step(peft_model, contract, knobs, device=CPU, shared=shared)
    meter.count([*peft_model.parameters(), *peft_model.buffers(), *(shared.tensors() if shared else ())])
    inputs = step.prepare(synthetic_batch(SHAPES, model, seed=1, vision=knobs.vision))
    with meter:
        loss = float(step.micro(inputs, total_supervised=inputs.supervised_tokens))
    gradients = [each.grad.norm() for each in step.parameters if each.grad is not None]
    return loss, float(torch.stack(gradients).norm()), meter.peak_bytes


options = parser(__doc__)


def main() -> None:
    options.parse_args()
    distributed.init_process_group("gloo")
    rank, world = distributed.get_rank(), distributed.get_world_size()
    print_first = print if rank == 0 else lambda line: None
    both = ("loss, whole", "shared", "gradient, whole", "shared", "peak, whole", "shared")
    print_first(head("setting", *both, "as predicted"))
    for name, changes in SETTINGS.items():
        shared = SharedLayers(rank=rank, world=world, device=CPU)
        whole, found = measure(changes, None), measure(changes, shared)
        predicted = whole[2] - sum(shared.layer_bytes) + shared.held_bytes
        cells = [f"{one:.9g}" for pair in zip(whole[:2], found[:2], strict=True) for one in pair]
        print_first(row(name, *cells, f"{whole[2]:,}", f"{found[2]:,}", f"{predicted:,}"))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
