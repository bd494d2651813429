"""Which examples of an optimizer step share a micro-batch: in the order drawn, or by length under the planned ceiling.

The examples of a step are the same either way, and so is the sum of their gradients; only the padding differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import ceil, inf

from budgetft.knobs import Batching
from budgetft.workload import Shape


@dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What the planned worst micro-batch holds. Only as many ``examples`` may share a micro-batch whatever they are."""

    examples: int
    padded_tokens: int
    visual_tokens: int
    supervised_tokens: int

    @classmethod
    def of(cls, worst: Sequence[Shape], pixel_step: int) -> "Ceiling":
        """The ceiling of a micro-batch of the shapes ``worst``."""
        return cls(
            examples=len(worst),
            padded_tokens=padded_tokens(worst, pixel_step),
            visual_tokens=sum(shape.visual_tokens(pixel_step) for shape in worst),
            supervised_tokens=sum(shape.supervised_tokens for shape in worst),
        )


def split(indices: Sequence[int], micro_batch: int) -> list[tuple[int, ...]]:
    """``indices`` in micro-batches, in order."""
    return [tuple(indices[start : start + micro_batch]) for start in range(0, len(indices), micro_batch)]


def micro_batches(shapes: Sequence[Shape], batching: Batching, ceiling: Ceiling, *, pixel_step: int) -> list[tuple[int, ...]]:
    """Positions in ``shapes``, the examples of one step, in micro-batches.

    ``padded``: in order, ``ceiling.examples`` at a time. ``bucketed``: by falling length, in at most as many
    micro-batches, with the fewest padded tokens in all. Long examples then share with fewer others and short ones with
    more: more than ``ceiling.examples`` only where the micro-batch stays under every part of the ceiling. Never more
    padded tokens than ``padded``, and the same for the same shapes.
    """
    if batching == "padded":
        return split(range(len(shapes)), ceiling.examples)
    sizes = tuple(
        (shape.total_tokens(pixel_step), shape.visual_tokens(pixel_step), shape.supervised_tokens) for shape in shapes
    )
    order = sorted(range(len(sizes)), key=lambda position: (-sizes[position][0], position))
    borders = _borders(tuple(sizes[position] for position in order), ceiling)
    return [tuple(order[start:end]) for start, end in zip((0, *borders), borders, strict=False)]


@lru_cache(maxsize=256)
def _borders(sizes: tuple[tuple[int, int, int], ...], ceiling: Ceiling) -> tuple[int, ...]:
    """Where micro-batches end among ``sizes`` (tokens, visual ones, supervised ones), which fall: by dynamic programming."""
    count = len(sizes)
    visual = (0, *accumulate(size[1] for size in sizes))
    supervised = (0, *accumulate(size[2] for size in sizes))

    def allowed(start: int, end: int) -> bool:
        return end - start <= ceiling.examples or (
            (end - start) * sizes[start][0] <= ceiling.padded_tokens
            and visual[end] - visual[start] <= ceiling.visual_tokens
            and supervised[end] - supervised[start] <= ceiling.supervised_tokens
        )

    best: list[float] = [0.0, *[inf] * count]
    paths: list[tuple[int, ...]] = [()] * (count + 1)
    answer, answer_tokens = (), inf
    for _ in range(ceil(count / ceiling.examples)):
        tokens: list[float] = [inf] * (count + 1)
        ways: list[tuple[int, ...]] = [()] * (count + 1)
        for start in range(count):
            if best[start] == inf:
                continue
            end = start + 1
            while end <= count and allowed(start, end):
                total = best[start] + (end - start) * sizes[start][0]
                if total < tokens[end]:
                    tokens[end], ways[end] = total, (*paths[start], end)
                end += 1
        best, paths = tokens, ways
        if best[count] < answer_tokens:  # one micro-batch more has to be worth it
            answer, answer_tokens = paths[count], best[count]
    return answer


def padded_tokens(shapes: Sequence[Shape], pixel_step: int) -> int:
    """Tokens of one micro-batch of ``shapes``, padded to its longest."""
    return len(shapes) * max(shape.total_tokens(pixel_step) for shape in shapes)


def padding_share(micro_batches: Sequence[Sequence[Shape]], pixel_step: int) -> float:
    """Padding among all tokens that ``micro_batches`` compute: 0 for none."""
    computed = sum(padded_tokens(shapes, pixel_step) for shapes in micro_batches)
    real = sum(shape.total_tokens(pixel_step) for shapes in micro_batches for shape in shapes)
    return 1 - real / computed
