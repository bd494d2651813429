"""A recording: traces of a shortened model whose every size is a formula in the example's shape, the micro-batch and the rank.

All that a step allocates and computes is linear in a few products of these: tokens, tokens times rank, tokens squared, and
so on (:meth:`Point.features`). A few traces at chosen points determine the coefficients, exactly; any other image size, length
of text and rank is then computed, without torch, and is what a trace of it would have been. What changes the *number* of
operations is recorded apart: chunks of the loss, and runs of equal windows in the tower.
"""

import gzip
import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from budgetft.model import Model
from budgetft.predict.allocator import MINIMUM
from budgetft.predict.memory_model import Layout
from budgetft.predict.segments import Pattern, Segment, Trace
from budgetft.value import Value
from budgetft.workload import Shape

MOST_CHUNKS = 3
"""Further chunks of a loss allocate as the third does."""
WORK = ("flops", "moved_bytes", "product_bytes", "attention_flops", "kernels", "python_kernels", "host_bytes")
"""The fields of a segment that are sums over its operations."""
OWN = -1
"""Instead of a segment's number: the one in which it is said."""


class SegmentRecord(Value):
    """One segment: an event is an allocation, by the number of its form, or the end of one, by (segment, how-manieth).

    Of its own segment, it is the how-manieth allocation; of an earlier one, the how-manieth of those that outlive it.
    """

    phase: str
    layer: int
    events: tuple[int | tuple[int, int], ...]
    work: tuple[int, ...]
    """Forms of :data:`WORK`."""


class Recording(Value):
    """The traces of one combination of knobs, for the three layouts."""

    forms: tuple[dict[str, float], ...]
    """Coefficients by the name of a feature; bytes, operations or kernels."""
    static: dict[str, tuple[tuple[int, int], ...]]
    """By category (``weights``, ``adapter``, ``inputs``, and each optimizer's states), (form, how many in a row): what is
    there throughout, tensor by tensor, in order."""
    layouts: dict[str, tuple[SegmentRecord, ...]]
    towers: dict[str, SegmentRecord]
    """The frozen tower, by the number of runs of equal windows."""
    losses: dict[str, SegmentRecord]
    """By :func:`loss_name`."""

    def at(self, point: "Point") -> "At":
        """The traces for ``point``. Raises ``KeyError`` when its tower is not recorded."""
        features = point.features()
        sizes = [sum(each * features[name] for name, each in form.items()) for form in self.forms]
        return At(recording=self, sizes=np.array(sizes, dtype=float), point=point)

    def unrolled(self, layout: Layout, *, runs: int, chunks: int) -> "Unrolled":
        """The events of ``layout`` with a tower of so many runs of windows and a loss of so many chunks."""
        loss = loss_name(layout, chunks)
        if (layout, runs, loss) not in self._unrolled:
            apart = {"vision": (self.towers, str(runs)), "loss": (self.losses, loss)}
            places = [apart.get(record.phase) for record in self.layouts[layout]]
            own = zip(places, self.layouts[layout], strict=True)
            records = [record if place is None else place[0][place[1]] for place, record in own]
            for record in records:
                if id(record) not in self._parts:
                    self._parts[id(record)] = _Part(record)
            self._unrolled[layout, runs, loss] = Unrolled.of([self._parts[id(record)] for record in records])
        return self._unrolled[layout, runs, loss]

    @cached_property
    def _parts(self) -> dict[int, "_Part"]:
        return {}

    @cached_property
    def _unrolled(self) -> dict[tuple[str, int, str], "Unrolled"]:
        return {}


def loss_name(layout: Layout, chunks: int) -> str:
    """Under which the loss of so many chunks is recorded, as what it frees is numbered in ``layout``."""
    return f"{layout}, {min(chunks, MOST_CHUNKS)}"


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a trace depends on beside the model and the knobs: equal examples, each of images that a tower takes together."""

    micro_batch: int
    text_tokens: int
    supervised_tokens: int
    images: int
    """Of one example."""
    patches: int
    """Of one image."""
    visual_tokens: int
    """Of one example."""
    runs: tuple[tuple[int, int], ...]
    """(windows, patches of one) of every run of equal windows of an image, the longest first; none without windows."""
    rank: int
    loss_chunk: int

    @property
    def chunks(self) -> int:
        """Of the loss."""
        return max(1, math.ceil(self.micro_batch * self.supervised_tokens / self.loss_chunk))

    def features(self) -> dict[str, float]:
        """What sizes are linear in."""
        batch, images = self.micro_batch, self.micro_batch * self.images
        length, supervised = self.text_tokens + self.visual_tokens, batch * self.supervised_tokens
        edges = {f"images * patches of run {number}": images * count * size for number, (count, size) in enumerate(self.runs)}
        return {
            "1": 1.0,
            "examples": batch,
            "tokens": batch * length,
            "visual tokens": batch * self.visual_tokens,
            "supervised tokens": supervised,
            "rank": self.rank,
            "rank * tokens": self.rank * batch * length,
            "tokens * length": batch * length**2,
            "chunks": self.chunks,
            "tokens of a chunk": self.loss_chunk,
            "tokens of the last chunk": supervised - (self.chunks - 1) * self.loss_chunk,
            "images": images,
            "patches": self.patches,
            "images * patches": images * self.patches,
            "images * patches squared": images * self.patches**2,
            "images * windows squared": images * sum(count * size**2 for count, size in self.runs),
            **{f"images * patches of run {number}": 0 for number in range(4)},
            **edges,
        }


@dataclass(frozen=True, kw_only=True)
class At:
    """A recording with its sizes computed."""

    recording: Recording
    sizes: np.ndarray
    """By form."""
    point: Point

    @cached_property
    def bytes(self) -> np.ndarray:
        """By form: what a tensor of that size takes."""
        return (np.ceil((self.sizes - 0.5) / MINIMUM) * MINIMUM).astype(np.int64)

    def static(self, optimizer: str) -> dict[str, list[int]]:
        """Bytes of every tensor that is there throughout, by category, in order."""
        named = {"weights": "weights", "adapter": "adapter", "gradients": "adapter", "optimizer": optimizer}
        return {category: self._tensors(name) for category, name in named.items()}

    def trace(self, layout: Layout) -> Trace:
        """What a trace of the shortened model in ``layout`` gives, without the events of its segments one by one."""
        unrolled = self.recording.unrolled(layout, runs=len(self.point.runs), chunks=self.point.chunks)
        changes = np.where(unrolled.pattern.begins, 1, -1) * self.bytes[unrolled.forms]
        bounds = unrolled.pattern.bounds
        total = np.concatenate([[0], np.cumsum(changes)])
        before, filled = total[bounds[:-1]], bounds[1:] > bounds[:-1]
        highest = before.copy()
        highest[filled] = np.maximum.reduceat(total[1:], bounds[:-1][filled])
        peak, net = np.maximum(0, highest - before).tolist(), (total[bounds[1:]] - before).tolist()
        freed = np.bincount(unrolled.freed_group, weights=-changes[unrolled.freed])
        work = np.rint(self.sizes[unrolled.work]).astype(np.int64).tolist()
        segments = tuple(
            Segment(label=label, net_bytes=left, peak_bytes=most, **dict(zip(WORK, row, strict=True)))
            for label, left, most, row in zip(unrolled.pattern.labels, net, peak, work, strict=True)
        )
        for (number, layer), size in zip(unrolled.freed_groups, freed.tolist(), strict=True):
            segments[number].freed_of_layer[layer] = int(size)
        inputs = {"inputs": sum(self._tensors("inputs"))}
        return Trace(static_bytes=inputs, segments=segments, recorded=(unrolled.pattern, changes))

    def _tensors(self, name: str) -> list[int]:
        return [size for form, count in self.recording.static[name] for size in [int(self.bytes[form])] * count]


@dataclass(frozen=True, kw_only=True)
class Unrolled:
    """The events of a layout with one kind of tower and loss: all but the sizes."""

    pattern: Pattern
    forms: np.ndarray
    """By event: of the tensor that it is about."""
    work: np.ndarray
    """(segments, kinds of work): forms."""
    freed: np.ndarray
    """The events that end what a decoder layer's forward allocated."""
    freed_group: np.ndarray
    """Of each of these, which of ``freed_groups``."""
    freed_groups: tuple[tuple[int, int], ...]
    """(segment, layer)."""

    @classmethod
    def of(cls, parts: Sequence["_Part"]) -> "Unrolled":
        """Of the segments of a step, in order."""
        counts = [len(part.forms) for part in parts]
        firsts = np.cumsum([0, *counts])
        bounds = np.cumsum([0, *(len(part.begins) for part in parts)])
        begins = np.concatenate([part.begins for part in parts])
        origin = np.repeat(np.arange(len(parts)), np.diff(bounds))
        segment, ordinal = origin.copy(), np.zeros(len(begins), dtype=np.int64)
        for number, part in enumerate(parts):
            ordinal[bounds[number] + np.flatnonzero(part.begins)] = np.arange(counts[number])
            for place, which, ordinals in part.ends:
                events = bounds[number] + which
                origin[events] = number if place == OWN else place
                ordinal[events] = ordinals if place == OWN else parts[place].staying[ordinals]
        tensors = firsts[origin] + ordinal
        layers = np.array([part.label[1] if part.label[0] == "forward" else -1 for part in parts])[origin]
        freed = np.flatnonzero(~begins & (layers >= 0))
        groups, group = np.unique(np.stack([segment[freed], layers[freed]]), axis=1, return_inverse=True)
        return cls(
            pattern=Pattern(
                labels=tuple(part.label for part in parts),
                bounds=bounds,
                begins=begins,
                origin=origin,
                ordinal=ordinal,
                tensors=tensors,
            ),
            forms=np.concatenate([part.forms for part in parts])[tensors],
            work=np.array([part.work for part in parts]),
            freed=freed,
            freed_group=group.ravel(),
            freed_groups=tuple((number, layer) for number, layer in groups.T.tolist()),
        )


class _Part:
    """A segment's record in arrays."""

    def __init__(self, record: SegmentRecord) -> None:
        self.label, self.work = (record.phase, record.layer), record.work
        forms: list[int] = []
        ends: dict[int, tuple[list[int], list[int]]] = {}
        for number, event in enumerate(record.events):
            if isinstance(event, int):
                forms.append(event)
            else:
                place = ends.setdefault(event[0], ([], []))
                place[0].append(number)
                place[1].append(event[1])
        self.forms = np.array(forms, dtype=np.int64)
        """Of its allocations."""
        self.ends = [(place, np.array(which), np.array(ordinals)) for place, (which, ordinals) in ends.items()]
        """(place of the tensors, which events end them, their ordinals), as in the record."""
        self.begins = np.ones(len(record.events), dtype=bool)
        for _, which, _ in self.ends:
            self.begins[which] = False
        staying = np.ones(len(forms), dtype=bool)
        staying[ends.get(OWN, ([], []))[1]] = False
        self.staying = np.flatnonzero(staying)
        """Of its allocations, those that outlive it."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The traces of examples of one shape, from ``recording``."""

    recording: Recording
    model: Model
    shape: Shape
    rank: int
    loss_chunk: int
    _at: dict[int, At] = field(default_factory=dict)

    def at(self, micro_batch: int) -> At:
        """Its sizes at a micro-batch."""
        if micro_batch not in self._at:
            self._at[micro_batch] = self._sizes_at(micro_batch)
        return self._at[micro_batch]

    def _sizes_at(self, micro_batch: int) -> At:
        point = point_of(self.model, self.shape, micro_batch=micro_batch, rank=self.rank, loss_chunk=self.loss_chunk)
        return self.recording.at(point)

    def trace(self, micro_batch: int, layout: Layout) -> Trace:
        """As :meth:`budgetft.predict.short.Short.trace`."""
        return self.at(micro_batch).trace(layout)


def point_of(model: Model, shape: Shape, *, micro_batch: int, rank: int, loss_chunk: int) -> Point:
    """``micro_batch`` examples of ``shape``; of its images, the first stands for what a tower takes."""
    width, height = shape.images[0]
    rows, columns = height // model.patch_size, width // model.patch_size
    return Point(
        micro_batch=micro_batch,
        text_tokens=shape.text_tokens,
        supervised_tokens=shape.supervised_tokens,
        images=len(shape.images),
        patches=rows * columns,
        visual_tokens=shape.visual_tokens(model.pixel_step),
        runs=window_runs(model, rows, columns),
        rank=rank,
        loss_chunk=loss_chunk,
    )


def covers(recording: Recording, model: Model, shape: Shape) -> bool:
    """Whether traces of ``shape`` can be computed from ``recording``: where it has towers, of equal images of a kind it has."""
    if not recording.towers or not shape.images:
        return bool(shape.images) and model.packed
    width, height = shape.images[0]
    runs = window_runs(model, height // model.patch_size, width // model.patch_size)
    return len(set(shape.images)) == 1 and str(len(runs)) in recording.towers


def window_runs(model: Model, rows: int, columns: int) -> tuple[tuple[int, int], ...]:
    """(windows, patches of one) of the runs of equal windows of an image of ``rows`` x ``columns`` patches, longest first.

    Windows are square, of ``window_size`` pixels (Qwen2.5-VL), and cut at the image's lower and right edge.
    """
    size = model.config["vision_config"].get("window_size") if model.family == "qwen2_5_vl" else None
    if not size:
        return ()
    merge = model.merge_size
    side = size // model.patch_size // merge
    counts: Counter[int] = Counter()
    for height, down in _cut(rows // merge, side):
        for width, right in _cut(columns // merge, side):
            counts[height * width * merge**2] += down * right
    return tuple((counts[patches], patches) for patches in sorted(counts, reverse=True))


def _cut(length: int, side: int) -> list[tuple[int, int]]:
    """(length of a part, how many) when ``length`` is cut every ``side``."""
    parts = [(side, length // side), (length % side, 1)]
    return [(part, count) for part, count in parts if part and count]


def write_recording(recording: Recording, path: Path) -> None:
    """Packed JSON, the same bytes for the same recording."""
    path.write_bytes(gzip.compress(recording.model_dump_json().encode(), mtime=0))


def read_recording(path: Path) -> Recording | None:
    """None when there is none, or it is damaged."""
    try:
        return Recording.model_validate_json(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, ValueError, zlib.error):
        return None
