"""Making a law: trace the shortened model in each layout at two micro-batches, compose, and replay the allocator."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from budgetft.contract import Contract
from budgetft.gpu import Gpu
from budgetft.knobs import Allocator, Knobs
from budgetft.meter.live import granules
from budgetft.model import Model
from budgetft.predict.allocator import CachingAllocator
from budgetft.predict.compose import EventTemplate, compose, event_template
from budgetft.predict.law import KIND, LARGEST_MICRO_BATCH, Affine, Law, LawSegment, Layout, Overhead, Template, layout_of
from budgetft.predict.trace import Segment, Trace, build_to_trace, trace_step
from budgetft.step.build import build_model, trainable
from budgetft.step.optimizer import states_like
from budgetft.workload import Shape

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, LARGEST_MICRO_BATCH)
THIRDS = 3
LARGEST_BYTES = 100 * 2**30
"""Settings above this are not replayed: no card that the tool knows has more."""
ALLOCATORS: tuple[Allocator, ...] = ("default", "expandable")


def fit_law(
    model: Model,
    contract: Contract,
    knobs: Knobs,
    shape: Shape,
    *,
    gpu: Gpu | None,
    layouts: Sequence[Layout] = ("checkpointed", "mixed", "plain"),
    on_trace: Callable[[str], None] = lambda text: None,
) -> Law:
    """The law of ``knobs`` but for micro-batch and checkpointed layers, when every example has ``shape``."""
    first = max(1, math.ceil(knobs.loss_chunk / shape.supervised_tokens)) if knobs.loss == "chunked" else 1
    sizes = (first, 2 * first)
    traces: dict[str, tuple[Trace, Trace]] = {}
    short = _Short(model=model, contract=contract, knobs=knobs, shape=shape, gpu=gpu)
    for layout in layouts:
        on_trace(f"tracing {knobs.loss}/{knobs.vision}/{knobs.attention}, {layout}")
        small, large = (short.trace(size, layout) for size in sizes)
        traces[layout] = small, large
    static, static_sizes = _static(model, contract, knobs)
    any_small, any_large = next(iter(traces.values()))
    patches = max((w // model.patch_size) * (h // model.patch_size) for w, h in shape.images) if shape.images else 1
    law = Law(
        layers=model.layers,
        static=static,
        inputs=Affine.through((sizes[0], any_small.static_bytes["inputs"]), (sizes[1], any_large.static_bytes["inputs"])),
        templates={name: _template(pair, sizes) for name, pair in traces.items()},
        vision_group=max(1, knobs.vision_group // patches) / max(1, len(shape.images)) if knobs.vision == "frozen" else 1e9,
        loss_peak_below=_single_chunk(short, first),
        overhead={},
    )
    templates = {name: event_template(*pair, sizes) for name, pair in traces.items()}
    on_trace(f"replaying the allocator, {knobs.loss}/{knobs.vision}")
    return law.replace(overhead=_overheads(law, templates, static_sizes))


def with_optimizer(law: Law, model: Model, contract: Contract, knobs: Knobs) -> Law:
    """``law``, of AdamW in fp32, for the optimizer of ``knobs``: another term, the same step."""
    return law.replace(static=_static(model, contract, knobs)[0])


@dataclass(frozen=True, kw_only=True)
class _Short:
    """The shortened model of a law, built once for each number of layers."""

    model: Model
    contract: Contract
    knobs: Knobs
    shape: Shape
    gpu: Gpu | None
    built: dict[int, Any] = field(default_factory=dict)

    def trace(self, micro_batch: int, layout: Layout) -> Trace:
        layers = 2 * KIND if layout == "mixed" else KIND
        knobs = self.knobs.replace(checkpointed_layers=0 if layout == "plain" else KIND, grad_accum=2)
        if layers not in self.built:
            self.built[layers] = build_to_trace(self.model, self.contract, knobs, layers)
        shapes, built = [self.shape] * micro_batch, self.built[layers]
        return trace_step(self.model, self.contract, knobs, shapes, gpu=self.gpu, layers=layers, built=built)


def _single_chunk(short: _Short, first: int) -> tuple[int, Affine] | None:
    """The peak of the loss at micro-batches whose tokens are a single chunk, if there are any."""
    if first == 1:
        return None

    def peak(size: int) -> tuple[int, float]:
        trace = short.trace(size, "checkpointed")
        return size, float(max(segment.peak_bytes for segment in trace.segments if segment.label[0] == "loss"))

    one = peak(1)
    return first, Affine.through(one, peak(first - 1) if first > 2 else (2, one[1]))


def _static(model: Model, contract: Contract, knobs: Knobs) -> tuple[dict[str, int], list[int]]:
    """Bytes by category of the whole model, and the sizes in the order in which a process allocates them."""
    peft_model = build_model(
        model, contract, base_precision=knobs.base_precision, device=torch.device("meta"), vision=knobs.vision
    )
    adapters = trainable(peft_model)
    ours = {id(parameter) for parameter in adapters}
    weights = [t for t in [*peft_model.parameters(), *peft_model.buffers()] if id(t) not in ours]

    def sizes(tensors: Sequence[torch.Tensor]) -> list[int]:
        return [granules(tensor.numel() * tensor.element_size()) for tensor in tensors]

    adapter = sizes(adapters)
    by_category = {"weights": sizes(weights), "adapter": adapter, "gradients": adapter}
    by_category["optimizer"] = sizes(states_like(adapters, knobs.optimizer))
    order = [size for category in by_category.values() for size in category]
    return {name: sum(each) for name, each in by_category.items()}, order


def _overheads(law: Law, templates: dict[str, EventTemplate], static: list[int]) -> dict[Allocator, Overhead]:
    counts = sorted({round(law.layers * part / THIRDS) for part in range(THIRDS + 1)})
    counts = [count for count in counts if layout_of(law.layers, count) in law.templates]
    found: dict[Allocator, Overhead] = {}
    for kind in ALLOCATORS:
        rows = [[_overhead(law, templates, static, kind, size, count) for size in MICRO_BATCHES] for count in counts]
        found[kind] = Overhead(
            micro_batches=MICRO_BATCHES,
            checkpointed=tuple(counts),
            allocated=tuple(_filled([cell and cell[0] for cell in row]) for row in rows),
            reserved=tuple(_filled([cell and cell[1] for cell in row]) for row in rows),
        )
    return found


def _overhead(
    law: Law, templates: dict[str, EventTemplate], static: list[int], kind: Allocator, size: int, count: int
) -> tuple[int, int] | None:
    """(allocated, reserved) bytes above the live ones; None above the largest card."""
    peak, _ = law.peak_bytes(size, count, accumulating=True)
    if peak > LARGEST_BYTES:
        return None
    allocator = CachingAllocator(kind)
    allocator.run((-1 - number, each) for number, each in enumerate([*static, round(law.inputs(size))]))
    template = templates[layout_of(law.layers, count)]
    allocator.run(
        compose(template, layers=law.layers, checkpointed_layers=count, micro_batch=size, vision_group=law.vision_group)
    )
    return max(0, allocator.allocated_peak_bytes - peak), max(0, allocator.reserved_peak_bytes - peak)


def _filled(row: list[int | None]) -> tuple[int, ...]:
    """``row`` with what was not replayed set to the last that was."""
    last = 0
    filled = []
    for cell in row:
        last = last if cell is None else cell
        filled.append(last)
    return tuple(filled)


def _template(pair: tuple[Trace, Trace], sizes: tuple[int, int]) -> Template:
    small, large = pair
    labels = [segment.label for segment in small.segments]
    if labels != [segment.label for segment in large.segments]:
        raise ValueError(f"the step divides differently at micro-batch {sizes[0]} and {sizes[1]}")
    segments = [_segment(a, b, sizes) for a, b in zip(small.segments, large.segments, strict=True)]
    starts = [i for i, s in enumerate(segments) if s.phase == "forward" and s.layer >= 0]
    backs = [i for i, s in enumerate(segments) if s.phase == "backward" and s.layer >= 0]
    ends = [*starts[1:], starts[-1] + 1]
    by_layer = {segments[i].layer: (segments[i],) for i in backs}
    return Template(
        layers=len(starts),
        head=tuple(segments[: starts[0]]),
        forward=tuple(tuple(segments[start:end]) for start, end in zip(starts, ends, strict=True)),
        middle=tuple(segments[starts[-1] + 1 : backs[0]]),
        backward=tuple(by_layer[layer] for layer in range(len(starts))),
    )


def _segment(a: Segment, b: Segment, sizes: tuple[int, int]) -> LawSegment:
    def affine(one: float, two: float) -> Affine:
        return Affine.through((sizes[0], one), (sizes[1], two))

    return LawSegment(
        phase=a.label[0],
        layer=a.label[1],
        net=affine(a.net_bytes, b.net_bytes),
        peak=affine(a.peak_bytes, b.peak_bytes),
        flops=affine(a.flops, b.flops),
        moved=affine(a.moved_bytes, b.moved_bytes),
        product_bytes=affine(a.product_bytes, b.product_bytes),
        attention_flops=affine(a.attention_flops, b.attention_flops),
        kernels=affine(a.kernels, b.kernels),
        python_kernels=affine(a.python_kernels, b.python_kernels),
        host=affine(a.host_bytes, b.host_bytes),
        freed_of_layer={
            str(layer): affine(a.freed_of_layer.get(layer, 0), b.freed_of_layer.get(layer, 0))
            for layer in sorted(a.freed_of_layer.keys() | b.freed_of_layer.keys())
        },
    )
