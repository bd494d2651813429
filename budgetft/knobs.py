"""What only changes *cost*: the search is free to choose these, and every choice gives the same gradients."""

import re
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from budgetft.errors import UsageError, unknown_name
from budgetft.value import Value

Loss = Literal["full", "supervised", "chunked"]
Vision = Literal["stock", "frozen", "cached", "no_grad", "uncheckpointed"]
Attention = Literal["stock", "math", "efficient", "flash", "eager"]
Lora = Literal["stock", "lean"]
Pointwise = Literal["stock", "fused"]
Precision = Literal["fp16", "bf16", "fp32", "nf4"]
Allocator = Literal["default", "expandable"]
Batching = Literal["padded", "bucketed"]
Optimizer = Literal["adamw", "adamw8bit"]
Offload = Literal["none", "activations"]

STOCK_TOWERS = ("stock", "no_grad", "uncheckpointed")
"""Values of ``vision`` with transformers' own forward of the tower."""
LOSS_CHUNK = 256
"""Tokens: the logits of 256 of 151,936 words are 156 MB in fp32 and 78 MB in fp16."""
MOST_AT_ONCE = 2**40
"""Tokens or patches: more are taken at a time than any example has."""
VISION_GROUP = 8192
"""Patches: enough to fill a GPU, small beside the backward that follows."""


class Knobs(Value):
    """One setting of everything that may be searched."""

    micro_batch: int = Field(ge=1)
    """Examples in one forward and backward; more is faster and takes more memory."""
    grad_accum: int = Field(ge=1)
    """Micro-batches per optimizer step; ``micro_batch * grad_accum`` is the contract's effective batch."""
    checkpointed_layers: int = Field(ge=0)
    """The first so many decoder layers recompute their forward in backward; fewer is faster and takes more memory."""
    loss: Loss = "chunked"
    """``full``: logits of every position (stock). ``supervised``: of answer tokens. ``chunked``: those, a chunk at a time."""
    vision: Vision = "frozen"
    """``stock``: one forward inside the graph. ``frozen``: no graph, image by image, windows of equal length together.
    ``cached``: what ``frozen`` computes, once before training and read from disk; no tower on the GPU. What other trainers
    do, and no search tries: ``no_grad``, the stock forward without a graph (ms-swift); ``uncheckpointed``, inside the graph
    and left out of gradient checkpointing, so that it keeps all its activations (LLaMA-Factory)."""
    attention: Attention = "efficient"
    """``stock`` is what transformers and torch pick; the others name the kernel, with KV heads repeated explicitly, but for
    ``eager``: transformers' own products and softmax, N x N scores in memory."""
    lora: Lora = "lean"
    """``stock``: peft's own forward. ``lean``: the same sum with fewer passes over memory; needs no dropout and no DoRA."""
    pointwise: Pointwise = "stock"
    """Norms and gated activations. ``stock``: as transformers writes them. ``fused``: one kernel each, the same values."""
    base_precision: Precision = "fp16"
    """The type of the frozen base weights and of autocast; adapters are always fp32. ``nf4``: decoder linears in four bits,
    computed in fp16; needs the contract's leave."""
    allocator: Allocator = "default"
    """``expandable``: CUDA virtual-memory segments, less fragmentation, where the platform has them."""
    batching: Batching = "padded"
    """``padded``: a step's examples in the order drawn. ``bucketed``: those of like length together, in at most ``grad_accum``
    micro-batches, none above the worst that was planned for."""
    optimizer: Optimizer = "adamw"
    """``adamw8bit``: its two moments in eight bits, 2 bytes a trainable parameter instead of 8; needs the contract's leave."""
    offload: Offload = "none"
    """``activations``: the inputs of checkpointed layers wait on the host for backward."""
    loss_chunk: int = Field(default=LOSS_CHUNK, ge=1, le=MOST_AT_ONCE, exclude_if=lambda size: size == LOSS_CHUNK)
    """Answer tokens whose logits exist at a time, with loss ``chunked`` and in evaluation. Not written at its default, nor is
    the next: plans and ledgers stay as they were."""
    vision_group: int = Field(default=VISION_GROUP, ge=1, le=MOST_AT_ONCE, exclude_if=lambda size: size == VISION_GROUP)
    """Patches that a ``frozen`` tower takes at a time: equal images together up to it, a larger one by itself."""
    fp32_blocks: tuple[str, ...] = Field(default=(), exclude_if=lambda names: not names)
    """Blocks that compute in fp32 because they overflow fp16, by module name: not searched, but found in the weights. In a
    name, ``*`` stands for every number."""

    deterministic: bool = Field(default=False, exclude_if=lambda wanted: not wanted)
    """The same bits in every run on one GPU, by torch's deterministic algorithms: not searched, but asked for."""

    @field_validator("fp32_blocks")
    @classmethod
    def _block_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        strange = [name for name in names if not re.fullmatch(r"[\w*]+(\.[\w*]+)*", name)]
        if strange:
            raise ValueError(f"not the name of a block: {strange[0]!r}")
        return tuple(sorted(set(names), key=_in_order))


def _in_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """As the modules come: layer 2 before layer 10."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in name.split("."))


def computed_in(precision: Precision) -> Precision:
    """The type of activations, and so of vision features: four-bit weights compute in fp16."""
    return "fp16" if precision == "nf4" else precision


def stock_knobs(*, micro_batch: int, effective_batch: int, layers: int, base_precision: Precision) -> Knobs:
    """The stock recipe: what a plain Trainer with gradient checkpointing does."""
    return Knobs(
        micro_batch=micro_batch,
        grad_accum=effective_batch // micro_batch,
        checkpointed_layers=layers,
        loss="full",
        vision="stock",
        attention="stock",
        lora="stock",
        base_precision=base_precision,
    )


def is_stock(knobs: Knobs) -> bool:
    """Whether ``knobs`` is the stock recipe at some micro-batch."""
    return all(getattr(knobs, name) == "stock" for name in ("vision", "attention", "lora", "pointwise")) and (
        (knobs.loss, knobs.allocator, knobs.batching) == ("full", "default", "padded")
        and (knobs.optimizer, knobs.offload) == ("adamw", "none")
        and knobs.base_precision != "nf4"
    )


def parse_knob(text: str) -> tuple[str, Any]:
    """``name=value`` from the command line, checked against the fields of :class:`Knobs`."""
    name, equals, raw = text.partition("=")
    if not equals:
        raise UsageError(
            f"cannot read setting {text!r}", hint="write --setting name=value, for example --setting micro_batch=8"
        )
    if name not in Knobs.model_fields:
        raise unknown_name("setting", name, Knobs.model_fields)
    if name == "deterministic":
        if raw not in ("true", "false"):
            raise UsageError(f"setting deterministic must be true or false, not {raw!r}")
        return name, raw == "true"
    if name == "fp32_blocks":
        return name, tuple(part.strip() for part in raw.split(",") if part.strip())
    choices = get_args(Knobs.model_fields[name].annotation)
    if choices:
        if raw not in choices:
            raise unknown_name(f"value for setting {name}:", raw, choices)
        return name, raw
    if not (raw.isascii() and raw.isdigit()):
        raise UsageError(f"setting {name} must be a whole number, not {raw!r}")
    return name, int(raw)


def differences(knobs: Knobs, other: Knobs) -> dict[str, Any]:
    """The fields in which ``knobs`` differs from ``other``, with the values in ``knobs``."""
    return {name: getattr(knobs, name) for name in Knobs.model_fields if getattr(knobs, name) != getattr(other, name)}


def shown(value: Any) -> str:
    """The value of a knob for people: of names, how many."""
    return (f"{len(value)} blocks" if value else "none") if isinstance(value, tuple) else str(value)


def describe(knobs: Knobs) -> str:
    """The knobs in one line."""
    kind = "stock" if is_stock(knobs) else f"{knobs.loss}, {knobs.attention}, {knobs.allocator}"
    if knobs.vision == "cached":
        kind += ", cached vision"
    levers = {
        "nf4": knobs.base_precision == "nf4",
        knobs.batching: knobs.batching != "padded",
        knobs.optimizer: knobs.optimizer != "adamw",
        "activations on the host": knobs.offload == "activations",
        f"{len(knobs.fp32_blocks)} blocks in fp32": bool(knobs.fp32_blocks),
        "deterministic": knobs.deterministic,
    }
    unusual = "".join(f", {name}" for name, used in levers.items() if used)
    return f"micro_batch {knobs.micro_batch}, checkpointed {knobs.checkpointed_layers}, {kind}{unusual}"
