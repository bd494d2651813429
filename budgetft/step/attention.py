"""Attention kernels as transformers calls them, chosen by name instead of by accident.

Two things differ from stock. Grouped KV heads are repeated explicitly: with ``enable_gqa`` torch before 2.14 falls to the
math kernel, N x N scores in memory, on every GPU without flash. And vision windows of equal length go into one call.

Shapes: B batch, H heads, G key/value heads, S sequence, D head size, I images of a group, N patches of one image.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from budgetft.knobs import Attention

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


def implementation(name: Attention) -> str:
    """The name under which transformers finds our attention function; registers it on first use.

    The names avoid the word flash: transformers takes it for the flash-attn package.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

    registered = f"budgetft_{name.replace('flash', 'fused')}"
    AttentionInterface.register(registered, _attention(name))
    ALL_MASK_ATTENTION_FUNCTIONS.register(registered, sdpa_mask)
    return registered


def _attention(name: Attention) -> Callable[..., tuple[torch.Tensor, None]]:
    def attend(
        module: torch.nn.Module,
        query_BHSD: torch.Tensor,
        key_BGSD: torch.Tensor,
        value_BGSD: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        is_causal: bool | None = None,
        segments: Segments | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        repeats = query_BHSD.shape[1] // key_BGSD.shape[1]
        key_BHSD, value_BHSD = repeat_heads(key_BGSD, repeats), repeat_heads(value_BGSD, repeats)
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        if segments is not None:
            windowed = getattr(module, "windowed", False)
            return _by_segment(name, query_BHSD, key_BHSD, value_BHSD, scaling, segments, windowed=windowed), None
        causal = causal and attention_mask is None
        output_BHSD = _attend(name, query_BHSD, key_BHSD, value_BHSD, scaling, mask=attention_mask, causal=causal)
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
    if traced is not None and mask is None and fused == "efficient":
        saving = torch.is_grad_enabled()
        operator = torch.ops.aten._scaled_dot_product_efficient_attention
        return operator(query_BHSD, key_BHSD, value_BHSD, None, saving, 0.0, causal, scale=scaling)[0]
    if traced is not None and mask is None and fused == "flash":
        operator = torch.ops.aten._scaled_dot_product_flash_attention
        return operator(query_BHSD, key_BHSD, value_BHSD, 0.0, causal, False, scale=scaling)[0]
    with kernel(name, query_BHSD.device.type):
        return scaled_dot_product_attention(query_BHSD, key_BHSD, value_BHSD, attn_mask=mask, scale=scaling, is_causal=causal)


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
