"""A law: a few traces of a shortened model, composed into any micro-batch and any number of checkpointed layers.

Decoder layers are alike, so the allocations of one inner layer, checkpointed or not, stand for all of them; and every size
is affine in the micro-batch, so two traces give the rest. A setting then costs a scan over a hundred segments. What the
caching allocator adds is replayed at a grid of settings when the law is made, and interpolated.
"""

from bisect import bisect_right
from math import log2
from typing import Literal, NamedTuple

from budgetft.knobs import Allocator
from budgetft.value import Value

Layout = Literal["mixed", "checkpointed", "plain"]
LAW_VERSION = 4
"""Raised when the step or the way it is traced changes: stored laws of before are then traced again."""
LARGEST_MICRO_BATCH = 64
"""The allocator is replayed up to here; a law says nothing of larger ones."""
SHALLOW = 6
"""With fewer layers than this, all or none are checkpointed."""
KIND = 5
"""Layers of each kind in a template: the two first, one that stands for all inner ones, the two last."""


class Affine(Value):
    """``at_zero + slope * micro_batch``."""

    at_zero: float
    slope: float

    def __call__(self, micro_batch: float) -> float:
        return self.at_zero + self.slope * micro_batch

    @classmethod
    def through(cls, first: tuple[int, float], second: tuple[int, float]) -> "Affine":
        (x1, y1), (x2, y2) = first, second
        slope = (y2 - y1) / (x2 - x1)
        return cls(at_zero=y1 - slope * x1, slope=slope)


class LawSegment(Value):
    """One segment of the step as functions of the micro-batch; see :class:`budgetft.predict.trace.Segment`."""

    phase: str
    layer: int
    net: Affine
    peak: Affine
    flops: Affine
    moved: Affine
    product_bytes: Affine
    attention_flops: Affine
    kernels: Affine
    python_kernels: Affine
    host: Affine
    freed_of_layer: dict[str, Affine]


class Template(Value):
    """The segments of a step of a shortened model in one layout: before the layers, forward, between, backward."""

    layers: int
    head: tuple[LawSegment, ...]
    forward: tuple[tuple[LawSegment, ...], ...]
    """By layer of the template; a layer's segments end where the next layer's begin."""
    middle: tuple[LawSegment, ...]
    backward: tuple[tuple[LawSegment, ...], ...]


class Work(Value):
    """What one segment does, for the law of time."""

    phase: str
    flops: float
    moved_bytes: float
    kernels: float
    product_bytes: float = 0.0
    attention_flops: float = 0.0
    python_kernels: float = 0.0
    host_bytes: float = 0.0


class Moment(NamedTuple):
    """One segment of a step: live tensor bytes, static ones included, before it, at its highest, and after it."""

    phase: str
    layer: int
    """Of the template; -1 between layers."""
    before_bytes: float
    peak_bytes: float
    after_bytes: float


class Overhead(Value):
    """What the allocator adds to the live bytes at their peak, replayed at a grid of settings: rows by checkpointed layers."""

    micro_batches: tuple[int, ...]
    checkpointed: tuple[int, ...]
    allocated: tuple[tuple[int, ...], ...]
    """Blocks larger than their tensor."""
    reserved: tuple[tuple[int, ...], ...]
    """The above, and what is kept and not in use."""

    def at(self, micro_batch: int, checkpointed_layers: int) -> tuple[int, int]:
        """(allocated, reserved) bytes above the live ones; the grid's edge beyond it."""
        x = [log2(size) for size in self.micro_batches]
        column, across = _place(x, log2(micro_batch))
        row, along = _place([float(count) for count in self.checkpointed], float(checkpointed_layers))

        def value(table: tuple[tuple[int, ...], ...]) -> int:
            def of(line: int) -> float:
                cells = table[line]
                return cells[column] * (1 - across) + cells[min(column + 1, len(cells) - 1)] * across

            return round(of(row) * (1 - along) + of(min(row + 1, len(table) - 1)) * along)

        return value(self.allocated), value(self.reserved)


class Law(Value):
    """Peak bytes and work of every (micro-batch, checkpointed layers) of one combination of the other knobs."""

    layers: int
    static: dict[str, int]
    """weights, adapter, gradients, optimizer: bytes that do not depend on the micro-batch."""
    inputs: Affine
    templates: dict[str, Template]
    vision_group: float
    """Examples whose images the frozen tower takes at a time: further ones add their features, not another peak."""
    loss_peak_below: tuple[int, Affine] | None
    """Below this micro-batch the chunked loss has a single chunk, and this peak."""
    overhead: dict[Allocator, Overhead]

    def peak_bytes(self, micro_batch: int, checkpointed_layers: int, *, accumulating: bool) -> tuple[int, dict[str, int]]:
        """Most live tensor bytes, and what they are: static categories, and the phase's own."""
        terms = self._static_terms(micro_batch, accumulating)
        static = float(sum(terms.values()))
        highest = max(self.timeline(micro_batch, checkpointed_layers, accumulating=accumulating), key=lambda m: m.peak_bytes)
        peak, phase = (highest.peak_bytes, highest.phase) if highest.peak_bytes > static else (static, "forward")
        terms[f"{phase} (activations and temporaries)"] = round(peak) - sum(terms.values())
        return round(peak), terms

    def timeline(self, micro_batch: int, checkpointed_layers: int, *, accumulating: bool) -> list[Moment]:
        """The live tensor bytes of one micro-batch from segment to segment, in order."""
        live, moments = float(sum(self._static_terms(micro_batch, accumulating).values())), []
        for segment in self.sequence(checkpointed_layers):
            peak, after = live + self._segment_peak(segment, micro_batch), live + segment.net(micro_batch)
            moments.append(Moment(segment.phase, segment.layer, live, peak, after))
            live = after
        return moments

    def _static_terms(self, micro_batch: int, accumulating: bool) -> dict[str, int]:
        terms = {**self.static, "inputs": round(self.inputs(micro_batch))}
        return terms if accumulating else {**terms, "gradients": 0}

    def work(self, micro_batch: float, checkpointed_layers: int) -> list[Work]:
        """What each segment does, in order."""
        return [
            Work(
                phase=s.phase,
                flops=s.flops(micro_batch),
                moved_bytes=s.moved(micro_batch),
                kernels=s.kernels(micro_batch),
                product_bytes=s.product_bytes(micro_batch),
                attention_flops=s.attention_flops(micro_batch),
                python_kernels=s.python_kernels(micro_batch),
                host_bytes=s.host(micro_batch),
            )
            for s in self.sequence(checkpointed_layers)
        ]

    def sequence(self, checkpointed_layers: int) -> list[LawSegment]:
        """The segments of the full model, in order."""
        template = self.templates[layout_of(self.layers, checkpointed_layers)]
        stands_for = template_layers(self.layers, checkpointed_layers)
        sequence = list(template.head)
        for layer in stands_for:
            sequence += template.forward[layer]
        sequence += [_with_all_frees(segment, stands_for, template.layers) for segment in template.middle]
        for layer in reversed(stands_for):
            sequence += template.backward[layer]
        return sequence

    def _segment_peak(self, segment: LawSegment, micro_batch: int) -> float:
        if segment.phase == "loss" and self.loss_peak_below is not None and micro_batch < self.loss_peak_below[0]:
            return self.loss_peak_below[1](micro_batch)
        if segment.phase != "vision" or micro_batch <= self.vision_group:
            return segment.peak(micro_batch)
        earlier = micro_batch - self.vision_group
        return segment.peak(self.vision_group) + segment.net.slope * earlier


def layout_of(layers: int, checkpointed_layers: int) -> Layout:
    """Which template a number of checkpointed layers is composed from."""
    if checkpointed_layers >= layers:
        return "checkpointed"
    return "plain" if checkpointed_layers == 0 else "mixed"


def template_layers(layers: int, checkpointed_layers: int) -> list[int]:
    """For each layer of the full model, the template's layer that stands for it: checkpointed ones come first."""

    def of(count: int) -> list[int]:
        if count >= KIND:
            return [0, 1, *([2] * (count - KIND + 1)), 3, 4]
        return {0: [], 1: [0], 2: [0, 4], 3: [0, 1, 4], 4: [0, 1, 3, 4]}[count]

    plain = of(layers - checkpointed_layers)
    if layout_of(layers, checkpointed_layers) == "mixed":
        return of(checkpointed_layers) + [KIND + layer for layer in plain]
    return of(checkpointed_layers) or plain


def _with_all_frees(segment: LawSegment, stands_for: list[int], layers: int) -> LawSegment:
    """``segment``, which stands once, with what it frees of every layer freed as often as there are layers.

    Only what it frees of each layer of a kind counts: a hidden state that the next layer frees is freed once at the end.
    """
    net = segment.net
    for first in range(0, layers, KIND):
        kind = range(first, first + KIND)
        freed = [segment.freed_of_layer.get(str(layer)) for layer in kind]
        present = [affine for affine in freed if affine is not None]
        if len(present) < len(freed):
            continue
        least = min(present, key=lambda affine: affine(2))
        times = sum(layer in kind for layer in stands_for) - KIND
        net = Affine(at_zero=net.at_zero - least.at_zero * times, slope=net.slope - least.slope * times)
    return segment if net is segment.net else segment.replace(net=net)


def _place(grid: list[float], value: float) -> tuple[int, float]:
    """The grid interval that holds ``value``, and how far into it; clamped at both ends."""
    index = min(max(bisect_right(grid, value) - 1, 0), len(grid) - 1)
    if index == len(grid) - 1:
        return index, 0.0
    return index, min(max((value - grid[index]) / (grid[index + 1] - grid[index]), 0.0), 1.0)
