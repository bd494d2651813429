"""Making a memory model: traces of the shortened model in each layout at two micro-batches, composed, and the allocator
replayed.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from budgetft.contract import Contract
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.model import Model
from budgetft.predict.compose import event_template
from budgetft.predict.memory_model import NO_FLOPS, Affine, Layout, MemoryModel, StepSegment, Template, kind_layers
from budgetft.predict.replay import Replays
from budgetft.predict.segments import Segment, Trace
from budgetft.workload import Shape

LAYOUTS: tuple[Layout, ...] = ("checkpointed", "mixed", "plain")
USUAL_SECONDS = 5.0
"""Of a layout on a processor of today, said before the first has been timed."""


class Traces(Protocol):
    """Where the traces of a memory model come from: the shortened model on fake tensors, or a recording of it."""

    def trace(self, micro_batch: int, layout: Layout) -> Trace:
        """One micro-batch of the shortened model, with the images of all examples in one group."""
        ...


def fit_memory_model(
    model: Model,
    contract: Contract,
    knobs: Knobs,
    shape: Shape,
    *,
    gpu: Gpu | None,
    layouts: Sequence[Layout] = LAYOUTS,
    on_trace: Callable[[str], None] = lambda text: None,
) -> MemoryModel:
    """The memory model of ``knobs`` but for micro-batch and checkpointed layers, when every example has ``shape``: traced
    here.
    """
    from budgetft.predict.short import Short, static_sizes  # loads torch

    kind = f"{knobs.loss}/{knobs.vision}/{knobs.attention}"
    parts, start = len(layouts) + 1, time.monotonic()

    def tell(done: int) -> None:
        what = f"tracing {kind}, layout {done + 1} of {len(layouts)}" if done < len(layouts) else f"replaying memory of {kind}"
        left = (time.monotonic() - start) / done * (parts - done) if done else parts * USUAL_SECONDS
        on_trace(f"{what}: about {left:.0f} s left")

    short = Short(model=model, contract=contract, knobs=knobs, shape=shape, gpu=gpu)
    static = static_sizes(model, contract, knobs)
    replays = compose_memory_model(
        short, model, knobs, shape, static=static, layouts=layouts, kinds=short.kinds, on_layout=tell
    )
    if knobs.fp32_blocks:  # what the allocator adds is taken from the memory model without them
        return replays.memory_model
    tell(len(layouts))
    return replays.memory_model.replace(overhead=replays.table())


def compose_memory_model(
    traces: Traces,
    model: Model,
    knobs: Knobs,
    shape: Shape,
    *,
    static: Mapping[str, Sequence[int]],
    layouts: Sequence[Layout],
    kinds: tuple[int, ...] = (),
    on_layout: Callable[[int], None] = lambda done: None,
) -> Replays:
    """The memory model that ``traces`` make, without what the allocator adds, and the replays that tell it.

    ``static``: bytes of what is there throughout, by category, tensor by tensor. ``kinds``: of every layer, where there are
    several.
    """
    fills = knobs.loss_chunk / shape.supervised_tokens if knobs.loss == "chunked" else 0.0
    first = max(1, math.ceil(fills))
    least = max(first, 2) if knobs.vision == "frozen" else first  # a window that is alone in its run takes another path
    sizes = (least, 2 * least)
    pairs: dict[str, tuple[Trace, Trace]] = {}
    for done, layout in enumerate(layouts):
        on_layout(done)
        pairs[layout] = traces.trace(sizes[0], layout), traces.trace(sizes[1], layout)
    any_small, any_large = next(iter(pairs.values()))
    memory_model = MemoryModel(
        layers=model.layers,
        kind=len(kinds) or kind_layers(model.deepstack_levels),
        layer_kinds=kinds,
        static={name: sum(each) for name, each in static.items()},
        inputs=Affine.through((sizes[0], any_small.static_bytes["inputs"]), (sizes[1], any_large.static_bytes["inputs"])),
        templates={name: _template(pair, sizes) for name, pair in pairs.items()},
        vision_group=_examples_together(model, knobs, shape),
        loss_peak_below=_single_chunk(traces, first),
        overhead={},
    )
    made = {name: partial(event_template, *pair, sizes, full_at=fills) for name, pair in pairs.items()}
    return Replays(memory_model=memory_model, templates=made, static=[size for each in static.values() for size in each])


def _examples_together(model: Model, knobs: Knobs, shape: Shape) -> float:
    """Of how many examples the frozen tower takes the images at a time; only the Qwen-VL families have groups."""
    if knobs.vision != "frozen" or not model.packed:
        return 1e9
    patches = max((w // model.patch_size) * (h // model.patch_size) for w, h in shape.images) if shape.images else 1
    return max(1, knobs.vision_group // patches) / max(1, len(shape.images))


def with_optimizer(memory_model: MemoryModel, model: Model, contract: Contract, knobs: Knobs) -> MemoryModel:
    """``memory_model``, of AdamW in fp32, for the optimizer of ``knobs``: another term, the same step."""
    from budgetft.predict.short import static_sizes

    return memory_model.replace(static={name: sum(each) for name, each in static_sizes(model, contract, knobs).items()})


def _single_chunk(traces: Traces, first: int) -> tuple[int, Affine] | None:
    """The peak of the loss at micro-batches whose tokens are a single chunk, if there are any."""
    if first == 1:
        return None

    def peak(size: int) -> tuple[int, float]:
        trace = traces.trace(size, "checkpointed")
        return size, float(max(segment.peak_bytes for segment in trace.segments if segment.label[0] == "loss"))

    one = peak(1)
    return first, Affine.through(one, peak(first - 1) if first > 2 else (2, one[1]))


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


def _segment(a: Segment, b: Segment, sizes: tuple[int, int]) -> StepSegment:
    def affine(one: float, two: float) -> Affine:
        return NO_FLOPS if one == two == 0 else Affine.through((sizes[0], one), (sizes[1], two))

    return StepSegment(
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
        fp32_flops=affine(a.fp32_flops, b.fp32_flops),
        freed_of_layer={
            str(layer): affine(a.freed_of_layer.get(layer, 0), b.freed_of_layer.get(layer, 0))
            for layer in sorted(a.freed_of_layer.keys() | b.freed_of_layer.keys())
        },
    )
