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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from budgetft.model import Model
from budgetft.predict.allocator import MINIMUM
from budgetft.predict.law import Layout
from budgetft.predict.segments import Segment, Trace
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
        return At(recording=self, sizes=sizes, point=point)


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
    sizes: list[float]
    """By form."""
    point: Point

    def static(self, optimizer: str) -> dict[str, list[int]]:
        """Bytes of every tensor that is there throughout, by category, in order."""
        named = {"weights": "weights", "adapter": "adapter", "gradients": "adapter", "optimizer": optimizer}

        def sizes(name: str) -> list[int]:
            return [size for form, count in self.recording.static[name] for size in [self._bytes(form)] * count]

        return {category: sizes(name) for category, name in named.items()}

    def trace(self, layout: Layout) -> Trace:
        """What a trace of the shortened model in ``layout`` gives."""
        segments: list[Segment] = []
        staying: list[list[int]] = []
        sizes: list[int] = []
        layers: list[int] = []
        for record in self._records(layout):
            segment, first, passing = Segment(label=(record.phase, record.layer)), len(sizes), set()
            for event in record.events:
                if isinstance(event, int):
                    tensor, change = len(sizes), self._bytes(event)
                    sizes.append(change)
                    layers.append(record.layer if record.phase == "forward" else -1)
                else:
                    place, ordinal = event
                    tensor = first + ordinal if place == OWN else staying[place][ordinal]
                    passing.add(tensor)
                    change = -sizes[tensor]
                    if (layer := layers[tensor]) >= 0:
                        segment.freed_of_layer[layer] = segment.freed_of_layer.get(layer, 0) - change
                segment.events.append((tensor, change))
                segment.net_bytes += change
                segment.peak_bytes = max(segment.peak_bytes, segment.net_bytes)
            staying.append([tensor for tensor in range(first, len(sizes)) if tensor not in passing])
            for name, form in zip(WORK, record.work, strict=True):
                setattr(segment, name, round(self.sizes[form]))
            segments.append(segment)
        return Trace(static_bytes={"inputs": self._inputs()}, segments=tuple(segments))

    def _inputs(self) -> int:
        return sum(self._bytes(form) * count for form, count in self.recording.static["inputs"])

    def _records(self, layout: Layout) -> Iterator[SegmentRecord]:
        for record in self.recording.layouts[layout]:
            if record.phase == "vision":
                yield self.recording.towers[str(len(self.point.runs))]
            elif record.phase == "loss":
                yield self.recording.losses[loss_name(layout, self.point.chunks)]
            else:
                yield record

    def _bytes(self, form: int) -> int:
        return -int(-(self.sizes[form] - 0.5) // MINIMUM) * MINIMUM


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """The traces of examples of one shape, from ``recording``."""

    recording: Recording
    model: Model
    shape: Shape
    rank: int
    loss_chunk: int

    def at(self, micro_batch: int) -> At:
        """Its sizes at a micro-batch."""
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
        return bool(shape.images)
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
