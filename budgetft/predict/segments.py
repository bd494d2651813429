"""What a trace is made of: segments of one micro-batch's step, with every allocation, free and kernel of each."""

from dataclasses import dataclass, field

from budgetft.predict.allocator import Event

Label = tuple[str, int]
"""(phase, decoder layer); layer -1 before and between layers."""


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

    @property
    def events(self) -> list[Event]:
        """Every allocation and end of a tensor, in order, for a replay through an allocator."""
        return [event for segment in self.segments for event in segment.events]

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
