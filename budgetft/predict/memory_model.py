"""A memory model: a few traces of a shortened model, composed into any micro-batch and any number of checkpointed layers.

Decoder layers are alike, so the allocations of one inner layer, checkpointed or not, stand for all of them; and every size
is affine in the micro-batch, so two traces give the rest. Where layers are of several kinds (windows and full attention, linear
attention, convolutions), each is traced for itself, with none, half and all of them checkpointed. A setting then costs a scan
over a hundred segments. What the caching allocator adds is replayed at a grid of settings when the memory model is made, and
interpolated.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log2
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import ConfigDict, Field

from budgetft.knobs import Allocator
from budgetft.value import Value

Layout = Literal["mixed", "checkpointed", "plain"]
MEMORY_MODEL_VERSION = 6
"""Raised when the step or the way it is traced changes: stored memory models of before are then traced again."""
LARGEST_MICRO_BATCH = 64
"""The allocator is replayed up to here; a memory model says nothing of larger ones."""
SHALLOW = 6
"""With fewer layers than this, all or none are checkpointed."""
KIND = 5
"""Layers of each kind in a template of a model without features in its layers: two, an inner one, two."""
LAST = 2
"""The last layers of each kind in a template, each for itself, after one that stands for all inner ones."""


@dataclass(frozen=True, slots=True)
class Affine:
    """``at_zero + slope * micro_batch``. Read and checked as a value is, and made in a third of the time."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    at_zero: float
    slope: float

    def __call__(self, micro_batch: float) -> float:
        return self.at_zero + self.slope * micro_batch

    @classmethod
    def through(cls, first: tuple[int, float], second: tuple[int, float]) -> "Affine":
        (x1, y1), (x2, y2) = first, second
        slope = (y2 - y1) / (x2 - x1)
        return cls(at_zero=y1 - slope * x1, slope=slope)


NO_FLOPS = Affine(at_zero=0.0, slope=0.0)


class StepSegment(Value):
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
    fp32_flops: Affine = Field(default=NO_FLOPS, exclude_if=lambda flops: flops == NO_FLOPS)
    """Of ``flops``, in fp32; not written where there are none, nor in memory models of before they were told apart."""


class Template(Value):
    """The segments of a step of a shortened model in one layout: before the layers, forward, between, backward."""

    layers: int
    head: tuple[StepSegment, ...]
    forward: tuple[tuple[StepSegment, ...], ...]
    """By layer of the template; a layer's segments end where the next layer's begin."""
    middle: tuple[StepSegment, ...]
    backward: tuple[tuple[StepSegment, ...], ...]


class Work(Value):
    """What one segment does, for the memory model of time."""

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

        def cell(row: int, column: int) -> tuple[int, int]:
            return self.allocated[row][column], self.reserved[row][column]

        return between(self.micro_batches, self.checkpointed, cell, micro_batch, checkpointed_layers)


def between(
    micro_batches: Sequence[int],
    checkpointed: Sequence[int],
    cell: Callable[[int, int], tuple[int, int]],
    micro_batch: int,
    checkpointed_layers: int,
) -> tuple[int, int]:
    """Interpolated from the cells of a grid around a setting; ``cell(row, column)`` is asked only for those that count."""
    column, across = _place([log2(size) for size in micro_batches], log2(micro_batch))
    row, along = _place([float(count) for count in checkpointed], float(checkpointed_layers))
    weights = {
        (row + down, column + right): (along if down else 1 - along) * (across if right else 1 - across)
        for down in (0, 1)
        for right in (0, 1)
    }
    found = [(cell(*place), weight) for place, weight in weights.items() if weight > 0]
    first, second = (round(sum(pair[which] * weight for pair, weight in found)) for which in (0, 1))
    return first, second


class MemoryModel(Value):
    """Peak bytes and work of every (micro-batch, checkpointed layers) of one combination of the other knobs."""

    layers: int
    kind: int = KIND
    """Layers of each kind in a template: the first ones, an inner one, the last ones."""
    layer_kinds: tuple[int, ...] = Field(default=(), exclude_if=lambda kinds: not kinds)
    """Of every layer, as numbers, where there are several; a template then has all layers. Not written where there is one."""
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
        bounds = self._bounds(micro_batch, checkpointed_layers)
        live = np.cumsum(np.concatenate([[static], bounds[0]]))[:-1]
        highest = int(np.argmax(live + bounds[1]))
        peak, phase = float(live[highest] + bounds[1][highest]), self.sequence(checkpointed_layers)[highest].phase
        peak, phase = (peak, phase) if peak > static else (static, "forward")
        terms[f"{phase} (activations and temporaries)"] = round(peak) - sum(terms.values())
        return round(peak), terms

    def timeline(self, micro_batch: int, checkpointed_layers: int, *, accumulating: bool) -> list[Moment]:
        """The live tensor bytes of one micro-batch from segment to segment, in order."""
        live, moments = float(sum(self._static_terms(micro_batch, accumulating).values())), []
        bounds = self._bounds(micro_batch, checkpointed_layers)
        for segment, net, peak in zip(self.sequence(checkpointed_layers), *bounds.tolist(), strict=True):
            moments.append(Moment(segment.phase, segment.layer, live, live + peak, live + net))
            live += net
        return moments

    def _bounds(self, micro_batch: int, checkpointed_layers: int) -> np.ndarray:
        """(2, segments): net and highest bytes of each segment, relative to its start."""
        key = "bounds", checkpointed_layers
        if key not in self.kept:
            rows: dict[int, tuple[float, ...]] = {}
            for each in (sequence := self.sequence(checkpointed_layers)):
                if id(each) not in rows:  # one inner layer stands for many
                    rows[id(each)] = (each.net.at_zero, each.net.slope, each.peak.at_zero, each.peak.slope)
            places = {phase: [i for i, each in enumerate(sequence) if each.phase == phase] for phase in ("loss", "vision")}
            self.kept[key] = np.array([rows[id(each)] for each in sequence]).T, places
        (net, net_slope, peak, peak_slope), places = self.kept[key]
        found = np.array([net + net_slope * micro_batch, peak + peak_slope * micro_batch])
        if self.loss_peak_below is not None and micro_batch < self.loss_peak_below[0]:
            found[1, places["loss"]] = self.loss_peak_below[1](micro_batch)
        if micro_batch > self.vision_group:
            tower, earlier = places["vision"], micro_batch - self.vision_group
            found[1, tower] = peak[tower] + peak_slope[tower] * self.vision_group + net_slope[tower] * earlier
        return found

    @property
    def computes_fp32(self) -> bool:
        """Whether some products are in fp32, which a GPU does at another rate."""
        if "fp32" not in self.kept:
            sequences = (
                self.sequence(self.layers if layout == "checkpointed" else 0) for layout in self.templates if layout != "mixed"
            )
            self.kept["fp32"] = any(each.fp32_flops != NO_FLOPS for sequence in sequences for each in sequence)
        return self.kept["fp32"]

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """What was computed of it; the segments of sequences stay here, so that their ids are theirs alone."""
        return {}

    def _static_terms(self, micro_batch: int, accumulating: bool) -> dict[str, int]:
        terms = {**self.static, "inputs": round(self.inputs(micro_batch))}
        return terms if accumulating else {**terms, "gradients": 0}

    def work(self, micro_batch: float, checkpointed_layers: int) -> list[Work]:
        """What each segment does, in order."""

        def of(segment: StepSegment) -> Work:
            rounds = self.rounds(segment, micro_batch)

            def done(affine: Affine) -> float:
                return affine.at_zero * rounds + affine.slope * micro_batch

            return Work(
                phase=segment.phase,
                flops=done(segment.flops),
                moved_bytes=done(segment.moved),
                kernels=done(segment.kernels),
                product_bytes=done(segment.product_bytes),
                attention_flops=done(segment.attention_flops),
                python_kernels=done(segment.python_kernels),
                host_bytes=done(segment.host),
            )

        return [of(segment) for segment in self.sequence(checkpointed_layers)]

    def rounds(self, segment: StepSegment, micro_batch: float) -> int:
        """How often a segment's fixed part is done: the frozen tower takes a group of images at a time."""
        return max(1, ceil(micro_batch / self.vision_group)) if segment.phase == "vision" else 1

    def sequence(self, checkpointed_layers: int) -> list[StepSegment]:
        """The segments of the full model, in order."""
        key = "sequence", checkpointed_layers
        if key not in self.kept:
            self.kept[key] = self._sequence(checkpointed_layers)
        return self.kept[key]

    def stands_for(self, checkpointed_layers: int) -> list[int]:
        """For each layer of the full model, the template's layer that stands for it."""
        return template_layers(self.layers, checkpointed_layers, self.kind, self.layer_kinds)

    def _sequence(self, checkpointed_layers: int) -> list[StepSegment]:
        template = self.templates[layout_of(self.layers, checkpointed_layers)]
        stands_for = self.stands_for(checkpointed_layers)
        sequence = list(template.head)
        for layer in stands_for:
            sequence += template.forward[layer]
        sequence += [_with_all_frees(segment, stands_for, template.layers, self.kind) for segment in template.middle]
        for layer in reversed(stands_for):
            sequence += template.backward[layer]
        return sequence


def layout_of(layers: int, checkpointed_layers: int) -> Layout:
    """Which template a number of checkpointed layers is composed from."""
    if checkpointed_layers >= layers:
        return "checkpointed"
    return "plain" if checkpointed_layers == 0 else "mixed"


def kind_layers(deepstack_levels: int) -> int:
    """Layers of each kind in a template of a model: those after which features are added, and the next, are not inner ones."""
    return deepstack_levels + 2 + LAST if deepstack_levels else KIND


def template_layers(layers: int, checkpointed_layers: int, kind: int, kinds: Sequence[int] = ()) -> list[int]:
    """For each layer of the full model, the template's layer that stands for it: checkpointed ones come first.

    ``kind``: layers of each kind in the template. ``kinds``: of every layer, where a template has them all.
    """
    if kinds:
        return _among_all(checkpointed_layers, kinds)
    inner = kind - LAST - 1

    def of(count: int) -> list[int]:
        last = min(LAST, count // 2)
        first = min(inner, count - last)
        return [*range(first), *([inner] * (count - first - last)), *range(kind - last, kind)]

    plain = of(layers - checkpointed_layers)
    if layout_of(layers, checkpointed_layers) == "mixed":
        return of(checkpointed_layers) + [kind + layer for layer in plain]
    return of(checkpointed_layers) or plain


def _among_all(checkpointed_layers: int, kinds: Sequence[int]) -> list[int]:
    """Each layer for itself; in the mixed template, half of whose layers are checkpointed, one of its kind on the other side.

    Of those the nearest counts, after a layer of the same kind as the one before it where there is such a one.
    """
    layers, half = len(kinds), len(kinds) // 2
    if layout_of(layers, checkpointed_layers) != "mixed":
        return list(range(layers))

    def stand_in(layer: int) -> int:
        side = range(half) if layer < checkpointed_layers else range(half, layers)
        if layer in side:
            return layer

        def unlike(other: int) -> tuple[bool, bool, int]:
            before = kinds[other - 1] if other else None
            return kinds[other] != kinds[layer], before != (kinds[layer - 1] if layer else None), abs(other - layer)

        return min(side, key=unlike)

    return [stand_in(layer) for layer in range(layers)]


def _with_all_frees(segment: StepSegment, stands_for: list[int], layers: int, size: int) -> StepSegment:
    """``segment``, which stands once, with what it frees of every layer freed as often as there are layers.

    Only what it frees of each layer of a kind counts: a hidden state that the next layer frees is freed once at the end.
    """
    net = segment.net
    for first in range(0, layers, size):
        kind = range(first, first + size)
        freed = [segment.freed_of_layer.get(str(layer)) for layer in kind]
        present = [affine for affine in freed if affine is not None]
        if len(present) < len(freed):
            continue
        least = min(present, key=lambda affine: affine(2))
        times = sum(layer in kind for layer in stands_for) - size
        net = Affine(at_zero=net.at_zero - least.at_zero * times, slope=net.slope - least.slope * times)
    return segment if net is segment.net else segment.replace(net=net)


def _place(grid: list[float], value: float) -> tuple[int, float]:
    """The grid interval that holds ``value``, and how far into it; clamped at both ends."""
    index = min(max(bisect_right(grid, value) - 1, 0), len(grid) - 1)
    if index == len(grid) - 1:
        return index, 0.0
    return index, min(max((value - grid[index]) / (grid[index + 1] - grid[index]), 0.0), 1.0)
