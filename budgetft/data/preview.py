"""Examples as a model is given them: the text with its marks, what is learned, images and their sizes, token counts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from budgetft.contract import Contract
from budgetft.data.conversation import Segment
from budgetft.data.examples import Example
from budgetft.data.problems import problems_of
from budgetft.data.stats import text_tokens
from budgetft.data.visuals import block_sizes, media_of, short_segments
from budgetft.model import Model

if TYPE_CHECKING:
    from transformers import ProcessorMixin


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One example as the model is given it."""

    example: Example
    segments: tuple[Segment, ...]
    """The text; a run of placeholders is written as ``[image 448x336, 192 tokens]``."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height in pixels of every block, as the model sees it."""
    text_tokens: int
    visual_tokens: int
    learned_tokens: int


def preview(
    example: Example, processor: "ProcessorMixin", model: Model, contract: Contract, *, answered: bool = True
) -> Preview:
    """What ``model`` is given of ``example``. Raises ``UsageError`` where it cannot be encoded."""
    answered = answered and not problems_of(example)
    sizes = block_sizes(example, model, contract)
    cut = short_segments(example, processor, model, contract, answered=answered)
    total, learned = text_tokens(cut, processor)
    visual = [(width // model.pixel_step) * (height // model.pixel_step) for width, height in sizes]
    marks = iter(_marks(example, sizes, model))
    token = re.compile(r"<\|(?:image|video)_pad\|>")
    told = tuple(Segment(token.sub(lambda _: next(marks), one.text), one.learned) for one in cut)
    return Preview(
        example=example,
        segments=told,
        sizes=tuple(sizes),
        text_tokens=total - len(sizes),
        visual_tokens=sum(visual),
        learned_tokens=learned,
    )


def _marks(example: Example, sizes: Sequence[tuple[int, int]], model: Model) -> list[str]:
    left = iter(sizes)
    found = []
    for medium in media_of(example):
        for _ in medium.blocks(model):
            width, height = next(left)
            tokens = (width // model.pixel_step) * (height // model.pixel_step)
            kind = "frames" if medium.is_video else "image"
            found.append(f"[{kind} {width}x{height}, {tokens} tokens]")
    return found
