"""Frozen weights in four bits, NF4 with an fp32 scale for every 64 (Dettmers et al., QLoRA, 2023), laid out as in bitsandbytes.

A weight is 16-bit only while its linear runs: made in forward, gone after it, and made again in backward. On a GPU
bitsandbytes does the work; on the CPU a few lines do, which its own tests are held against.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch.nn.functional import linear

from budgetft.errors import UsageError
from budgetft.installed import install_line

BLOCK = 64
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, scaled to [-1, 1]: appendix E of the paper."""


def load_bitsandbytes(wanted_for: str) -> Any:
    """The package. Raises ``UsageError`` with the install line when it is absent."""
    try:
        return import_module("bitsandbytes")
    except ImportError as error:
        raise UsageError(
            f"{wanted_for} needs bitsandbytes, which cannot be imported here: {error}",
            hint=f"{install_line('nf4')}, or plan without --allow-nf4 and --allow-adamw8bit",
        ) from None


def quantise_nf4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(packed, scale): uint8 (n / 2, 1), the first of each two in the high half, and fp32 (n / 64), in ``weight``'s order."""
    count = weight.numel()
    if weight.device.type == "meta":
        return weight.new_empty((count + 1) // 2, 1, dtype=torch.uint8), weight.new_empty(
            -(-count // BLOCK), dtype=torch.float32
        )
    if weight.is_cuda:
        load_bitsandbytes("base_precision 'nf4'")
        return torch.ops.bitsandbytes.quantize_4bit.default(weight, BLOCK, "nf4", torch.uint8)
    blocks = torch.nn.functional.pad(weight.flatten().float(), (0, -count % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1)
    levels = torch.tensor(LEVELS)
    borders = (levels[1:] + levels[:-1]) / 2
    indices = torch.bucketize(blocks / scale.clamp_min(1e-30)[:, None], borders).to(torch.uint8).flatten()
    indices = indices[: count + count % 2]
    return (indices[0::2] << 4 | indices[1::2])[:, None].contiguous(), scale


@torch.library.custom_op("budgetft::dequantise_nf4", mutates_args=())
def dequantise_nf4(packed: torch.Tensor, scale: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The weight of ``shape`` in ``dtype``: one kernel that allocates its result and nothing else."""
    if packed.is_cuda:
        return torch.ops.bitsandbytes.dequantize_4bit.default(packed, scale, BLOCK, "nf4", shape, dtype)
    indices = torch.cat([packed >> 4, packed & 15], dim=1).flatten().long()
    values = torch.nn.functional.pad(torch.tensor(LEVELS)[indices], (0, -len(indices) % BLOCK)).view(-1, BLOCK)
    flat = (values * scale[:, None]).flatten()
    return flat[: torch.Size(shape).numel()].view(*shape).to(dtype)


@dequantise_nf4.register_fake
def _(packed: torch.Tensor, scale: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return packed.new_empty(shape, dtype=dtype)


class Nf4Linear(torch.nn.Module):
    """A frozen linear of ``shape`` (out, in) whose weight is kept in four bits."""

    packed: torch.Tensor
    scale: torch.Tensor

    def __init__(self, original: torch.nn.Linear, device: torch.device) -> None:
        super().__init__()
        weight = original.weight.detach()
        self.out_features, self.in_features = self.shape = tuple(weight.shape)
        self.dtype = weight.dtype
        packed, scale = quantise_nf4(weight if weight.device.type == "meta" else weight.to(device))
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)
        self.bias = original.bias

    def read(self) -> torch.Tensor:
        """The weight (out, in) in its 16-bit type, or in fp32 inside an fp32 block."""
        return dequantise_nf4(self.packed, self.scale, self.shape, self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Nf4Product.apply(x.to(self.dtype), self)


class _Nf4Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Nf4Linear) -> torch.Tensor:
        ctx.layer = layer
        with torch.autocast(x.device.type, enabled=False):
            return linear(x, layer.read(), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] @ ctx.layer.read(), None


def frozen_weight(layer: Any) -> torch.Tensor:
    """The weight (out, in) of a frozen linear, made anew when it is kept in four bits."""
    return layer.read() if isinstance(layer, Nf4Linear) else layer.weight


def quantise_layers(layers: torch.nn.Module, device: torch.device) -> None:
    """Replace every frozen linear in ``layers`` by one in four bits on ``device``, one after the other."""
    for module in list(layers.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and not child.weight.requires_grad:
                setattr(module, name, Nf4Linear(child, device))
