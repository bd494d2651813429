"""Live tensor bytes, counted operation by operation: the meter of the CPU, and of fake tensors.

CUDA's caching allocator hands out multiples of 512 bytes, so sizes are rounded up to that and the same number comes out of
a real step on the CPU, of a traced step without any memory, and of ``torch.cuda.max_memory_allocated`` on a GPU.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GRANULE = 512
DEVICE = torch.ops.prim.device.default
TO_HOST = "budgetft::to_host"
"""The operation whose result lies outside the device: its bytes are the host's."""


def granules(size: int) -> int:
    """``size`` bytes as the CUDA allocator rounds them."""
    return (size + GRANULE - 1) // GRANULE * GRANULE


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations create, until they are freed.

    ``cap_bytes``: what would go above it is refused with ``torch.OutOfMemoryError`` and not counted, as on a GPU.
    ``on_change`` is called with (storage key, bytes), bytes negative for a free. ``on_operation`` is called with (operation,
    arguments, result).
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would wrap every call in a guard against its compiler, which never sees a counted step

    def __init__(
        self,
        *,
        cap_bytes: int | None = None,
        on_change: Callable[[int, int], None] | None = None,
        on_operation: Callable[[Any, tuple[Any, ...], dict[str, Any], Any], None] | None = None,
    ) -> None:
        super().__init__()
        self.cap_bytes = cap_bytes
        self.live_bytes = 0
        self.peak_bytes = 0
        self.ooms = 0
        self._on_change = on_change
        self._on_operation = on_operation
        self._refs: dict[int, weakref.ref[Any]] = {}

    def count(self, tensors: Iterable[torch.Tensor | None]) -> None:
        """Count tensors that already exist: weights, inputs, optimizer states."""
        for tensor in tensors:
            if tensor is not None:
                self._add(tensor)

    def reset_peak(self) -> None:
        self.peak_bytes = self.live_bytes

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._refs or tensor.device.type == "meta":
            return
        size = granules(storage.nbytes())

        if self.cap_bytes is not None and self.live_bytes + size > self.cap_bytes:
            self.ooms += 1
            raise torch.OutOfMemoryError(
                f"tried to hold {self.live_bytes + size} bytes of tensors; the cap is {self.cap_bytes} bytes"
            )

        def gone(_: Any, key: int = key, size: int = size) -> None:
            self._refs.pop(key, None)
            self.live_bytes -= size
            if self._on_change is not None:
                self._on_change(key, -size)

        self._refs[key] = weakref.ref(storage, gone)
        self.live_bytes += size
        if self._on_change is not None:
            self._on_change(key, size)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is DEVICE:  # asked of a fake tensor: two of three calls, and no operation. It knows without the other modes
            return args[0].device
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out
        if isinstance(out, torch.Tensor):
            if func.name() != TO_HOST:
                self._add(out)
        else:
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor):
                    self._add(leaf)
        if self._on_operation is not None:
            self._on_operation(func, args, kwargs or {}, out)
        return out
