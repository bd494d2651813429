"""Gradients of every setting in fp16 and bf16 against fp64: how far each is, beside the baseline in the same type.

    python reports/guard/half_precision.py --device cpu --out reports/guard/half_precision-cpu.json        # two minutes
    python reports/guard/half_precision.py --device cuda --out reports/guard/half_precision-h200.json      # measured

The reference is the baseline with the same weights, rounded to the type, in fp64. An error is the norm of the difference
over the norm of the reference, of all A and of all B; of both, and of several batches, the root of the mean of squares. Cases:
a B as after the first steps and as after many, LoRA's scale (alpha over rank) 2 and 8, and in fp16 the gradient scale at its
start and fallen to 1. On a GPU the model has the 3B's widths and vocabulary with four layers and four blocks; on the CPU it is
the tiny one. Before it was run: a setting may be at most 10 % further from fp64 than the baseline. Exit code 1 when one is.
"""

import math
import sys
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness.arguments import parser
from harness.evidence import write
from harness.small import tests

from budgetft.contract import Contract
from budgetft.data.collate import synthetic_batch
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, stock_knobs
from budgetft.model import Model
from budgetft.step.build import build_model, trainable
from budgetft.step.step import Step
from budgetft.workload import Shape

CHANGES: dict[str, dict[str, Any]] = {
    "stock recipe": {},
    "loss of answer tokens only": {"loss": "supervised"},
    "loss in chunks": {"loss": "chunked"},
    "frozen vision": {"vision": "frozen"},
    "attention: math": {"attention": "math"},
    "attention: efficient": {"attention": "efficient"},
    "attention: flash": {"attention": "flash"},
    "lean LoRA": {"lora": "lean"},
    "fused norms and activations": {"pointwise": "fused"},
    "no checkpointing": {"checkpointed_layers": 0},
    "layer inputs on the host": {"offload": "activations"},
    "an MLP and an attention in fp32": {
        "fp32_blocks": ("model.language_model.layers.0.mlp", "model.language_model.layers.1.self_attn")
    },
    "everything ours": {"loss": "chunked", "vision": "frozen", "attention": "efficient", "lora": "lean", "pointwise": "fused"},
}
STARTS = {"after the first steps": 1e-4, "after many steps": 0.02}
"""Standard deviation of B: it starts at 0."""
SCALES = (2, 8)
GRADIENT_SCALES = {"fp16": (65_536.0, 1.0), "bf16": (1.0,)}
MOST = 1.1
SEEDS = 2


class Case:
    """A model in half precision and the same in fp64, with the same numbers in both."""

    def __init__(self, model: Model, precision: str, lora_scale: int, device: torch.device) -> None:
        self.model, self.device = model, device
        contract = Contract(rank=16, alpha=16 * lora_scale, effective_batch=4)
        self.stock = stock_knobs(micro_batch=2, effective_batch=4, layers=model.layers, base_precision=precision)  # type: ignore
        half = build_model(model, contract, base_precision=precision, device=device)  # type: ignore
        exact = build_model(model, contract, base_precision="fp32", device=device)
        exact.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
        self.half, self.exact = half, exact.double()
        self.step = Step(half, contract, self.stock, device=device)
        self.reference = Step(self.exact, contract, self.stock.replace(base_precision="fp32"), device=device)
        edge = model.pixel_step
        self.shapes = [
            Shape(images=((edge * 8, edge * 6),), text_tokens=90, supervised_tokens=60),
            Shape(images=((edge * 8, edge * 6), (edge * 5, edge * 5)), text_tokens=70, supervised_tokens=40),
        ]

    def start(self, std: float, seed: int) -> None:
        """Draw the adapters: A as peft does, B with ``std``."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for ours, theirs in zip(trainable(self.half), trainable(self.exact), strict=True):
                of_b = ours.shape[0] > ours.shape[1]
                drawn = torch.randn(ours.shape, generator=generator) * (std if of_b else 1 / math.sqrt(3 * ours.shape[1]))
                ours.copy_(drawn)
                theirs.copy_(drawn.double())

    def gradients(self, step: Step, knobs: Knobs, seed: int, gradient_scale: float) -> list[torch.Tensor]:
        """Every adapter's gradient in fp64."""
        batch = synthetic_batch(self.shapes, self.model, seed=seed)
        arithmetic = tests("rounding").doubled() if step is self.reference else nullcontext()
        with arithmetic:
            step.configure(knobs)
            step.scaler = torch.amp.GradScaler(self.device.type, init_scale=gradient_scale, enabled=gradient_scale != 1)
            inputs = step.prepare(batch)
            step.micro(inputs, total_supervised=100)
            found = [parameter.grad.double() / gradient_scale for parameter in step.parameters]  # type: ignore
        step.optimizer.zero_grad(set_to_none=True)
        return found


def errors(case: Case, std: float, gradient_scale: float, device: torch.device) -> dict[str, float]:
    """Of every setting."""
    squares: dict[str, list[float]] = {}
    for seed in range(SEEDS):
        case.start(std, seed)
        truth = case.gradients(case.reference, case.stock.replace(base_precision="fp32"), seed, 1.0)
        for name, change in CHANGES.items():
            if change.get("attention") == "flash" and device.type == "cpu":
                continue
            found = case.gradients(case.step, case.stock.replace(**change), seed, gradient_scale)
            squares.setdefault(name, []).append(error_of(found, truth) ** 2)
    return {name: math.sqrt(sum(each) / len(each)) for name, each in squares.items()}


def error_of(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """Of the A and the B of all adapters, each by norms, the root of the mean of both squares: the gradient of A is as small as
    B is, and would be lost in one norm of all."""
    pairs = list(zip(found, truth, strict=True))
    parts = []
    for of_b in (False, True):
        some = [(ours, theirs) for ours, theirs in pairs if (theirs.shape[0] > theirs.shape[1]) is of_b]
        off = sum(float((ours - theirs).square().sum()) for ours, theirs in some)
        parts.append(off / sum(float(theirs.square().sum()) for _, theirs in some))
    return math.sqrt(sum(parts) / len(parts))


options = parser(__doc__, device="cpu", out=...)


def main() -> None:
    arguments = options.parse_args()
    device = torch.device(arguments.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if device.type == "cuda":
        from budgetft.meter.cuda import restrict_to

        restrict_to(load_gpu("rtx3090"))
    tiny = tests("tiny")
    model = tiny.tiny_model() if device.type == "cpu" else tiny.short_model(layers=4, blocks=4)
    rows = []
    for precision, lora_scale in product(GRADIENT_SCALES, SCALES):
        case = Case(model, precision, lora_scale, device)
        for (start, std), gradient_scale in product(STARTS.items(), GRADIENT_SCALES[precision]):
            found = errors(case, std, gradient_scale, device)
            facts = {"precision": precision, "lora_scale": lora_scale, "start": start, "gradient_scale": gradient_scale}
            rows.append({**facts, "errors": found})
            print(f"\n{precision}, alpha/rank {lora_scale}, {start}, gradient scale {gradient_scale:g}")
            for name, error in found.items():
                print(f"  {name:<34} {error:.3e}  {error / found['stock recipe']:6.2f} of stock")
        del case
    gpu = torch.cuda.get_device_name(0) if device.type == "cuda" else "CPU"
    write(arguments.out, {"on": gpu, "torch": torch.__version__, "rows": rows}, "measured")
    worst = max((error / row["errors"]["stock recipe"], name) for row in rows for name, error in row["errors"].items())
    print(f"\nfurthest from fp64, beside the stock recipe: {worst[1]}, {worst[0]:.2f} times ({gpu})")
    sys.exit(worst[0] > MOST)


if __name__ == "__main__":
    main()
