"""The allocations of the whole model's step, composed from two traces of a shortened one, for a replay.

An event of a layer is an allocation, with a size affine in the micro-batch, or the end of a tensor, named by where it was
allocated: the how-manieth of which segment. Repeating the inner layer's events with those names moved along gives the rest.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from budgetft.predict.allocator import Event
from budgetft.predict.law import KIND, Affine, template_layers
from budgetft.predict.trace import Trace

ALIGNED_CELLS = 10**6
"""Segments with more pairs of events than this are not aligned one by one."""
Place = tuple[int, int]
"""(segment of the template, how-manieth allocation in it)."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One event of a template: an allocation when ``size`` is given, else the end of the tensor allocated at ``place``."""

    place: Place
    size: Affine | None
    most: float = float("inf")
    """No allocation here is larger: the last chunk of a chunked loss grows with the micro-batch only up to a whole one."""


@dataclass(frozen=True, kw_only=True)
class EventTemplate:
    """A template's events by segment, with each segment's phase and layer."""

    layers: int
    labels: tuple[tuple[str, int], ...]
    steps: tuple[tuple[Step, ...], ...]


def event_template(small: Trace, large: Trace, sizes: tuple[int, int]) -> EventTemplate:
    """Align the two traces, of micro-batches ``sizes``: layers event by event, what differs in count by matching sizes."""
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
                made.append(Step(place=places[tensor], size=affine[index], most=most))
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


def compose(
    template: EventTemplate, *, layers: int, checkpointed_layers: int, micro_batch: int, vision_group: float
) -> Iterator[Event]:
    """Every event of the full model's step; tensors are numbered from zero."""
    stands_for = template_layers(layers, checkpointed_layers)
    made: dict[tuple[int, int | None], list[int]] = {}
    numbers = iter(range(10**9))
    instances = _instances(template, stands_for)
    allocations = [sum(step.size is not None for step in steps) for steps in template.steps]

    def ends(place: Place, layer: int | None) -> Iterator[int]:
        segment, ordinal = place
        owner = template.labels[segment][1]
        for instance in _owners(owner, layer, stands_for):
            tensors = made.get((segment_of(segment, owner, instance), instance), [])
            yield from tensors[ordinal :: allocations[segment]]  # of every group of images

    by_label = {label: index for index, label in enumerate(template.labels) if label[1] >= 0}

    def segment_of(segment: int, owner: int, instance: int | None) -> int:
        """The template segment from which an instance of this segment was made."""
        if instance is None or owner < 0:
            return segment
        phase = template.labels[segment][0]
        return by_label.get((phase, stands_for[instance]), segment)

    for segment, layer in instances:
        phase = template.labels[segment][0]
        batch = min(micro_batch, vision_group) if phase == "vision" else micro_batch
        rounds = -(-micro_batch // max(1, int(vision_group))) if phase == "vision" else 1
        for _ in range(rounds):
            tensors = made.setdefault((segment, layer), [])
            first = len(tensors)
            for step in template.steps[segment]:
                if step.size is not None:
                    tensors.append(next(numbers))
                    yield tensors[-1], max(1, round(min(step.size(batch), step.most)))
                elif step.place[0] == segment and layer is None:
                    yield tensors[first + step.place[1]], 0
                else:
                    for tensor in ends(step.place, layer):
                        yield tensor, 0


def _owners(owner: int, layer: int | None, stands_for: list[int]) -> list[int | None]:
    """The layers of the full model whose tensor ends here, when in the template it was template layer ``owner``'s."""
    if owner < 0:
        return [None]
    if layer is not None:  # as far away as in the template
        return [instance] if 0 <= (instance := layer + owner - stands_for[layer]) < len(stands_for) else []
    if owner % KIND == 2:  # at a place that stands once, the inner layer stands for all inner ones
        return [instance for instance, stands in enumerate(stands_for) if stands == owner]
    kind = [instance for instance, stands in enumerate(stands_for) if stands // KIND == owner // KIND]
    place = owner % KIND if owner % KIND < 2 else owner % KIND - KIND  # the first two, or the last two
    return [kind[place]] if -len(kind) <= place < len(kind) else []


def _instances(template: EventTemplate, stands_for: list[int]) -> list[tuple[int, int | None]]:
    """The segments of the full model in order: (segment of the template, layer of the full model)."""
    labels = template.labels
    forward: dict[int, list[int]] = {}
    backward: dict[int, list[int]] = {}
    starts = [i for i, (phase, layer) in enumerate(labels) if phase == "forward" and layer >= 0]
    backs = [i for i, (phase, layer) in enumerate(labels) if phase == "backward" and layer >= 0]
    for place, start in enumerate(starts):
        forward[labels[start][1]] = list(range(start, starts[place + 1] if place + 1 < len(starts) else start + 1))
    for back in backs:
        backward[labels[back][1]] = [back]
    order: list[tuple[int, int | None]] = [(i, None) for i in range(starts[0])]
    for layer, stands in enumerate(stands_for):
        order += [(segment, layer) for segment in forward[stands]]
    order += [(i, None) for i in range(starts[-1] + 1, backs[0])]
    for layer in reversed(range(len(stands_for))):
        order += [(segment, layer) for segment in backward[stands_for[layer]]]
    return order
