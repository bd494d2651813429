"""The allocations of the whole model's step, composed from two traces of a shortened one, for a replay.

An event of a layer is an allocation, with a size affine in the micro-batch, or the end of a tensor, named by where it was
allocated: the how-manieth of which segment. Repeating the inner layer's events with those names moved along gives the rest.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from budgetft.predict.memory_model import MemoryModel
from budgetft.predict.segments import BEFORE, Pattern, Trace

ALIGNED_CELLS = 10**6
"""Segments with more pairs of events than this are not aligned one by one."""
TOWER_ROUNDS = 2
"""Groups of images in which the tower is replayed in full: further ones find the blocks of these, and leave their features."""


@dataclass(frozen=True, kw_only=True)
class EventTemplate:
    """A template's events, and the bytes of its allocations, in order: affine in the micro-batch."""

    pattern: Pattern
    at_zero: np.ndarray
    slope: np.ndarray
    most: np.ndarray
    """No allocation here is larger: the last chunk of a chunked loss grows with the micro-batch only up to a whole one."""
    full_at: np.ndarray
    """The micro-batch that fills a chunk of the loss, of tensors of one chunk: below it they are smaller."""

    def bytes_at(self, micro_batch: float) -> np.ndarray:
        """Of every allocation."""
        sizes = np.minimum(self.at_zero + self.slope * micro_batch, self.most)
        part = self.full_at > micro_batch
        sizes[part] = sizes[part] * micro_batch / self.full_at[part]
        return np.maximum(1, np.rint(sizes)).astype(np.int64)


def event_template(small: Trace, large: Trace, sizes: tuple[int, int], *, full_at: float = 0.0) -> EventTemplate:
    """Align the two traces, of micro-batches ``sizes``: layers event by event, what differs in count by matching sizes.

    ``full_at``: the micro-batch whose answers fill one chunk of the loss.
    """
    (pattern, one), (other, two) = small.unrolled(), large.unrolled()
    at_zero, slope = np.zeros(len(one)), np.zeros(len(one))
    most, full = np.full(len(one), np.inf), np.zeros(len(one))
    for number, (phase, _) in enumerate(pattern.labels):
        here, there = (slice(*each.bounds[number : number + 2]) for each in (pattern, other))
        at_zero[here], slope[here] = _affine(one[here], two[there], sizes)
        if phase == "loss":
            largest = [int(each.max(initial=0)) for each in (one[here], two[there])]
            if largest[0] == largest[1]:
                most[here] = largest[0]
            full[here] = np.where(slope[here] == 0, full_at, 0.0)
    of = pattern.begins
    return EventTemplate(pattern=pattern, at_zero=at_zero[of], slope=slope[of], most=most[of], full_at=full[of])


def _affine(one: np.ndarray, two: np.ndarray, sizes: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(at zero, slope) of each event of ``one``, also where ``two`` has more: a loss chunk, a copy, more vision windows."""
    growing = sizes[1] - sizes[0]
    if len(one) == len(two):
        slope = (two - one) / growing
        return one - slope * sizes[0], slope
    if len(one) * len(two) < ALIGNED_CELLS:
        partners = _aligned(one.tolist(), two.tolist(), sizes[1] // sizes[0])
        slope = np.array([0 if to is None else (two[to] - size) / growing for size, to in zip(one, partners, strict=True)])
        return one - slope * sizes[0], slope
    # Thousands of vision windows: more tensors of one size take as much as as many larger ones, and are made so.
    before, after = Counter(one.tolist()), Counter(two.tolist())
    grow = np.array([after[size] != before[size] for size in one.tolist()], dtype=bool)
    return np.where(grow, 0.0, one), np.where(grow, one / sizes[0], 0.0)


def _aligned(one: list[int], two: list[int], factor: int) -> list[int | None]:
    """For each entry of ``one``, its partner in ``two``, in order: allocations that stay or grow by ``factor``, and frees.

    The alignment with the highest score (Needleman and Wunsch, 1970; gaps cost nothing).
    """

    def score(a: int, b: int) -> int:
        if (a > 0) != (b > 0):
            return 0
        if a < 0:
            return 1
        return 3 if b in (a, a * factor) else 1 if a < b < a * factor else 0

    scores = {a: [score(a, b) for b in two] for a in set(one)}  # there are few sizes
    best = [[0] * (len(two) + 1)]
    for a in one:
        above, left, row = best[-1], 0, [0]
        for match, corner, up in zip(scores[a], above, above[1:], strict=False):
            left = max(corner + match, up, left)
            row.append(left)
        best.append(row)
    partners: list[int | None] = [None] * len(one)
    line, column = len(one), len(two)
    while line and column:
        match = score(one[line - 1], two[column - 1])
        if match and best[line][column] == best[line - 1][column - 1] + match:
            line, column = line - 1, column - 1
            partners[line] = column
        elif best[line][column] == best[line - 1][column]:
            line -= 1
        else:
            column -= 1
    return partners


def compose(
    template: EventTemplate, *, memory_model: MemoryModel, checkpointed_layers: int, micro_batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every event of the step of the full model, of which ``memory_model`` is, in order.

    By event: bytes of an allocation, 0 for the end of a tensor; and for an end, the how-manieth event the allocation was, -1 if
    of none of these.
    """
    groups = _groups(micro_batch, memory_model.vision_group)
    key = memory_model.layers, memory_model.kind, memory_model.layer_kinds, checkpointed_layers, len(groups)
    if key not in template.pattern.kept:
        stands_for = memory_model.stands_for(checkpointed_layers)
        template.pattern.kept[key] = _Ordering(template.pattern, stands_for, len(groups)).ordered()
    places, ends = template.pattern.kept[key]
    sizes = np.concatenate([*(template.bytes_at(batch) for batch in (micro_batch, groups[0], groups[-1])), [0]])
    return sizes[places], ends


class _Part:
    """A segment of a template: which of its events are allocations, and which end what."""

    def __init__(self, pattern: Pattern, segment: int, first: int) -> None:
        here = slice(*pattern.bounds[segment : segment + 2])
        self.begins, origin, ordinal = pattern.begins[here], pattern.origin[here], pattern.ordinal[here]
        self.at = np.flatnonzero(self.begins)
        self.numbers = first + np.arange(len(self.at))
        """Of its allocations, among all of the template."""
        ends = np.flatnonzero(~self.begins & (origin != BEFORE))
        self.of_origin = [
            (int(each), which, ordinal[which]) for each in np.unique(origin[ends]) for which in [ends[origin[ends] == each]]
        ]
        """(segment, which events end tensors of it, and the how-manieth of its allocations these are)."""


class _Ordering:
    """Where each event of the full model's step is from. Its result depends on no size."""

    def __init__(self, pattern: Pattern, stands_for: list[int], groups: int) -> None:
        self.labels, self.stands_for, self.groups = pattern.labels, stands_for, groups
        self.roles = _roles(self.labels)
        self.alike = {role: segment for segment, role in self.roles.items()}
        before = np.concatenate([[0], np.cumsum(pattern.begins)])[pattern.bounds]
        self.total = int(before[-1])
        self.parts = [_Part(pattern, segment, int(before[segment])) for segment in range(len(pattern.labels))]
        self.made: dict[tuple[int, int | None], np.ndarray] = {}
        """By segment and layer of the full model: (groups, allocations), the events that these are; -1 where left out."""

    def ordered(self) -> tuple[np.ndarray, np.ndarray]:
        """By event: place among the sizes of three batches and 0 (see :func:`compose`), and the event that ends with it."""
        places, ends, first = [], [], 0
        for segment, layer in _instances(self.labels, self.roles, self.stands_for):
            in_groups = self.labels[segment][0] == "vision"
            for number in range(self.groups if in_groups else 1):
                row = (2 if number == self.groups - 1 else 1) if in_groups else 0
                found = self._instance(segment, layer, number, row, first)
                places.append(found[0])
                ends.append(found[1])
                first += len(found[0])
        all_ends = np.concatenate(ends)
        once = np.full(len(all_ends), -1)
        ended, at = np.unique(all_ends, return_index=True)
        once[at[ended >= 0]] = ended[ended >= 0]
        return np.concatenate(places), once

    def _instance(self, segment: int, layer: int | None, number: int, row: int, first: int) -> tuple[np.ndarray, np.ndarray]:
        """One segment for one layer, of group ``number`` of the tower's images; the events begin at ``first``."""
        part = self.parts[segment]
        if number == 0 and (simple := self._one_for_one(part, segment, layer, row, first)) is not None:
            return simple
        times = np.ones(len(part.begins), dtype=np.int64)
        targets = {origin: self._targets(origin, segment, layer) for origin, _, _ in part.of_origin}
        for origin, which, _ in part.of_origin:
            if (found := targets[origin]) is not None:
                times[which] = max(1, len(found))
        if number >= TOWER_ROUNDS:
            times[self._passing(part, segment)] = 0
        starts = np.cumsum(times) - times
        own = np.where(times[part.begins] > 0, first + starts[part.begins], -1)[None]
        self.made[segment, layer] = np.concatenate([self.made[segment, layer], own]) if number else own
        places = np.repeat(np.where(part.begins, 0, 3 * self.total), times)
        alive = times[part.begins] > 0
        places[starts[part.begins][alive]] = row * self.total + part.numbers[alive]
        ends = np.full(len(places), -1)
        for origin, which, ordinals in part.of_origin:
            found = targets[origin]
            found = own if found is None else self._targets(origin, segment, layer) if origin == segment else found
            assert found is not None
            there = times[which] > 0
            for offset, tensors in enumerate(found):
                ends[starts[which][there] + offset] = tensors[ordinals[there]]
        return places, ends

    def _one_for_one(
        self, part: _Part, segment: int, layer: int | None, row: int, first: int
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """As :meth:`_instance` of the first group, where each end is that of one tensor; None where some are not."""
        places, ends = np.full(len(part.begins), 3 * self.total), np.full(len(part.begins), -1)
        places[part.at] = row * self.total + part.numbers
        own = self.made[segment, layer] = (first + part.at)[None]
        for origin, which, ordinals in part.of_origin:
            found = own if origin == segment else self._targets(origin, segment, layer)
            assert found is not None
            if len(found) > 1:
                return None
            if len(found):
                ends[which] = found[0, ordinals]
        return places, ends

    def _passing(self, part: _Part, segment: int) -> np.ndarray:
        """Events of what a segment allocates and frees again itself."""
        passing = np.zeros(len(part.begins), dtype=bool)
        for origin, which, ordinals in part.of_origin:
            if origin == segment:
                passing[which] = True
                passing[part.at[ordinals]] = True
        return passing

    def _targets(self, origin: int, segment: int, layer: int | None) -> np.ndarray | None:
        """(tensors that end for one of the template's, allocations of segment ``origin``); None: of this very instance."""
        if origin == segment and layer is None:
            return None
        role = self.roles.get(origin)
        found: list[np.ndarray] = []
        for instance in _owners(-1 if role is None else role.layer, layer, self.stands_for):
            source = origin
            if role is not None and instance is not None:
                # The template's segment from which that instance was made.
                source = self.alike.get(role._replace(layer=self.stands_for[instance]), origin)
            if (made := self.made.get((source, instance))) is not None:
                wide = len(self.parts[origin].numbers)
                if made.shape[1] == wide:
                    found.append(made)
                    continue
                found.append(np.pad(made.ravel(), (0, -made.size % wide), constant_values=-1).reshape(-1, wide))
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else np.empty((0, 0), dtype=np.int64)


def _groups(micro_batch: int, most: float) -> list[float]:
    """Examples whose images the tower takes together, one group after the other: whole ones, and what is left."""
    whole = int(micro_batch // most)
    left = micro_batch - whole * most
    return [most] * whole + ([left] if left else [])


def _owners(owner: int, layer: int | None, stands_for: list[int]) -> list[int | None]:
    """The layers of the full model whose tensor ends here, when in the template it was template layer ``owner``'s."""
    if owner < 0:
        return [None]
    if layer is not None:  # as far away as in the template
        return [instance] if 0 <= (instance := layer + owner - stands_for[layer]) < len(stands_for) else []
    # At a place that stands once, the inner layer stands for all inner ones.
    return [instance for instance, stands in enumerate(stands_for) if stands == owner]


class _Role(NamedTuple):
    """Of a segment that stands once for each layer: in which pass, how-manieth there of its layer, and that layer."""

    backward: bool
    place: int
    layer: int


def _roles(labels: Sequence[tuple[str, int]]) -> dict[int, _Role]:
    """What follows a layer in forward, before the next, is that layer's too: Qwen3-VL adds features of the tower there."""
    starts = [i for i, (phase, layer) in enumerate(labels) if phase == "forward" and layer >= 0]
    roles = {i: _Role(backward=True, place=0, layer=layer) for i, (phase, layer) in enumerate(labels) if phase == "backward"}
    for start, end in zip(starts, [*starts[1:], starts[-1] + 1], strict=True):
        for segment in range(start, end):
            roles[segment] = _Role(backward=False, place=segment - start, layer=labels[start][1])
    return {segment: role for segment, role in roles.items() if role.layer >= 0}


def _instances(
    labels: Sequence[tuple[str, int]], roles: dict[int, _Role], stands_for: list[int]
) -> Iterator[tuple[int, int | None]]:
    """The segments of the full model in order: (segment of the template, layer of the full model)."""

    own: dict[tuple[bool, int], list[int]] = {}
    for segment in sorted(roles):
        own.setdefault((roles[segment].backward, roles[segment].layer), []).append(segment)

    def of(backward: bool, layer: int) -> Iterator[tuple[int, int | None]]:
        return ((segment, layer) for segment in own.get((backward, stands_for[layer]), ()))

    passes = [[segment for segment, role in roles.items() if role.backward is backward] for backward in (False, True)]
    yield from ((segment, None) for segment in range(min(passes[0])))
    for layer in range(len(stands_for)):
        yield from of(False, layer)
    yield from ((segment, None) for segment in range(max(passes[0]) + 1, min(passes[1])))
    for layer in reversed(range(len(stands_for))):
        yield from of(True, layer)
