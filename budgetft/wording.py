"""Settings and sizes in the field's words: what people read instead of the names in a plan file."""

import math

from budgetft.knobs import Knobs, differences, is_stock
from budgetft.outcome import Estimate
from budgetft.units import GIB, counted, format_gib

ATTENTION = {
    "stock": "Hugging Face's default attention",
    "math": "SDPA math attention",
    "efficient": "SDPA memory-efficient attention",
    "flash": "SDPA flash attention",
    "eager": "eager attention",
}
LOSS = {
    "full": "cross-entropy over full logits",
    "supervised": "cross-entropy over the logits of label tokens",
    "chunked": "chunked cross-entropy",
}
VISION = {
    "stock": "vision tower in the autograd graph",
    "frozen": "frozen vision tower without a graph",
    "cached": "pre-computed vision features",
    "no_grad": "Hugging Face's vision tower without a graph",
    "uncheckpointed": "vision tower in the autograd graph, not checkpointed",
}
BASE = {
    "fp16": "16-bit base weights (fp16)",
    "bf16": "16-bit base weights (bf16)",
    "fp32": "32-bit base weights",
    "nf4": "4-bit base weights (QLoRA, NF4)",
}


def batch_words(knobs: Knobs) -> str:
    """``micro-batch 2 x 16 accumulation steps``."""
    return f"micro-batch {knobs.micro_batch} x {counted(knobs.grad_accum, 'accumulation step')}"


def checkpointing_words(knobs: Knobs, layers: int | None) -> str:
    """``gradient checkpointing on 18 of 36 layers``; ``layers`` is None where the model is not at hand."""
    if knobs.checkpointed_layers == 0:
        return "no gradient checkpointing"
    if layers is None:
        return f"gradient checkpointing on {counted(knobs.checkpointed_layers, 'layer')}"
    return f"gradient checkpointing on {knobs.checkpointed_layers} of {layers} layers"


def settings_words(knobs: Knobs, layers: int | None) -> list[str]:
    """Every setting of ``knobs`` that is on, most telling first."""
    chunk = f" ({knobs.loss_chunk} tokens at a time)" if knobs.loss == "chunked" else ""
    optional = {
        "fused LoRA forward": knobs.lora == "lean",
        "fused RMSNorm and SwiGLU": knobs.pointwise == "fused",
        "8-bit AdamW": knobs.optimizer == "adamw8bit",
        "CPU offload of activations": knobs.offload == "activations",
        "expandable_segments": knobs.allocator == "expandable",
        "length-grouped batches": knobs.batching == "bucketed",
        f"{counted(len(knobs.fp32_blocks), 'block')} kept in fp32": bool(knobs.fp32_blocks),
        "deterministic": knobs.deterministic,
    }
    return [
        batch_words(knobs),
        checkpointing_words(knobs, layers),
        BASE[knobs.base_precision],
        ATTENTION[knobs.attention],
        LOSS[knobs.loss] + chunk,
        VISION[knobs.vision],
        *(words for words, is_on in optional.items() if is_on),
    ]


def fits_words(estimate: Estimate, budget_bytes: int | None = None) -> str:
    """``fits``, ``does not fit``, or ``too close to the budget``: inside it, but not by the margin of the prediction."""
    if estimate.fits:
        return "fits"
    inside = budget_bytes is not None and estimate.process_peak_bytes <= budget_bytes
    return "too close to the budget" if inside else "does not fit"


def room_words(estimate: Estimate, budget_bytes: int | None = None, share: float | None = None) -> str:
    """``10.76 of 11.28 GiB (+- 0.43 GiB, predicted; 0.52 GiB to spare)``.

    ``share`` is the half-width of the interval around a predicted peak. Without a budget it is the peak alone.
    """
    peak = estimate.process_peak_bytes
    if budget_bytes is None:
        return f"{format_gib(peak)} ({estimate.evidence})"
    left, text = budget_bytes - peak, f"{peak / GIB:.2f} of {format_gib(budget_bytes)}"
    margin = round(peak * share) if share and estimate.evidence == "predicted" else 0
    about = f"+- {format_gib(margin)}, {estimate.evidence}" if margin else estimate.evidence
    if left < 0:
        return f"{text} ({about}): {format_gib(-left)} too much"
    if not estimate.fits:
        return f"{text} ({about}): inside the budget, but not by that margin"
    return f"{text} ({about}; {format_gib(left)} to spare)"


def pixels_words(pixels: int) -> str:
    """``448x448`` for 200,704 pixels: the square of that size, or ``about 894x894`` where there is no whole one."""
    side = math.isqrt(pixels)
    return f"{side}x{side}" if side * side == pixels else f"about {side}x{side}"


def size_words(size_bytes: int) -> str:
    """Bytes on a disk or a network line: ``7.1 GB``, ``86 MB``; decimal units, as those are sold."""
    if size_bytes >= 10**9:
        return f"{size_bytes / 10**9:.1f} GB"
    return f"{size_bytes / 10**6:.0f} MB" if size_bytes >= 10**6 else f"{-(-size_bytes // 1000)} kB"


SETTING_NAMES = {
    "micro_batch": "micro-batch",
    "grad_accum": "accumulation steps",
    "checkpointed_layers": "gradient checkpointing",
    "vision": "vision tower",
    "lora": "LoRA forward",
    "pointwise": "RMSNorm and SwiGLU",
    "base_precision": "base weights",
    "allocator": "CUDA allocator",
    "batching": "batches",
    "offload": "saved activations",
    "loss_chunk": "label tokens at a time",
    "vision_group": "image patches at a time",
    "fp32_blocks": "blocks in fp32",
    "max_pixels": "largest image",
    "max_length": "longest example",
    "frames_per_example": "frames per example",
    "rank": "LoRA rank",
    "alpha": "LoRA alpha",
    "targets": "LoRA target modules",
    "use_rslora": "rank-stabilised LoRA",
    "use_dora": "DoRA",
    "init_lora": "LoRA start",
    "lora_dropout": "LoRA dropout",
    "allow_nf4": "4-bit base weights allowed",
    "allow_adamw8bit": "8-bit AdamW allowed",
    "lr_schedule": "learning-rate schedule",
    "max_grad_norm": "gradient clipping",
}
"""Fields whose name for people is not their own with spaces."""
_VALUES: dict[str, dict[str, str]] = {
    "loss": LOSS,
    "vision": VISION,
    "attention": ATTENTION,
    "base_precision": BASE,
    "lora": {"stock": "peft's own", "lean": "fused"},
    "pointwise": {"stock": "Hugging Face's own", "fused": "fused kernels"},
    "allocator": {"default": "default", "expandable": "expandable_segments"},
    "batching": {"padded": "random order", "bucketed": "length-grouped"},
    "optimizer": {"adamw": "AdamW", "adamw8bit": "8-bit AdamW"},
    "offload": {"none": "on the GPU", "activations": "offloaded to the CPU"},
}


def setting_name(field: str) -> str:
    """A field of a setting or of the training settings, in the field's words: ``gradient checkpointing``."""
    return SETTING_NAMES.get(field, field.replace("_", " "))


def setting_value(field: str, value: object, layers: int | None = None) -> str:
    """Its value in words: ``18 of 36 layers``, ``896x896``, ``length-grouped``."""
    if field in _VALUES:
        return _VALUES[field].get(str(value), str(value))
    if field == "checkpointed_layers":
        return "none" if not value else f"{value} layers" if layers is None else f"{value} of {layers} layers"
    if field == "max_pixels" and isinstance(value, int):
        return pixels_words(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    unit = " tokens" if field == "max_length" else ""
    return f"{value:,}{unit}" if isinstance(value, int) else str(value)


def short_words(knobs: Knobs, like: Knobs | None = None) -> str:
    """A setting in a few words: its micro-batch, its checkpointing, and in what else it differs from ``like``."""
    if is_stock(knobs):
        return f"Hugging Face Trainer defaults, micro-batch {knobs.micro_batch}"
    text = f"micro-batch {knobs.micro_batch}, {checkpointing_words(knobs, None)}"
    told = ("micro_batch", "grad_accum", "checkpointed_layers")
    others = {} if like is None else {n: v for n, v in differences(knobs, like).items() if n not in told}
    return text + "".join(f", {setting_name(name)}: {setting_value(name, value)}" for name, value in others.items())
