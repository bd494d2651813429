"""The shapes of a dataset's examples: token counts and image sizes, without decoding an image."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from budgetft.contract import Contract
from budgetft.data.collate import too_long
from budgetft.data.conversation import Segment
from budgetft.data.encode_other import read_as
from budgetft.data.examples import Example, Examples
from budgetft.data.other_processor import check_text
from budgetft.data.problems import problem_report, problems_of
from budgetft.data.tokens import check_positions
from budgetft.data.visuals import block_sizes, media_of, short_segments
from budgetft.errors import UsageError
from budgetft.model import Model
from budgetft.workload import Shape, Workload

if TYPE_CHECKING:
    from transformers import ProcessorMixin

T = TypeVar("T")
WORST, TYPICAL = 64, 64
"""How many shapes of each kind a workload keeps: enough for the largest micro-batch that a small GPU holds."""


def measure_shapes(
    examples: Iterable[Example],
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    *,
    on_example: Callable[[], None] = lambda: None,
) -> list[Shape]:
    """The shape of every example, in order, equal to what ``encode`` makes of it. Over-long ones are measured too.

    Each text is tokenized once and each image file's header read once. Raises one ``UsageError`` for all examples
    that cannot be encoded for another reason than their length, and for a limit above the model's positions.
    """
    check_positions(model, contract)
    check_text(processor, model)
    sizes: dict[str, tuple[int, int]] = {}
    return of_each(examples, lambda example: _shape(example, processor, model, contract, sizes), on_example)


def of_each(examples: Iterable[Example], measure: Callable[[Example], T], on_example: Callable[[], None]) -> list[T]:
    """What ``measure`` says of every example. Raises one ``UsageError`` for all of which it refuses to say anything."""
    found, problems = [], []
    for example in examples:
        try:
            found.append(measure(example))
        except UsageError as error:
            problems.append(f"example {example.id!r}: {error.message}")
        on_example()
    if problems:
        raise problem_report("cannot measure the examples", problems)
    return found


def histogram(values: Sequence[int], bins: int = 10) -> list[tuple[int, int, int]]:
    """``(from, to, how many)`` of equally wide ranges over ``values``, ends included; fewer where the values are few."""
    low, high = min(values), max(values)
    width = max(1, -(-(high - low + 1) // bins))
    counts = [0] * ((high - low) // width + 1)
    for value in values:
        counts[(value - low) // width] += 1
    return [(low + place * width, low + (place + 1) * width - 1, count) for place, count in enumerate(counts)]


def check_lengths(ids: Sequence[str], shapes: Sequence[Shape], model: Model, contract: Contract) -> None:
    """Raise a ``UsageError`` when any of ``shapes`` is over ``contract.max_length``: how many, and the longest."""
    over = overlong(ids, shapes, model, contract)
    if over:
        raise too_long(over, len(shapes), contract)


def overlong(ids: Sequence[str], shapes: Sequence[Shape], model: Model, contract: Contract) -> list[tuple[str, int, int]]:
    """``(id, tokens, visual tokens)`` of every example over ``contract.max_length``."""
    step = model.pixel_step
    return [
        (name, shape.total_tokens(step), shape.visual_tokens(step))
        for name, shape in zip(ids, shapes, strict=True)
        if shape.total_tokens(step) > contract.max_length
    ]


def workload_of(shapes: Sequence[Shape], fingerprint: str | None, *, pixel_step: int, seed: int = 0) -> Workload:
    """The heaviest of ``shapes`` by total tokens (then by visual ones), and a random sample that depends on ``seed``.

    Raises ``UsageError`` when there are no shapes.
    """
    if not shapes:
        raise UsageError("there are no examples to take a workload from")
    heaviest = sorted(shapes, key=lambda shape: (shape.total_tokens(pixel_step), shape.visual_tokens(pixel_step)), reverse=True)
    typical = random.Random(seed).sample(list(shapes), min(TYPICAL, len(shapes)))
    return Workload(worst=tuple(heaviest[:WORST]), typical=tuple(typical), examples=len(shapes), fingerprint=fingerprint)


def measure_workload(
    examples: Examples,
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    *,
    on_example: Callable[[], None] = lambda: None,
) -> Workload:
    """The workload of a dataset: measured, refused when an example is over ``contract.max_length``, and sampled."""
    shapes = measure_shapes(examples, processor, model, contract, on_example=on_example)
    if any(shape.total_tokens(model.pixel_step) > contract.max_length for shape in shapes):
        check_lengths([example.id for example in examples], shapes, model, contract)
    return workload_of(shapes, examples.fingerprint, pixel_step=model.pixel_step, seed=contract.seed)


@dataclass(frozen=True)
class Measured:
    """What an example is made of."""

    sizes: tuple[tuple[int, int], ...]
    """Width and height of every block of visual tokens, in pixels."""
    text: int
    """Tokens, without those of blocks."""
    learned: int
    tokens: tuple[int, ...] | None = None
    """Visual tokens of every block, where they do not follow from its size."""

    def visual(self, pixel_step: int) -> int:
        """Visual tokens of all blocks."""
        if self.tokens is not None:
            return sum(self.tokens)
        return sum((width // pixel_step) * (height // pixel_step) for width, height in self.sizes)


def measured(
    example: Example,
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    known: dict[str, tuple[int, int]] | None = None,
    *,
    answered: bool = True,
) -> Measured:
    """What ``encode`` makes of ``example``; ``known`` sizes spare reading a header again. Raises ``UsageError``."""
    found = problems_of(example, answered=answered)
    if found:
        raise UsageError("; ".join(found))
    if not model.packed:
        read = read_as(example, processor, model, contract, known, answered=answered)
        return Measured(read.sizes, read.text_tokens, sum(read.learned), read.tokens)
    sizes = block_sizes(example, model, contract, known)
    total, learned = text_tokens(short_segments(example, processor, model, contract, answered=answered), processor)
    return Measured(tuple(sizes), total - len(sizes), learned)


def _shape(
    example: Example,
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    known: dict[str, tuple[int, int]],
) -> Shape:
    found = measured(example, processor, model, contract, known)
    media = media_of(example)
    alone = len(media) == 1 and media[0].is_video
    return Shape(
        images=found.sizes,
        text_tokens=found.text,
        supervised_tokens=found.learned,
        frames=len(example.images) if alone else None,
        tokens=found.tokens,
    )


def text_tokens(texts: Iterable[Segment], processor: "ProcessorMixin") -> tuple[int, int]:
    """Tokens of all ``texts``, each tokenized by itself, and of those that are learned."""
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    counted = [(len(tokenizer(one.text, add_special_tokens=False).input_ids), one.learned) for one in texts]
    return sum(count for count, _ in counted), sum(count for count, learned in counted if learned)
