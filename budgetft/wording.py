"""Settings and sizes in the field's words: what people read instead of the names in a plan file."""

import math

from budgetft.knobs import Knobs
from budgetft.units import counted

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


def pixels_words(pixels: int) -> str:
    """``448x448`` for 200,704 pixels: the square of that size, or ``about 894x894`` where there is no whole one."""
    side = math.isqrt(pixels)
    return f"{side}x{side}" if side * side == pixels else f"about {side}x{side}"


def size_words(size_bytes: int) -> str:
    """Bytes on a disk or a network line: ``7.1 GB``, ``86 MB``; decimal units, as those are sold."""
    if size_bytes >= 10**9:
        return f"{size_bytes / 10**9:.1f} GB"
    return f"{size_bytes / 10**6:.0f} MB" if size_bytes >= 10**6 else f"{-(-size_bytes // 1000)} kB"
