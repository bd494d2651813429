"""The shapes of a dataset's examples: token counts and image sizes, without decoding an image."""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from budgetft.contract import Contract
from budgetft.data.boxes import has_boxes
from budgetft.data.collate import too_long
from budgetft.data.conversation import Segment
from budgetft.data.examples import Example, Examples
from budgetft.data.images import image_size, resized_image_size
from budgetft.data.problems import problem_report, problems_of
from budgetft.data.tokens import check_positions
from budgetft.data.visuals import block_sizes, media_of, short_segments
from budgetft.errors import UsageError
from budgetft.model import Model
from budgetft.workload import Shape, Workload

if TYPE_CHECKING:
    from transformers import ProcessorMixin

WORST, TYPICAL = 64, 64
"""How many shapes of each kind a workload keeps: enough for the largest micro-batch that a small card holds."""


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
    sizes: dict[str, tuple[int, int]] = {}
    shapes, problems = [], []
    for example in examples:
        try:
            shapes.append(_shape(example, processor, model, contract, sizes))
        except UsageError as error:
            problems.append(f"example {example.id!r}: {error.message}")
        on_example()
    if problems:
        raise problem_report("cannot measure the examples", problems)
    return shapes


def shrunk(examples: Iterable[Example], model: Model, contract: Contract) -> int:
    """How many examples have an image that ``contract.max_pixels`` makes smaller than the model's own limit would."""
    own = contract.replace(max_pixels=model.max_pixels)
    smaller: dict[str, bool] = {}

    def is_smaller(path: str) -> bool:
        if path not in smaller:
            size = image_size(path)
            smaller[path] = resized_image_size(path, size, model, contract) != resized_image_size(path, size, model, own)
        return smaller[path]

    return sum(any(is_smaller(path) for path in example.images) for example in examples)


def kinds_of(examples: Iterable[Example]) -> dict[str, int]:
    """How many of ``examples`` have more than one answer, a system text, no image, a video, or boxes of no stated scale."""
    found: dict[str, int] = dict.fromkeys(("several_turns", "system_text", "no_image", "video", "boxes_as_written"), 0)
    for example in examples:
        roles = [message.role for message in example.conversation]
        found["several_turns"] += roles.count("assistant") > 1
        found["system_text"] += "system" in roles
        found["no_image"] += not example.images
        found["video"] += any(part.type == "video" for message in example.conversation for part in message.media)
        found["boxes_as_written"] += has_boxes(example)
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


def _shape(
    example: Example,
    processor: "ProcessorMixin",
    model: Model,
    contract: Contract,
    sizes: dict[str, tuple[int, int]],
) -> Shape:
    found = problems_of(example)
    if found:
        raise UsageError("; ".join(found))
    images = block_sizes(example, model, contract, sizes)
    total, learned = text_tokens(short_segments(example, processor, model, contract), processor)
    media = media_of(example)
    alone = len(media) == 1 and media[0].is_video
    return Shape(
        images=tuple(images),
        text_tokens=total - len(images),
        supervised_tokens=learned,
        frames=len(example.images) if alone else None,
    )


def text_tokens(texts: Iterable[Segment], processor: "ProcessorMixin") -> tuple[int, int]:
    """Tokens of all ``texts``, each tokenized by itself, and of those that are learned."""
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    counted = [(len(tokenizer(one.text, add_special_tokens=False).input_ids), one.learned) for one in texts]
    return sum(count for count, _ in counted), sum(count for count, learned in counted if learned)
