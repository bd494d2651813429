"""Fake tensors whose values the host knows: a traced step may read them back, count them and branch on them.

A transformers model reads back what it was given: grids of images, placeholders in the text, masks. Fake tensors have no
values, so the read would end the trace. Here the values of given tensors, and of whatever is made of them alone, are computed
beside the fakes. The operation that the GPU would run is still the one that is traced. Only public parts of torch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

_BY_VALUE = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)


class KnownValues(TorchDispatchMode):
    """Inside ``mode`` and under a meter: values of given tensors, and of what is made of them alone, are kept beside them."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode
        self.values = WeakIdKeyDictionary()

    def fake(self, real: torch.Tensor) -> torch.Tensor:
        """A fake of ``real`` whose values are known."""
        made = self.mode.from_tensor(real)
        self.values[made] = real
        return made

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors_in(args))
        tensors += _tensors_in(tuple(kwargs.values()))
        known = all(map(self._is_known, tensors)) and (tensors or _makes_integers(args, kwargs))
        if known and torch.Tag.nondeterministic_seeded not in func.tags:
            return self._computed(func, args, kwargs)
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
            args = (args[0], self._positions(args[1]), *args[2:])
        out = func(*args, **kwargs)
        if func._schema.is_mutable:  # what was written holds something else now
            for leaf in tree_leaves(out):
                self.values.pop(leaf, None)
        return out

    def _is_known(self, tensor: torch.Tensor) -> bool:
        return tensor in self.values or not isinstance(tensor, FakeTensor)

    def _value(self, tensor: torch.Tensor) -> torch.Tensor:
        found = self.values.get(tensor)
        return tensor if found is None else found

    def _computed(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``func`` gives: numbers as they are, tensors as fakes with their values."""
        with unset_fake_temporarily():
            real_args, real_kwargs = tree_map_only(torch.Tensor, self._value, (args, kwargs))
            real = func(*real_args, **real_kwargs)
        leaves = tree_leaves(real)
        if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            return real
        by_value = any(tag in func.tags for tag in _BY_VALUE) or func.overloadpacket is torch.ops.aten.index
        out = tree_map_only(torch.Tensor, self.mode.from_tensor, real) if by_value else func(*args, **kwargs)
        for made, value in zip(tree_leaves(out), leaves, strict=True):
            if isinstance(made, torch.Tensor):
                self.values[made] = value
        return out

    def _positions(self, indices: Any) -> list[Any]:
        """Known masks as the positions that they select."""
        found: list[Any] = []
        for index in indices:
            if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) and self._is_known(index):
                with unset_fake_temporarily():
                    places = self._value(index).nonzero().unbind(1)
                found += [self.fake(place) for place in places]
            else:
                found.append(index)
        return found


def _tensors_in(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    """Of arguments as operators take them: tensors, and lists of some."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_in(value)


def _makes_integers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call without tensors makes one of whole numbers: of 64 bits by default where its arguments are."""
    dtype = kwargs.get("dtype")
    if dtype is None:
        return bool(args) and all(isinstance(arg, int) for arg in args)
    return not dtype.is_floating_point
