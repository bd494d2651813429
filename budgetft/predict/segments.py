"""What a trace is made of: segments of one micro-batch's step, with every allocation, free and kernel of each."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from budgetft.predict.allocator import Event

Label = tuple[str, int]
"""(phase, decoder layer); layer -1 before and between layers."""
BEFORE = -1
"""Instead of a segment's number: of a tensor that was there before the step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pattern:
    """The events of a step whatever their sizes: traces of one recording at any size share it."""

    labels: tuple[Label, ...]
    """By segment."""
    bounds: np.ndarray
    """Of the segments, among the events: one more than there are segments."""
    begins: np.ndarray
    """By event: whether it is an allocation."""
    origin: np.ndarray
    """By event: the segment that allocated the tensor."""
    ordinal: np.ndarray
    """By event: which of that segment's allocations it was."""
    tensors: np.ndarray
    """By event: the number of the tensor."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What was computed of it."""


@dataclass(kw_only=True)
class Segment:
    """What happens between two boundaries. ``net`` and ``peak`` are bytes relative to the segment's start."""

    label: Label
    events: list[Event] = field(default_factory=list)
    net_bytes: int = 0
    peak_bytes: int = 0
    flops: int = 0
    moved_bytes: int = 0
    """Read and written by operations that are not matrix products: what bounds them."""
    product_bytes: int = 0
    """Read and written by matrix products and attention: thin ones, as an adapter's, wait for these."""
    attention_flops: int = 0
    """Of ``flops``, those of fused attention."""
    fp32_flops: int = 0
    """Of ``flops``, those of products in fp32: a GPU does them at another rate than those in 16 bits."""
    freed_of_layer: dict[int, int] = field(default_factory=dict)
    """Bytes freed here that a decoder layer's forward had allocated: autocast's cast weights, for one, live until it ends."""
    host_bytes: int = 0
    """Fetched back from the host, which is waited for; what goes there goes beside the work."""
    kernels: int = 0
    """Operations that launch at least one kernel: views do not."""
    python_kernels: int = 0
    """Of ``kernels``, those that Python launches, not autograd's engine: forward, and what backward computes again."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One micro-batch's forward and backward in steady state: Adam's states exist, and so do gradients when accumulating."""

    static_bytes: dict[str, int]
    """weights, adapter, gradients, optimizer, inputs: there before the first segment."""
    segments: tuple[Segment, ...]
    static_events: tuple[Event, ...] = ()
    """What was there before, one allocation each, in the order in which a process makes them."""
    recorded: tuple[Pattern, np.ndarray] | None = None
    """Of a trace that is computed from a recording, whose segments have no events one by one: as :meth:`unrolled`."""

    @property
    def events(self) -> list[Event]:
        """Every allocation and end of a tensor, in order, for a replay through an allocator."""
        if self.recorded is not None:
            return list(zip(self.recorded[0].tensors.tolist(), self.recorded[1].tolist(), strict=True))
        return [event for segment in self.segments for event in segment.events]

    def unrolled(self) -> tuple[Pattern, np.ndarray]:
        """The pattern, and the bytes of every event, negative at the end of a tensor."""
        if self.recorded is not None:
            return self.recorded
        places: dict[int, tuple[int, int]] = {}
        found: list[tuple[int, int]] = []
        for number, segment in enumerate(self.segments):
            allocations = 0
            for tensor, size in segment.events:
                if size > 0:
                    places[tensor] = number, allocations
                    allocations += 1
                found.append(places.get(tensor, (BEFORE, 0)))
        events = np.array(self.events, dtype=np.int64).reshape(-1, 2)
        origin, ordinal = np.array(found, dtype=np.int64).reshape(-1, 2).T
        pattern = Pattern(
            labels=tuple(segment.label for segment in self.segments),
            bounds=np.cumsum([0, *(len(segment.events) for segment in self.segments)]),
            begins=events[:, 1] > 0,
            origin=origin,
            ordinal=ordinal,
            tensors=events[:, 0],
        )
        return pattern, events[:, 1]

    @property
    def peak_bytes(self) -> int:
        """Most live bytes at any time."""
        live = peak = sum(self.static_bytes.values())
        for segment in self.segments:
            peak = max(peak, live + segment.peak_bytes)
            live += segment.net_bytes
        return peak

    @property
    def flops(self) -> int:
        return sum(segment.flops for segment in self.segments)
