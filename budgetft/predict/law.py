"""A law: a few traces of a shortened model, composed into any micro-batch and any number of checkpointed layers.

Decoder layers are alike, so the allocations of one inner layer, checkpointed or not, stand for all of them; and every size
is affine in the micro-batch, so two traces give the rest. A setting then costs a scan over a hundred segments.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from pydantic import Field

from budgetft.contract import Contract
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.model import Model
from budgetft.value import Value
from budgetft.workload import Shape

Layout = Literal["mixed", "checkpointed", "plain"]
LAW_VERSION = 1
"""Raised when the step or the way it is traced changes: stored laws of before are then traced again."""
INNER = 3
"""Layers of each kind in a template: a first, one that stands for all inner ones, and a last."""
LOSS_CHUNK = 256
PATCHES_PER_GROUP = 8192


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
    kernels: Affine
    freed_of_layer: dict[str, Affine] = Field(default_factory=dict)


class Template(Value):
    """The segments of a step of a shortened model in one layout."""

    layers: int
    static: dict[str, Affine]
    segments: tuple[LawSegment, ...]


class Work(Value):
    """What one segment does, for the law of time."""

    phase: str
    flops: float
    moved_bytes: float
    kernels: float


class Law(Value):
    """Peak bytes and work of every (micro-batch, checkpointed layers) of one combination of the other knobs."""

    layers: int
    templates: dict[str, Template]
    per_layer: dict[str, float]
    """Static bytes that each further layer adds, by category."""
    vision_group: float
    """Examples whose images the frozen tower takes at a time: further ones add their features, not another peak."""
    loss_peak_below: tuple[int, Affine] | None = None
    """Below this micro-batch the chunked loss has a single chunk, and this peak."""

    def peak_bytes(self, micro_batch: int, checkpointed_layers: int, *, accumulating: bool) -> tuple[int, dict[str, int]]:
        """Most live tensor bytes, and what they are: static categories, and the phase's own."""
        static = self.static_bytes(micro_batch, checkpointed_layers, accumulating=accumulating)
        live = peak = float(sum(static.values()))
        phase = "forward"
        for segment in self.sequence(checkpointed_layers):
            inside = self._segment_peak(segment, micro_batch)
            if live + inside > peak:
                peak, phase = live + inside, segment.phase
            live += segment.net(micro_batch)
        terms = {name: round(size) for name, size in static.items()}
        terms[f"{phase} (activations and temporaries)"] = round(peak) - sum(terms.values())
        return round(peak), terms

    def work(self, micro_batch: int, checkpointed_layers: int) -> list[Work]:
        """What each segment does, in order."""
        return [
            Work(
                phase=s.phase,
                flops=s.flops(micro_batch),
                moved_bytes=s.moved(micro_batch),
                kernels=s.kernels(micro_batch),
            )
            for s in self.sequence(checkpointed_layers)
        ]

    def static_bytes(self, micro_batch: int, checkpointed_layers: int, *, accumulating: bool) -> dict[str, float]:
        """Bytes that are there before the first segment, by category."""
        template = self._template(checkpointed_layers)
        extra = self.layers - template.layers
        sizes = {name: size(micro_batch) + extra * self.per_layer.get(name, 0.0) for name, size in template.static.items()}
        if not accumulating:
            sizes["gradients"] = 0.0
        return sizes

    def sequence(self, checkpointed_layers: int) -> list[LawSegment]:
        """The segments of the full model, in order."""
        template = self._template(checkpointed_layers)
        counts = _repeats(template.layers, checkpointed_layers, self.layers - checkpointed_layers)
        head, forward, middle, backward = _parts(template)
        sequence = list(head)
        for layer in range(template.layers):
            sequence += forward[layer] * counts[layer]
        sequence += [_with_all_frees(segment, counts) for segment in middle]
        for layer in reversed(range(template.layers)):
            sequence += backward[layer] * counts[layer]
        return sequence

    def _segment_peak(self, segment: LawSegment, micro_batch: int) -> float:
        if segment.phase == "loss" and self.loss_peak_below is not None and micro_batch < self.loss_peak_below[0]:
            return self.loss_peak_below[1](micro_batch)
        if segment.phase != "vision" or micro_batch <= self.vision_group:
            return segment.peak(micro_batch)
        earlier = micro_batch - self.vision_group
        return segment.peak(self.vision_group) + segment.net.slope * earlier

    def _template(self, checkpointed_layers: int) -> Template:
        if checkpointed_layers >= self.layers:
            return self.templates["checkpointed"]
        return self.templates["plain" if checkpointed_layers == 0 else "mixed"]


def _with_all_frees(segment: LawSegment, counts: list[int]) -> LawSegment:
    """``segment``, which stands once, with what it frees of every layer freed as often as there are layers.

    Only what it frees of each layer of a kind counts: a hidden state that the next layer frees is freed once at the end.
    """
    net = segment.net
    for first in range(0, len(counts), INNER):
        group = range(first, min(first + INNER, len(counts)))
        freed = [segment.freed_of_layer.get(str(layer)) for layer in group]
        if None in freed:
            continue
        least = min((affine for affine in freed if affine is not None), key=lambda affine: affine(2))
        times = sum(counts[layer] for layer in group) - len(group)
        net = Affine(at_zero=net.at_zero - least.at_zero * times, slope=net.slope - least.slope * times)
    return segment if net is segment.net else segment.replace(net=net)


def _repeats(template_layers: int, checkpointed: int, plain: int) -> list[int]:
    """How often each template layer stands in the full model: first and last once, the inner one for all others."""

    def of(count: int) -> list[int]:
        if count <= 0:
            return []
        return [1, max(0, count - 2), 1] if count >= 2 else [1, 0, 0]

    return of(checkpointed) + of(plain) if template_layers == 2 * INNER else of(checkpointed or plain)


def _parts(
    template: Template,
) -> tuple[Sequence[LawSegment], dict[int, list[LawSegment]], Sequence[LawSegment], dict[int, list[LawSegment]]]:
    segments = template.segments
    starts = [i for i, s in enumerate(segments) if s.phase == "forward" and s.layer >= 0]
    backs = [i for i, s in enumerate(segments) if s.phase == "backward" and s.layer >= 0]
    forward = {segments[i].layer: list(segments[i : i + 2]) for i in starts[:-1]}
    last = starts[-1]
    forward[segments[last].layer] = [segments[last]]
    backward = {segments[i].layer: [segments[i]] for i in backs}
    return segments[: starts[0]], forward, segments[last + 1 : backs[0]], backward


def fit_law(
    model: Model,
    contract: Contract,
    knobs: Knobs,
    shape: Shape,
    *,
    gpu: Gpu,
    layouts: Sequence[Layout] = ("checkpointed", "mixed", "plain"),
    on_trace: Callable[[str], None] = lambda text: None,
) -> Law:
    """Trace the shortened model in each layout at two micro-batches and compose; only torch, no card."""
    from budgetft.predict.trace import Trace, trace_step

    first = max(1, math.ceil(LOSS_CHUNK / shape.supervised_tokens)) if knobs.loss == "chunked" else 1
    sizes = (first, 2 * first)
    traces: dict[str, tuple[Trace, Trace]] = {}
    for layout in layouts:
        layers = 2 * INNER if layout == "mixed" else INNER
        checkpointed = 0 if layout == "plain" else INNER
        short = knobs.replace(checkpointed_layers=checkpointed, grad_accum=2)
        on_trace(f"tracing {knobs.loss}/{knobs.vision}/{knobs.attention}, {layout}")
        traces[layout] = tuple(  # pyright: ignore[reportArgumentType]
            trace_step(model, contract, short, [shape] * size, gpu=gpu, layers=layers) for size in sizes
        )
    one_more = _static_of_layers(model, contract, knobs, shape, gpu, traces)

    def loss_peak(size: int) -> tuple[int, float]:
        short = knobs.replace(checkpointed_layers=INNER, grad_accum=2)
        trace = trace_step(model, contract, short, [shape] * size, gpu=gpu, layers=INNER)
        return size, float(max(segment.peak_bytes for segment in trace.segments if segment.label[0] == "loss"))

    below = None
    if first > 1:
        one = loss_peak(1)
        below = first, Affine.through(one, loss_peak(first - 1) if first > 2 else (2, one[1]))
    patches = max((w // model.patch_size) * (h // model.patch_size) for w, h in shape.images) if shape.images else 1
    return Law(
        layers=model.layers,
        templates={name: _template_of(pair, sizes) for name, pair in traces.items()},
        per_layer=one_more,
        loss_peak_below=below,
        vision_group=max(1, PATCHES_PER_GROUP // patches) / max(1, len(shape.images)) if knobs.vision == "frozen" else 1e9,
    )


def _static_of_layers(model: Model, contract: Contract, knobs: Knobs, shape: Shape, gpu: Gpu, traces: dict) -> dict[str, float]:
    """Static bytes of one more layer: from templates of two depths, or from one more, shortest, trace."""
    from budgetft.predict.trace import trace_step

    (short, _), depth = next(iter(traces.values())), INNER
    if "mixed" in traces and len(traces) > 1:
        short, long, extra = traces[next(n for n in traces if n != "mixed")][0], traces["mixed"][0], INNER
    else:
        depth = 2 * INNER if "mixed" in traces else INNER
        short = trace_step(
            model, contract, knobs.replace(checkpointed_layers=0, grad_accum=2), [shape], gpu=gpu, layers=depth - 1
        )
        long, extra = next(iter(traces.values()))[0], 1
    names = ("weights", "adapter", "gradients", "optimizer")
    return {name: (long.static_bytes[name] - short.static_bytes[name]) / extra for name in names}


def _template_of(pair: tuple, sizes: tuple[int, int]) -> Template:
    small, large = pair
    names = [segment.label for segment in small.segments]
    if names != [segment.label for segment in large.segments]:
        raise ValueError(f"the step divides differently at micro-batch {sizes[0]} and {sizes[1]}")

    def affine(one: float, two: float) -> Affine:
        return Affine.through((sizes[0], one), (sizes[1], two))

    segments = tuple(
        LawSegment(
            phase=a.label[0],
            layer=a.label[1],
            net=affine(a.net_bytes, b.net_bytes),
            peak=affine(a.peak_bytes, b.peak_bytes),
            flops=affine(a.flops, b.flops),
            moved=affine(a.moved_bytes, b.moved_bytes),
            kernels=affine(a.kernels, b.kernels),
            freed_of_layer={
                str(layer): affine(a.freed_of_layer.get(layer, 0), b.freed_of_layer.get(layer, 0))
                for layer in a.freed_of_layer.keys() | b.freed_of_layer.keys()
            },
        )
        for a, b in zip(small.segments, large.segments, strict=True)
    )
    layers = 1 + max(segment.layer for segment in segments)
    static = {name: affine(small.static_bytes[name], large.static_bytes[name]) for name in small.static_bytes}
    return Template(layers=layers, static=static, segments=segments)
