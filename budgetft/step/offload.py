"""Inputs of checkpointed layers on the host: they leave the GPU after forward and come back, one at a time, in backward.

What is kept on the GPU of a checkpointed layer is its input, 2 bytes a token and hidden unit. The copy out runs beside the
layer's own work, on a stream of its own; the copy back is waited for. An input is let go when the next one leaves, and the
work waits for its copy then: left to the allocator (``record_stream``), inputs would pile up as far as the host runs ahead.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from budgetft.meter.live import TO_HOST

FROM_HOST = "budgetft::from_host"


@torch.library.custom_op(TO_HOST, mutates_args=())
def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of ``tensor`` that the device does not hold; pinned when it comes from a GPU."""
    if not tensor.is_cuda:
        return tensor.clone(memory_format=torch.contiguous_format)
    stream = _copies(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
    return host


@to_host.register_fake
def _(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


@torch.library.custom_op(FROM_HOST, mutates_args=())
def from_host(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on ``device`` of what :func:`to_host` made."""
    if device.type != "cuda":
        return host.clone()
    tensor = torch.empty(host.shape, dtype=host.dtype, device=device)
    stream, current = _copies(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)  # whoever had this memory before is done with it; so is the copy out, on the same stream
    with torch.cuda.stream(stream):
        tensor.copy_(host, non_blocking=True)
    current.wait_stream(stream)
    return tensor


@from_host.register_fake
def _(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty(host.shape, dtype=host.dtype, device=device)


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


_leaving: list[torch.Tensor] = []
"""The input whose copy may still run: its memory must not be used again before that has ended."""


def _let_go() -> None:
    for tensor in _leaving:
        if tensor.is_cuda:
            torch.cuda.current_stream(tensor.device).wait_stream(_copies(tensor.device))
    _leaving.clear()


def checkpoint_on_host(run: Callable[..., Any], x: torch.Tensor, *rest: Any) -> Any:
    """``run(x, *rest)`` without keeping what it computes, as ``torch.utils.checkpoint`` does, nor ``x`` on its device."""
    _let_go()
    host, device, first = to_host(x.detach()), x.device, [x.detach()]
    _leaving.append(x.detach())

    def rerun(anchor: torch.Tensor, *others: Any) -> Any:
        if not first:
            _let_go()
        value = first.pop() if first else from_host(host, device)
        return run(_Restored.apply(anchor, value), *others)

    return checkpoint(rerun, _Anchor.apply(x), *rest, use_reentrant=False)


class _Anchor(torch.autograd.Function):
    """A tensor of the same shape over a single element: it stands for its input in the graph, and holds no memory."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(()).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


class _Restored(torch.autograd.Function):
    """``value`` in the place of ``anchor``."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None
