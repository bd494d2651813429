"""Attention kernels as transformers calls them, chosen by name instead of by accident.

Three things differ from stock. Grouped KV heads are repeated explicitly: with ``enable_gqa`` torch before 2.14 falls to the
math kernel, N x N scores in memory, on every GPU without flash. Vision windows of equal length go into one call. And a mask
is made additive once for all layers, where torch turns a boolean one into numbers in every layer, which keeps them.

Shapes: B batch, H heads, G key/value heads, S sequence, D head size, I images of a group, N patches of one image.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from budgetft.errors import BudgetftError
from budgetft.knobs import Attention
from budgetft.step.handed import WITHOUT_EFFECT

KERNELS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}


FUSED_KERNEL: ContextVar[Attention | None] = ContextVar("FUSED_KERNEL", default=None)
"""Set while tracing for a GPU: the fused kernel it has. Fake tensors then go through that GPU's operators, not the CPU's."""


@dataclass(frozen=True, kw_only=True)
class Segments:
    """How the patches of a group of equal images divide into attention segments, the same in every image."""

    images: int
    """I"""
    patches: int
    """N"""
    windows: tuple[tuple[int, int, int], ...]
    """Runs of windows of equal length: (first patch, number of windows, patches of one window)."""


@contextmanager
def kernel(name: Attention, device_type: str) -> Iterator[None]:
    """Force the kernel on CUDA. The CPU has one fused kernel, which saves for backward what flash and efficient save."""
    if name == "math" or (device_type == "cuda" and name != "stock"):
        with sdpa_kernel(KERNELS[name]):
            yield
    else:
        yield


FLASH_HEAD = 256
"""The largest head that the flash kernel takes."""
ALIGNMENT = 8
"""The efficient kernel wants rows of a mask to start at multiples of it, and copies others."""


def check_arguments(module: torch.nn.Module, arguments: dict[str, Any], *, masked: bool, keys: int) -> None:
    """Raise ``BudgetftError`` for an argument that would change the result and is not computed here: a soft cap, sinks, a bias.

    ``masked``: whether a mask was given, which has windows in it; without one a window must hold all ``keys``.
    """
    for name, value in arguments.items():
        if name == "sliding_window" and (masked or value is None or value >= keys):
            continue
        if name == "dropout" and not (value and module.training):
            continue
        if name in WITHOUT_EFFECT or name.startswith(("image_", "video_", "pixel_")) or value is None or value is False:
            continue
        told = f" = {value}" if isinstance(value, int | float | str) else ""
        raise BudgetftError(
            f"{type(module).__name__} wants attention with {name}{told}, which budgetft's kernels do not compute",
            hint="leave attention to transformers: --setting attention=stock, or attention=eager where it wants that",
        )


def implementation(name: Attention, *, stock: bool = False) -> str:
    """The name under which transformers finds our attention function; registers it on first use.

    The names avoid the word flash: transformers takes it for the flash-attn package. ``stock``: for a trace of what
    transformers' own function does with masks on a GPU.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

    registered = f"budgetft_{name.replace('flash', 'fused')}{'_stock' if stock else ''}"
    AttentionInterface.register(registered, _attention(name, stock=stock))
    ALL_MASK_ATTENTION_FUNCTIONS.register(registered, sdpa_mask if stock else _additive_mask)
    return registered


def _additive_mask(*args: Any, dtype: torch.dtype = torch.float32, **kwargs: Any) -> torch.Tensor | None:
    """The (B, 1, S, keys) mask of transformers as numbers to add, in the type of the step; None where none is needed."""
    from transformers.masking_utils import sdpa_mask

    mask = sdpa_mask(*args, dtype=dtype, **kwargs)
    return mask if mask is None or mask.dtype != torch.bool else as_numbers(mask, dtype)


def as_numbers(mask_B1SK: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where a boolean mask is true, and the least number elsewhere; rows start where the efficient kernel wants them."""
    *most, keys = mask_B1SK.shape
    room = torch.zeros(*most, -(-keys // ALIGNMENT) * ALIGNMENT, dtype=dtype, device=mask_B1SK.device)
    return room[..., :keys].masked_fill_(~mask_B1SK, torch.finfo(dtype).min)


def _attention(name: Attention, *, stock: bool = False) -> Callable[..., tuple[torch.Tensor, None]]:
    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        is_causal: bool | None = None,
        segments: Segments | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        check_arguments(module, others, masked=attention_mask is not None, keys=key.shape[2])
        repeats = query.shape[1] // key.shape[1]
        key_BHSD, value_BHSD = repeat_heads(key, repeats), repeat_heads(value, repeats)
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if segments is not None:
            windowed = getattr(module, "windowed", False)
            return _by_segment(name, query, key_BHSD, value_BHSD, scaling, segments, windowed=windowed), None
        if attention_mask is not None and attention_mask.dtype not in (torch.bool, query.dtype):
            attention_mask = attention_mask.to(query.dtype)
        # Torch aligns a causal mask to the first key: one query, after all the keys, would see that key alone.
        causal = causal and attention_mask is None and query.shape[2] > 1
        called = "stock" if stock and attention_mask is not None else name
        output_BHSD = _attend(called, query, key_BHSD, value_BHSD, scaling, mask=attention_mask, causal=causal)
        return output_BHSD.transpose(1, 2).contiguous(), None

    return attend


def _attend(
    name: Attention,
    query_BHSD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    scaling: float | None,
    *,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """(B, H, S, D) by the named kernel; in a trace for a GPU, by that GPU's operator."""
    traced = FUSED_KERNEL.get()
    fused = traced if name == "stock" else name
    if fused == "flash" and (mask is not None or query_BHSD.shape[3] > FLASH_HEAD):
        fused = name = "efficient"  # the flash kernel takes neither
    if traced is not None and fused == "efficient":
        return _efficient_of_gpu(query_BHSD, key_BHSD, value_BHSD, scaling, mask, causal=causal)
    if traced is not None and fused == "flash":
        operator = torch.ops.aten._scaled_dot_product_flash_attention
        return operator(query_BHSD, key_BHSD, value_BHSD, 0.0, causal, False, scale=scaling)[0]
    with kernel(name, query_BHSD.device.type):
        return scaled_dot_product_attention(query_BHSD, key_BHSD, value_BHSD, attn_mask=mask, scale=scaling, is_causal=causal)


def _efficient_of_gpu(
    query_BHSD: torch.Tensor,
    key_BHSD: torch.Tensor,
    value_BHSD: torch.Tensor,
    scaling: float | None,
    mask: torch.Tensor | None,
    *,
    causal: bool,
) -> torch.Tensor:
    """The GPU's operator, in a trace, with what torch makes of a mask before it."""
    if mask is not None:
        if mask.dtype == torch.bool:  # a layer's own copy, as torch makes it
            mask = torch.zeros_like(mask, dtype=query_BHSD.dtype).masked_fill_(~mask, float("-inf"))
        if any(stride % ALIGNMENT for stride in mask.stride()[:-1]):
            room = ALIGNMENT - mask.shape[-1] % ALIGNMENT
            mask = pad(mask, (0, room))[..., : mask.shape[-1]]
        mask = mask.expand(*query_BHSD.shape[:3], key_BHSD.shape[2])
    operator = torch.ops.aten._scaled_dot_product_efficient_attention
    return operator(query_BHSD, key_BHSD, value_BHSD, mask, torch.is_grad_enabled(), 0.0, causal, scale=scaling)[0]


def repeat_heads(tensor_BGSD: torch.Tensor, repeats: int) -> torch.Tensor:
    """(B, G, S, D) to (B, G * repeats, S, D), each head ``repeats`` times in a row."""
    if repeats == 1:
        return tensor_BGSD
    batch, groups, length, size = tensor_BGSD.shape
    return tensor_BGSD[:, :, None].expand(batch, groups, repeats, length, size).reshape(batch, -1, length, size)


def _by_segment(
    name: Attention,
    query_1HSD: torch.Tensor,
    key_1HSD: torch.Tensor,
    value_1HSD: torch.Tensor,
    scaling: float | None,
    segments: Segments,
    *,
    windowed: bool,
) -> torch.Tensor:
    """Attention inside each segment only; returns (1, S, H, D) with S = I * N."""
    heads, size = query_1HSD.shape[1], query_1HSD.shape[3]
    images, patches = segments.images, segments.patches
    runs = segments.windows if windowed else ((0, 1, patches),)
    parts = []
    for start, count, length in runs:
        q, k, v = (
            tensor.view(heads, images, patches, size)[:, :, start : start + count * length]
            .reshape(heads, images * count, length, size)
            .transpose(0, 1)
            for tensor in (query_1HSD, key_1HSD, value_1HSD)
        )
        output = _attend(name, q, k, v, scaling)
        parts.append(output.transpose(1, 2).reshape(images, count * length, heads, size))
    whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return whole.reshape(1, images * patches, heads, size)
