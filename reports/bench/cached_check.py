"""Are cached features those of the step? Compares them on a GPU, and a step on them with the step with the frozen tower.

    python reports/bench/cached_check.py [--model qwen2.5-vl-3b] [--max-pixels 200704] [--out cached.json]   # a GPU: a minute

Saves random weights as a checkpoint, computes features of drawn images from it as `budgetft data cache` does (equal images
together), and takes one micro-batch with the frozen tower and one with the features. Prints JSON: how far the features of
the step are from the cached ones, bit-equal share, loss, gradient, peak bytes and seconds of both; measured on the device
that it names.
"""

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness.arguments import flag, parser
from harness.children import clocked
from harness.evidence import write
from harness.small import save_random

from budgetft.contract import Contract
from budgetft.data.collate import collate, encode
from budgetft.data.features import FeatureCache, find_pictures
from budgetft.data.processor import load_processor
from budgetft.data.synthetic.sample import write_sample
from budgetft.knobs import Knobs
from budgetft.model import Model, load_model
from budgetft.step.build import DTYPES, build_model, trainable
from budgetft.step.features import cache_features, feature_key, pick_device
from budgetft.step.step import Step
from budgetft.step.tower import joined_features

EXAMPLES = 4
"""Of a micro-batch."""


def check(model: Model, precision: Any, max_pixels: int, device: torch.device, folder: Path) -> dict[str, Any]:
    """The report."""
    contract = Contract(max_pixels=max_pixels, effective_batch=EXAMPLES)
    weights = str(folder / "weights")
    save_random(model, weights, dtype=DTYPES[precision], device=device, seed=0)
    sample = write_sample(folder / "sample", count=12)
    pictures = find_pictures(sample, model, contract)
    facts: dict[str, Any] = {"model": model, "contract": contract, "precision": precision, "weights": weights}
    done = cache_features(pictures, folder / "cache", device=device, **facts)
    cache = FeatureCache(folder / "cache", feature_key(**facts))
    digests = {each.block: each.digest for each in pictures}
    processor: Any = load_processor(model)
    parts = [sample[index] for index in range(EXAMPLES)]

    def batch_of(features_of: Any) -> Any:
        encoded = [encode(each, processor, model, contract, features_of=features_of) for each in parts]
        return collate(encoded, processor.tokenizer.pad_token_id)

    fused = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    knobs = Knobs(
        micro_batch=EXAMPLES, grad_accum=1, checkpointed_layers=model.layers, attention="flash" if fused else "efficient",
        pointwise="fused", base_precision=precision,
    )  # fmt: skip
    patches, features = batch_of(None), batch_of(lambda path: cache.read(digests[path]))
    report: dict[str, Any] = {
        "model": model.name,
        "precision": precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "images_cached": done.computed,
        "caching_seconds": done.seconds,
        "features_bytes": done.wanted_bytes,
    }
    frozen_step = open_step(model, contract, knobs, device, weights)
    compared = {
        "as planned": knobs,
        "stock norms": knobs.replace(pointwise="stock"),
        "math attention": knobs.replace(attention="math"),
    }
    for name, variant in compared.items():
        frozen_step.configure(variant)
        report[f"features, {name}"] = difference(in_step_features(frozen_step, patches), features.features)
    frozen_step.configure(knobs)
    frozen, frozen_gradient = measure(frozen_step, patches)
    del frozen_step
    cached, cached_gradient = measure(open_step(model, contract, knobs.replace(vision="cached"), device, weights), features)
    report |= {"frozen": frozen, "cached": cached}
    report["loss_difference"] = abs(frozen["loss"] - cached["loss"])
    report["gradient_relative_error"] = float((cached_gradient - frozen_gradient).norm() / frozen_gradient.norm())
    return report


def open_step(model: Model, contract: Contract, knobs: Knobs, device: torch.device, weights: str) -> Step:
    """A step from the checkpoint, with adapters that are the same for all and nowhere zero."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    peft_model = build_model(
        model, contract, base_precision=knobs.base_precision, device=device, weights=weights, vision=knobs.vision
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in trainable(peft_model):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
    return Step(peft_model, contract, knobs, device=device)


def in_step_features(step: Step, batch: Any) -> torch.Tensor:
    """What the tower gives inside a micro-batch's forward."""
    seen: list[torch.Tensor] = []
    hook = step.base.model.visual.register_forward_hook(lambda module, args, output: seen.append(joined_features(output).cpu()))
    step.micro(step.prepare(batch), total_supervised=1)
    hook.remove()
    step.optimizer.zero_grad(set_to_none=True)
    return seen[0]


def difference(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, Any]:
    """How far apart two sets of features are."""
    apart = (found.double() - wanted.double()).abs()
    return {
        "dtypes": [str(found.dtype), str(wanted.dtype)],
        "values": found.numel(),
        "largest_value": float(wanted.double().abs().max()),
        "max_abs_difference": float(apart.max()),
        "mean_abs_difference": float(apart.mean()),
        "bit_equal_share": float((found == wanted).double().mean()),
    }


def measure(step: Step, batch: Any) -> tuple[dict[str, Any], torch.Tensor]:
    """Loss, peak and seconds of a micro-batch, and its gradient on the host."""
    inputs = step.prepare(batch)
    scale = 1.0 / step.scaler.get_scale()
    total = inputs.supervised_tokens
    loss = step.micro(inputs, total_supervised=total)
    gradient = torch.cat([parameter.grad.flatten().cpu() for parameter in step.parameters if parameter.grad is not None])
    on_gpu = step.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(step.device)

    def micro() -> None:
        step.micro(inputs, total_supervised=total)
        if on_gpu:
            torch.cuda.synchronize(step.device)

    seconds = [clocked(micro) for _ in range(5)]
    step.optimizer.zero_grad(set_to_none=True)
    peak = torch.cuda.max_memory_allocated(step.device) if on_gpu else None
    facts = {"loss": float(loss), "gradient_norm": float(gradient.norm()) * scale, "micro_seconds": min(seconds)}
    return {**facts, "allocated_peak_bytes": peak}, gradient


options = parser(__doc__, model="qwen2.5-vl-3b", device="auto", out=None)
flag(options, "--precision", default="fp16", choices=list(DTYPES))
flag(options, "--max-pixels", type=int, default=200_704)


def main() -> None:
    asked = options.parse_args()
    device = pick_device(asked.device)
    with tempfile.TemporaryDirectory() as folder:
        report = check(load_model(asked.model), asked.precision, asked.max_pixels, device, Path(folder))
    write(asked.out, report, "measured")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
