"""The frozen decoder layers shared out between processes: each keeps its part of every layer, and a pass gathers them in turn.

A pass (forward and backward of a micro-batch, or a forward alone) makes the same gathers in the same order in every
process, whatever happens in it: one that has nothing to compute makes them too, and one that breaks off, out of memory for
instance, makes the rest before its error goes on. So no process ever waits for another that will not come. That, buffers
that are made once (gathering allocates nothing, and what is held follows from sizes alone), and four-bit weights, which are
shared as they are, is why this is not torch's ``fully_shard``. Whose gradients are needed, the adapters, stay whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn

from budgetft.meter.live import GRANULE

ALIGNMENT = GRANULE
"""Bytes: every tensor begins at a multiple, so that a layer has the size that its tensors have by themselves."""
all_gather: Any = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
"""It has another name in newer versions of torch."""
SLOTS = 2
"""Whole layers held at a time: the one that computes, and the one that is being gathered."""


def padded(size: int, unit: int) -> int:
    """``size`` up to a multiple of ``unit``."""
    return -(-size // unit) * unit


def held_bytes(layer_bytes: Sequence[int], world: int) -> int:
    """What one of ``world`` processes holds of layers of so many bytes (as :func:`layer_size` counts them): its part of each,
    and the slots."""
    whole = [padded(size, world * ALIGNMENT) for size in layer_bytes]
    return sum(size // world for size in whole) + SLOTS * max(whole)


def gathers_of_pass(layers: int) -> int:
    """Gathers in forward and backward of one pass among others: where these turn, the slots hold the next layers already."""
    return 2 * max(0, layers - SLOTS)


def layer_size(layer: nn.Module) -> int:
    """Bytes of the frozen tensors of ``layer``, each up to the alignment."""
    return sum(padded(tensor.nbytes, ALIGNMENT) for _, _, tensor in _frozen(layer))


def _frozen(layer: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """(module, name in it, tensor) of what is shared: parameters without a gradient, and buffers."""
    found = []
    for module in layer.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        found += [(module, name, tensor) for name, tensor in own if not tensor.requires_grad]
    return found


def _move(layer: nn.Module, slot: torch.Tensor) -> None:
    """Make the frozen tensors of ``layer`` views of ``slot``, with their values in it."""
    offset = 0
    for module, name, tensor in _frozen(layer):
        place = slot[offset : offset + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        place.copy_(tensor.detach())
        # ``data`` has a version counter of its own: gathering is no change of a weight that autograd has kept.
        if isinstance(tensor, nn.Parameter):
            tensor.data = place.data
        else:
            module._buffers[name] = place.data
        offset += padded(tensor.nbytes, ALIGNMENT)


@dataclass(kw_only=True)
class SharedLayers:
    """Layers in the order of their forward, all of one size. Every process must add the same, with the same weights."""

    rank: int
    world: int
    device: torch.device
    layer_bytes: list[int] = field(default_factory=list)
    """Of each layer as added."""
    passes: int = 0
    """Finished ones."""
    _parts: list[torch.Tensor] = field(default_factory=list)
    _slots: list[torch.Tensor] = field(default_factory=list)
    _inside: list[int | None] = field(default_factory=lambda: [None] * SLOTS)
    """Which layer each slot holds, or is going to."""
    _works: list[Any] = field(default_factory=lambda: [None] * SLOTS)
    """The gathering under way into each slot."""
    _order: Sequence[int] = ()
    _position: int = -1

    @property
    def held_bytes(self) -> int:
        return held_bytes(self.layer_bytes, self.world)

    def tensors(self) -> Iterable[torch.Tensor]:
        """All that is held here: parts and slots."""
        return [*self._parts, *self._slots]

    def every(self, holds: bool) -> bool:
        """Whether it ``holds`` in every process; all must ask."""
        told = torch.tensor(float(holds), device=self.device)
        distributed.all_reduce(told, distributed.ReduceOp.MIN)
        return bool(told)

    def add(self, layer: nn.Module) -> None:
        """Keep this process's part of ``layer``, which may lie on another device, and let go of the rest.

        From here on its frozen tensors are views of a slot, and hold its weights while a pass has it gathered.
        Raises ``torch.OutOfMemoryError``, and ``ValueError`` for a layer that is larger than the first.
        """
        size = layer_size(layer)
        whole = padded(size, self.world * ALIGNMENT)
        if not self._slots:
            self._slots = [torch.zeros(whole, dtype=torch.uint8, device=self.device) for _ in range(SLOTS)]
        if whole > len(self._slots[0]):
            raise ValueError(f"a layer of {size} bytes is larger than the first")
        number = len(self._parts)
        slot = self._slots[number % SLOTS]
        _move(layer, slot)
        torch.cuda.empty_cache()  # of a whole layer that was on the GPU: its part would leave holes there
        part = whole // self.world
        self._parts.append(slot[self.rank * part : (self.rank + 1) * part].clone())
        self.layer_bytes.append(size)
        self._inside[number % SLOTS] = None
        layer.register_forward_pre_hook(lambda module, args: self._need(number))
        layer.register_forward_hook(lambda module, args, output: self._need_before(output, number))

    @contextmanager
    def one_pass(self, *, backward: bool) -> Iterator[None]:
        """A pass: its forward, and ``backward`` its backward, run in this block; gathers that it did not come to are made."""
        count = len(self._parts)
        self._order = [*range(count), *(range(count - 2, -1, -1) if backward else ())]
        self._position = -1
        self._fetch(0)
        try:
            yield
        finally:
            while self._position + 1 < len(self._order):
                self._advance()
            self._order = ()
            self.passes += 1

    @contextmanager
    def even(self, passes: int, *, backward: bool) -> Iterator[None]:
        """This process makes ``passes`` in this block: those that it lacks at the end, or at an error, it makes empty."""
        until = self.passes + passes
        try:
            yield
        finally:
            while self.passes < until:
                with self.one_pass(backward=backward):
                    pass

    def _need(self, number: int) -> None:
        """Have the layer whole before it computes; called again where a checkpointed one is recomputed."""
        if self._position >= 0 and self._order and self._order[self._position] == number:
            return
        if self._position + 1 >= len(self._order) or self._order[self._position + 1] != number:
            raise RuntimeError(f"shared layer {number} is not next in this pass: {list(self._order)} at {self._position}")
        self._advance()

    def _need_before(self, output: Any, number: int) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if first.requires_grad:
            first.register_hook(lambda grad: self._need(number))

    def _advance(self) -> None:
        self._position += 1
        number = self._order[self._position]
        self._fetch(number)
        work, self._works[number % SLOTS] = self._works[number % SLOTS], None
        if work is not None:
            work.wait()
        if self._position + 1 < len(self._order):
            self._fetch(self._order[self._position + 1])

    def _fetch(self, number: int) -> None:
        """Begin to gather the layer unless its slot has it. On a GPU this waits for all that computes by now, and so for the
        layer that had the slot."""
        place = number % SLOTS
        if self._inside[place] == number:
            return
        part = self._parts[number]
        whole = self._slots[place][: len(part) * self.world]
        self._works[place] = all_gather(whole, part, async_op=True)
        self._inside[place] = number
