"""The allocations of the whole model's step, composed from two traces of a shortened one, for a replay.

An event of a layer is an allocation, with a size affine in the micro-batch, or the end of a tensor, named by where it was
allocated: the how-manieth of which segment. Repeating the inner layer's events with those names moved along gives the rest.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from budgetft.predict.allocator import Event
from budgetft.predict.law import Affine, Law, template_layers
from budgetft.predict.segments import Trace

ALIGNED_CELLS = 10**6
"""Segments with more pairs of events than this are not aligned one by one."""
TOWER_ROUNDS = 2
"""Groups of images in which the tower is replayed in full: further ones find the blocks of these, and leave their features."""
Place = tuple[int, int]
"""(segment of the template, how-manieth allocation in it)."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One event of a template: an allocation when ``size`` is given, else the end of the tensor allocated at ``place``."""

    place: Place
    size: Affine | None
    most: float = float("inf")
    """No allocation here is larger: the last chunk of a chunked loss grows with the micro-batch only up to a whole one."""
    full_at: float = 0.0
    """The micro-batch that fills a chunk of the loss, of tensors of one chunk: below it they are smaller."""

    def bytes_at(self, micro_batch: float) -> int:
        assert self.size is not None
        size = min(self.size(micro_batch), self.most)
        return max(1, round(size * micro_batch / self.full_at if micro_batch < self.full_at else size))


@dataclass(frozen=True, kw_only=True)
class EventTemplate:
    """A template's events by segment, with each segment's phase and layer."""

    layers: int
    labels: tuple[tuple[str, int], ...]
    steps: tuple[tuple[Step, ...], ...]


def event_template(small: Trace, large: Trace, sizes: tuple[int, int], *, full_at: float = 0.0) -> EventTemplate:
    """Align the two traces, of micro-batches ``sizes``: layers event by event, what differs in count by matching sizes.

    ``full_at``: the micro-batch whose answers fill one chunk of the loss.
    """
    places: dict[int, Place] = {}
    steps = []
    for number, (one, two) in enumerate(zip(small.segments, large.segments, strict=True)):
        affine = _sizes(one.events, two.events, sizes)
        largest = [max((size for _, size in events), default=0) for events in (one.events, two.events)]
        most = float(largest[0]) if one.label[0] == "loss" and largest[0] == largest[1] else float("inf")
        made: list[Step] = []
        allocations = 0
        for index, (tensor, size) in enumerate(one.events):
            if size > 0:
                places[tensor] = number, allocations
                allocations += 1
                of_chunk = one.label[0] == "loss" and affine[index].slope == 0
                full = full_at if of_chunk else 0.0
                made.append(Step(place=places[tensor], size=affine[index], most=most, full_at=full))
            elif tensor in places:
                made.append(Step(place=places[tensor], size=None))
        steps.append(tuple(made))
    labels = tuple(segment.label for segment in small.segments)
    return EventTemplate(layers=1 + max(layer for _, layer in labels), labels=labels, steps=tuple(steps))


def _sizes(one: list[Event], two: list[Event], sizes: tuple[int, int]) -> list[Affine]:
    """A size for each event of ``one``, also where ``two`` has more: another loss chunk, a copy, more vision windows."""
    if len(one) == len(two):
        partners: list[int | None] = list(range(len(two)))
    elif len(one) * len(two) < ALIGNED_CELLS:
        partners = _aligned([size for _, size in one], [size for _, size in two], sizes[1] // sizes[0])
    else:  # thousands of vision windows: more tensors of one size take as much as as many larger ones, and are made so
        before, after = Counter(size for _, size in one), Counter(size for _, size in two)
        return [_growing(size, sizes[0]) if after[size] != before[size] else _fixed(size) for _, size in one]
    return [
        _fixed(size) if partner is None else Affine.through((sizes[0], size), (sizes[1], two[partner][1]))
        for (_, size), partner in zip(one, partners, strict=True)
    ]


def _fixed(size: int) -> Affine:
    return Affine(at_zero=float(size), slope=0.0)


def _growing(size: int, micro_batch: int) -> Affine:
    return Affine(at_zero=0.0, slope=size / micro_batch)


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


def compose(template: EventTemplate, *, law: Law, checkpointed_layers: int, micro_batch: int) -> Iterator[Event]:
    """Every event of the step of the full model, of which ``law`` is; tensors are numbered from zero."""
    stands_for = template_layers(law.layers, checkpointed_layers, law.kind)
    made: dict[tuple[int, int | None], list[int]] = {}
    numbers = iter(range(10**9))
    roles = _roles(template.labels)
    alike = {role: segment for segment, role in roles.items()}
    allocations = [sum(step.size is not None for step in steps) for steps in template.steps]

    def sources(segment: int, layer: int | None) -> list[tuple[int, int | None]]:
        """Under which the tensors of ``segment`` that end in ``layer`` were made."""
        role = roles.get(segment)
        instances = _owners(-1 if role is None else role.layer, layer, stands_for)
        if role is None:
            return [(segment, instance) for instance in instances]
        # The template's segment from which that instance was made.
        return [
            (segment if one is None else alike.get(role._replace(layer=stands_for[one]), segment), one) for one in instances
        ]

    places: dict[tuple[int, int | None], list[tuple[int, int | None]]] = {}

    def ends(place: Place, layer: int | None) -> Iterator[int]:
        segment, ordinal = place
        if (segment, layer) not in places:
            places[segment, layer] = sources(segment, layer)
        for source in places[segment, layer]:
            yield from made.get(source, [])[ordinal :: allocations[segment]]  # of every group of images

    sizes: dict[tuple[int, float], list[int]] = {}

    def sized(segment: int, batch: float) -> list[int]:
        """Bytes of the allocations of a segment, in order: the same for every layer that it stands for."""
        if (segment, batch) not in sizes:
            sizes[segment, batch] = [step.bytes_at(batch) for step in template.steps[segment] if step.size is not None]
        return sizes[segment, batch]

    for segment, layer in _instances(template.labels, roles, stands_for):
        in_groups = template.labels[segment][0] == "vision"
        batches = _groups(micro_batch, law.vision_group) if in_groups else [micro_batch]
        tensors = made.setdefault((segment, layer), [])
        for number, batch in enumerate(batches):
            first = len(tensors)
            passing = _passing(segment, template.steps[segment]) if number >= TOWER_ROUNDS else frozenset()
            found = iter(sized(segment, batch))
            for step in template.steps[segment]:
                if step.size is not None:
                    tensors.append(next(numbers))
                    size = next(found)
                    if step.place not in passing:
                        yield tensors[-1], size
                elif step.place[0] == segment and layer is None:
                    if step.place not in passing:
                        yield tensors[first + step.place[1]], 0
                else:
                    for tensor in ends(step.place, layer):
                        yield tensor, 0


def _groups(micro_batch: int, most: float) -> list[float]:
    """Examples whose images the tower takes together, one group after the other: whole ones, and what is left."""
    whole = int(micro_batch // most)
    left = micro_batch - whole * most
    return [most] * whole + ([left] if left else [])


def _passing(segment: int, steps: Sequence[Step]) -> frozenset[Place]:
    """What a segment allocates and frees again itself."""
    return frozenset(step.place for step in steps if step.size is None and step.place[0] == segment)


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

    def of(backward: bool, layer: int) -> Iterator[tuple[int, int | None]]:
        stands = stands_for[layer]
        own = (segment for segment in sorted(roles) if roles[segment].backward is backward and roles[segment].layer == stands)
        return ((segment, layer) for segment in own)

    passes = [[segment for segment, role in roles.items() if role.backward is backward] for backward in (False, True)]
    yield from ((segment, None) for segment in range(min(passes[0])))
    for layer in range(len(stands_for)):
        yield from of(False, layer)
    yield from ((segment, None) for segment in range(max(passes[0]) + 1, min(passes[1])))
    for layer in reversed(range(len(stands_for))):
        yield from of(True, layer)
