"""Making a recording: a few traces of the shortened model, and the formulas that all of their sizes follow."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import Any, NamedTuple, get_args

import numpy as np

from budgetft.contract import Contract
from budgetft.errors import BudgetftError
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs, Optimizer
from budgetft.model import Model
from budgetft.predict.allocator import MINIMUM
from budgetft.predict.fit import LAYOUTS
from budgetft.predict.memory_model import Layout, kind_layers
from budgetft.predict.recording import OWN, WORK, Point, Recording, SegmentRecord, loss_name, point_of, window_runs
from budgetft.predict.segments import Trace
from budgetft.predict.short import ALL_AT_ONCE, static_sizes
from budgetft.predict.trace import build_to_trace, trace_step
from budgetft.workload import Shape

EXACT = 1e-7
"""A formula that misses a traced number by more of it is none."""
SPARSE = 3
"""Features of a formula that are looked for one by one, before all are fitted together."""
LANGUAGE = (
    *("1", "examples", "tokens", "visual tokens", "supervised tokens", "rank", "rank * tokens", "tokens * length"),
    *("chunks", "tokens of a chunk", "tokens of the last chunk"),
)
TOWER = (
    *("1", "images", "patches", "images * patches", "images * patches squared", "images * windows squared"),
    *(f"images * patches of run {number}" for number in range(1, 4)),
)


class NoFormula(BudgetftError):
    """A size is no sum of features."""


class Sample(NamedTuple):
    """A point at which the language model is traced. Sizes are multiples of what tensors are rounded to, so they are exact."""

    micro_batch: int
    text_tokens: int
    merged: tuple[int, int]
    """Rows and columns of visual tokens."""
    supervised_tokens: int
    rank: int
    loss_chunk: int


SAMPLES = (
    Sample(1, 256, (16, 16), 128, 16, 256),  # one chunk of the loss
    Sample(2, 512, (16, 16), 64, 32, 256),
    Sample(1, 1024, (32, 16), 128, 64, 128),
    Sample(2, 256, (32, 32), 64, 16, 128),
    Sample(3, 384, (16, 8), 64, 32, 256),
    Sample(2, 256, (16, 16), 192, 16, 256),  # two
    Sample(1, 512, (32, 16), 448, 32, 256),
    Sample(3, 256, (16, 16), 64, 64, 128),
    Sample(1, 512, (32, 32), 192, 16, 128),
    Sample(4, 256, (16, 8), 128, 32, 256),
    Sample(4, 512, (16, 16), 192, 64, 256),  # three
    Sample(1, 1024, (32, 16), 640, 32, 256),
    Sample(2, 256, (32, 32), 192, 64, 128),
    Sample(3, 384, (16, 8), 192, 16, 256),
    Sample(1, 1792, (16, 16), 320, 64, 128),
    Sample(2, 768, (32, 16), 320, 16, 256),
)
TOWER_SAMPLES = {
    0: ((2, 16, 16), (3, 16, 16), (2, 32, 16), (4, 16, 32), (2, 32, 32), (3, 24, 32), (2, 8, 24), (5, 16, 8)),
    1: ((2, 16, 16), (3, 16, 16), (2, 32, 16), (4, 16, 32), (2, 32, 32), (3, 24, 32), (2, 8, 24), (5, 16, 8)),
    2: ((2, 16, 18), (3, 16, 18), (2, 32, 18), (4, 18, 32), (2, 32, 34), (3, 24, 18), (2, 10, 24), (5, 18, 8), (2, 64, 18)),
    3: ((2, 18, 18), (3, 18, 18), (2, 34, 18), (4, 18, 34), (2, 34, 34), (3, 26, 18), (2, 10, 26), (5, 18, 10), (2, 66, 18)),
    4: (
        *((2, 17, 18), (3, 17, 18), (2, 33, 18), (4, 17, 34), (2, 34, 33), (3, 26, 17), (2, 9, 26), (5, 17, 10)),
        *((2, 65, 18), (2, 18, 19), (3, 35, 18), (2, 19, 33)),
    ),
}
"""(images, rows and columns of visual tokens), by the number of runs of equal windows of four by four."""


def record(
    model: Model,
    contract: Contract,
    knobs: Knobs,
    *,
    gpu: Gpu | None,
    on_trace: Callable[[str], None],
    kept: Recording | None = None,
) -> Recording:
    """The recording of everything in ``knobs`` but micro-batch, checkpointed layers, batching, allocator, optimizer and the
    sizes of chunks and groups; of ``contract``, the targets count.

    ``kept``: a recording of the same but for ``offload``. Only what checkpointed layers do depends on that: all else is taken
    over. Raises ``BudgetftError`` when a size follows no formula.
    """
    recorder = _Recorder(model=model, contract=contract, knobs=knobs, gpu=gpu)
    if kept is not None:
        return _with_other_offload(kept, recorder, on_trace)
    layouts: dict[str, tuple[SegmentRecord, ...]] = {}
    for layout in LAYOUTS:
        on_trace(layout)
        layouts[layout] = recorder.language(layout)
    if knobs.vision == "frozen":
        for runs in (1, 2, 3, 4) if window_runs(model, 8, 8) else (0,):
            on_trace(f"tower with {runs} runs of windows")
            recorder.tower(runs)
    if any(len(counts) > 1 for counts in recorder.left.values()):
        raise BudgetftError(f"parts leave different tensors, {recorder.left}: they cannot be recorded")
    static = recorder.static()
    return Recording(
        forms=tuple(recorder.forms), static=static, layouts=layouts, towers=recorder.towers, losses=recorder.losses
    )


def _with_other_offload(kept: Recording, recorder: "_Recorder", on_trace: Callable[[str], None]) -> Recording:
    for formula in kept.forms:
        recorder.keep(formula)
    layouts = dict(kept.layouts)
    for layout in LAYOUTS:
        if layout != "plain":
            on_trace(layout)
            layouts[layout] = recorder.language(layout)
    return kept.replace(forms=tuple(recorder.forms), layouts=layouts)


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """A trace, the features of its point, and its events named as a recording names them."""

    trace: Trace
    point: Point
    events: tuple[tuple[int | tuple[int, int], ...], ...]
    """By segment: bytes of an allocation, or what ends."""
    leaving: tuple[int, ...]
    """How many tensors outlive each segment."""

    @classmethod
    def of(cls, trace: Trace, point: Point) -> "_Taken":
        born: dict[int, tuple[int, int]] = {}
        ends: dict[int, int] = {}
        for number, segment in enumerate(trace.segments):
            count = 0
            for tensor, size in segment.events:
                if size > 0:
                    born[tensor] = number, count
                    count += 1
                elif tensor in born:
                    ends[tensor] = number
                else:
                    raise BudgetftError(f"{segment.label[0]} frees what was there before the step: it cannot be recorded")
        staying: dict[int, tuple[int, int]] = {}
        leaving = [0] * len(trace.segments)
        for tensor, (number, _) in born.items():  # in the order of allocation
            if ends.get(tensor) != number:
                staying[tensor] = number, leaving[number]
                leaving[number] += 1

        def named(tensor: int, size: int) -> int | tuple[int, int]:
            if size > 0:
                return size
            return staying[tensor] if tensor in staying else (OWN, born[tensor][1])

        events = tuple(tuple(named(*event) for event in segment.events) for segment in trace.segments)
        return cls(trace=trace, point=point, events=events, leaving=tuple(leaving))


@dataclass(kw_only=True)
class _Recorder:
    model: Model
    contract: Contract
    knobs: Knobs
    gpu: Gpu | None
    forms: list[dict[str, float]] = field(default_factory=list)
    places: dict[tuple[tuple[str, float], ...], int] = field(default_factory=dict)
    """Of every formula among ``forms``."""
    fitted: dict[tuple, int] = field(default_factory=dict)
    """The same by the numbers that it gives: most tensors are as large as another."""
    towers: dict[str, SegmentRecord] = field(default_factory=dict)
    losses: dict[str, SegmentRecord] = field(default_factory=dict)
    left: dict[str, set[int]] = field(default_factory=lambda: {"vision": set(), "loss": set()})
    """How many tensors outlive the tower, and the loss: as many of every kind of either."""
    inputs: int = 0
    built: dict[tuple[int, int, int], Any] = field(default_factory=dict)

    def language(self, layout: Layout) -> tuple[SegmentRecord, ...]:
        """The segments of ``layout``; the loss is kept by the number of its chunks, of the tower only its place."""
        kind = kind_layers(self.model.deepstack_levels)
        layers, checkpointed = 2 * kind if layout == "mixed" else kind, 0 if layout == "plain" else kind
        taken = [self._sample(sample, layers, checkpointed) for sample in SAMPLES]
        self.inputs = self.form([each.trace.static_bytes["inputs"] for each in taken], taken, LANGUAGE)
        records = []
        for number, segment in enumerate(taken[0].trace.segments):
            if segment.label[0] in ("vision", "loss"):
                self.left[segment.label[0]] |= {each.leaving[number] for each in taken}
            if segment.label[0] == "vision":
                records.append(SegmentRecord(phase="vision", layer=-1, events=(), work=()))
                continue
            work = self._work(number, taken, LANGUAGE)
            if segment.label[0] == "loss":
                for chunks in sorted({each.point.chunks for each in taken}):
                    alike = [each for each in taken if each.point.chunks == chunks]
                    self.losses[loss_name(layout, chunks)] = self._segment(number, alike, work, LANGUAGE)
                records.append(SegmentRecord(phase="loss", layer=-1, events=(), work=()))
            else:
                records.append(self._segment(number, taken, work, LANGUAGE))
        return tuple(records)

    def tower(self, runs: int) -> None:
        """Record the frozen tower of images with so many runs of equal windows."""
        taken = [self._image_sample(*sample) for sample in TOWER_SAMPLES[runs]]
        number = next(i for i, segment in enumerate(taken[0].trace.segments) if segment.label[0] == "vision")
        self.left["vision"] |= {each.leaving[number] for each in taken}
        self.towers[str(runs)] = self._segment(number, taken, self._work(number, taken, TOWER), TOWER)

    def static(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """What is there throughout: the size of every tensor follows from the rank."""
        contracts = [self.contract.replace(rank=rank) for rank in (16, 32, 64)]
        rows = np.array([[1.0, contract.rank] for contract in contracts])
        built = [(contract, build_to_trace(self.model, contract, self.knobs)) for contract in contracts]

        def runs(knobs: Knobs, category: str) -> tuple[tuple[int, int], ...]:
            found = (static_sizes(self.model, contract, knobs, built=each)[category] for contract, each in built)
            forms = [self.keep(_formula(each, rows, ("1", "rank"))) for each in zip(*found, strict=True)]
            return tuple((form, len(list(same))) for form, same in groupby(forms))

        states: dict[str, tuple[tuple[int, int], ...]] = {}
        for name in get_args(Optimizer):
            # Small tensors are kept in fp32 whatever the optimizer: with few parameters states do not follow the rank.
            with suppress(NoFormula):
                states[name] = runs(self.knobs.replace(optimizer=name), "optimizer")
        return {
            "weights": runs(self.knobs, "weights"),
            "adapter": runs(self.knobs, "adapter"),
            "inputs": ((self.inputs, 1),),
            **states,
        }

    def form(self, numbers: Sequence[float], taken: Sequence[_Taken], names: Sequence[str]) -> int:
        """The place of the formula in features ``names`` that gives ``numbers`` at the points of ``taken``."""
        key = (tuple(numbers), tuple(each.point for each in taken), names)
        if key not in self.fitted:
            rows = np.array([[each.point.features()[name] for name in names] for each in taken], dtype=float)
            self.fitted[key] = self.keep(_formula(numbers, rows, names))
        return self.fitted[key]

    def keep(self, formula: dict[str, float]) -> int:
        """Its place among all, where it is put unless it is there."""
        key = tuple(formula.items())
        if key not in self.places:
            self.places[key] = len(self.forms)
            self.forms.append(formula)
        return self.places[key]

    def _segment(self, number: int, taken: Sequence[_Taken], work: tuple[int, ...], names: Sequence[str]) -> SegmentRecord:
        phase, layer = taken[0].trace.segments[number].label
        events = [each.events[number] for each in taken]
        if len({tuple(event if isinstance(event, tuple) else 0 for event in each) for each in events}) > 1:
            raise BudgetftError(f"{phase} of layer {layer} divides differently from example to example: it cannot be recorded")
        merged = (
            self.form(sizes, taken, names) if isinstance(sizes[0], int) else sizes[0] for sizes in zip(*events, strict=True)
        )
        return SegmentRecord(phase=phase, layer=layer, events=tuple(merged), work=work)

    def _work(self, number: int, taken: Sequence[_Taken], names: Sequence[str]) -> tuple[int, ...]:
        segments = [each.trace.segments[number] for each in taken]
        return tuple(self.form([getattr(segment, name) for segment in segments], taken, names) for name in WORK)

    def _sample(self, sample: Sample, layers: int, checkpointed: int) -> _Taken:
        shape = self._shape(1, sample.merged, sample.text_tokens, sample.supervised_tokens)
        knobs = self.knobs.replace(checkpointed_layers=checkpointed, loss_chunk=sample.loss_chunk)
        return self._traced([shape] * sample.micro_batch, knobs, layers, sample.rank, model=self._with_short_tower())

    def _image_sample(self, images: int, rows: int, columns: int) -> _Taken:
        shape = self._shape(images, (rows, columns), 128, 64)
        return self._traced([shape], self.knobs.replace(checkpointed_layers=1), 1, 16)

    def _with_short_tower(self) -> Model:
        """The model with as few blocks in its tower as give what a whole tower leaves: the tower is recorded apart."""
        levels = self.model.deepstack_levels
        short = {"depth": levels + 1} | ({"deepstack_visual_indexes": list(range(levels))} if levels else {})
        return self.model.replace(config=self.model.config | {"vision_config": self.model.config["vision_config"] | short})

    def _shape(self, images: int, merged: tuple[int, int], text: int, supervised: int) -> Shape:
        step = self.model.pixel_step
        size = merged[1] * step, merged[0] * step
        return Shape(images=(size,) * images, text_tokens=text, supervised_tokens=supervised)

    def _traced(self, shapes: Sequence[Shape], knobs: Knobs, layers: int, rank: int, *, model: Model | None = None) -> _Taken:
        """``model``: another than the recorder's, whose language model is the same."""
        contract, model = self.contract.replace(rank=rank), model or self.model
        knobs = knobs.replace(grad_accum=2, vision_group=ALL_AT_ONCE)
        key = layers, rank, int(model.config["vision_config"]["depth"])
        if key not in self.built:
            self.built[key] = build_to_trace(model, contract, knobs, layers)
        trace = trace_step(model, contract, knobs, shapes, gpu=self.gpu, layers=layers, built=self.built[key])
        place = point_of(self.model, shapes[0], micro_batch=len(shapes), rank=rank, loss_chunk=knobs.loss_chunk)
        return _Taken.of(trace, place)


def _formula(numbers: Sequence[float], rows: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """The fewest features whose sum gives ``numbers``, with their coefficients; exactly, or a ``BudgetftError``."""
    values = np.array(numbers, dtype=float)
    if not values.any():
        return {}
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0] = 1.0
    columns = range(len(names))
    choices = (chosen for size in range(1, SPARSE + 1) for chosen in combinations(columns, size))
    for chosen in (*choices, tuple(columns)):
        part = rows[:, chosen] / scale[list(chosen)]
        found = np.linalg.lstsq(part, values, rcond=None)[0]
        if np.abs(part @ found - values).max() <= EXACT * np.abs(values).max():
            exact = {names[column]: float(each / scale[column]) for column, each in zip(chosen, found, strict=True)}
            return {name: each for name, each in exact.items() if abs(each) * scale[names.index(name)] > EXACT * values.max()}
    for column, name in enumerate(names):  # allocations that were rounded up
        if (each := _coefficient(values, rows[:, column])) is not None:
            return {name: each}
    raise NoFormula(f"no formula in {', '.join(names)} gives {list(numbers)}")


def _coefficient(values: np.ndarray, feature: np.ndarray) -> float | None:
    """Quarters of a byte for one of ``feature`` that give the allocations ``values`` once these are rounded up, if any do."""
    if (feature <= 0).any() or (values % MINIMUM).any():
        return None
    least, most = ((values - MINIMUM) / feature).max(), (values / feature).min()
    quarters = math.floor(4 * most)
    return quarters / 4 if quarters / 4 > least and quarters > 0 else None
