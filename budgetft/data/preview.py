"""Examples as a model is given them: the text with its marks, what is learned, images and their sizes, token counts."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal
from unicodedata import category

from budgetft.contract import Contract
from budgetft.data.boxes import Outline, has_boxes, outlines
from budgetft.data.conversation import Segment
from budgetft.data.encode_other import read_as
from budgetft.data.examples import Example
from budgetft.data.media.images import image_size
from budgetft.data.problems import problems_of
from budgetft.data.recipe import image_mark, placeholder_of
from budgetft.data.stats import text_tokens
from budgetft.data.survey import is_resized
from budgetft.data.visuals import Medium, block_sizes, media_of, short_segments
from budgetft.errors import UsageError
from budgetft.model import Model

if TYPE_CHECKING:
    from transformers import ProcessorMixin

_MARK = r"<\|[a-z_]+\|>"
_JOINERS = "\u200c\u200d"
"""Unseen by themselves, but many scripts and emoji are written with them."""
_OUTSIDE = 0.01
"""Of a side: how far a box may reach beyond its picture, for it was rounded."""


@dataclass(frozen=True)
class Piece:
    """A piece of the text."""

    text: str
    learned: bool
    kind: Literal["text", "mark", "medium"] = "text"
    """What the data or the template says, a mark of the model's own, or ``[image 1]`` where that stands."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An image or a video as the model sees it."""

    name: str
    """``image 1``, ``video 2``."""
    medium: Medium
    stored: tuple[int, int]
    """Width and height of its file in pixels, upright."""
    size: tuple[int, int]
    tokens: int
    outlines: tuple[Outline, ...]
    """Of the boxes and points that texts tell of it."""

    @property
    def frames(self) -> int:
        """0 of an image."""
        return len(self.medium.files) if self.medium.is_video else 0


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One example as the model is given it."""

    example: Example
    pieces: tuple[Piece, ...] = ()
    shown: tuple[Shown, ...] = ()
    text_tokens: int = 0
    visual_tokens: int = 0
    learned_tokens: int = 0
    most_tokens: int = 0
    """That an example may have."""
    warnings: tuple[str, ...] = ()
    """What the user should look at."""
    refusal: str | None = None
    """Why the model cannot be given it at all."""

    @property
    def tokens(self) -> int:
        return self.text_tokens + self.visual_tokens


def preview(
    example: Example, processor: "ProcessorMixin", model: Model, contract: Contract, *, answered: bool = True
) -> Preview:
    """What ``model`` is given of ``example``: as it is learned from, or without an answer as it is predicted from.

    Raises ``UsageError`` where it cannot be encoded.
    """
    answered = answered and not problems_of(example)
    if model.packed:
        sizes = block_sizes(example, model, contract)
        cut = short_segments(example, processor, model, contract, answered=answered)
        total, learned = text_tokens(cut, processor)
        text, counts = total - len(sizes), None
        pads = [processor.image_token, processor.video_token]  # pyright: ignore[reportAttributeAccessIssue]
    else:
        with_ids = read_as(example, processor, model, contract, answered=answered)
        sizes, cut, counts = list(with_ids.sizes), list(with_ids.pieces), with_ids.tokens
        text, learned, pads = with_ids.text_tokens, sum(with_ids.learned), [image_mark(processor, placeholder_of(model.config))]
    shown = _shown(example, sizes, model, counts)
    visual = sum(one.tokens for one in shown)
    found = Preview(
        example=example,
        pieces=tuple(_pieces(cut, shown, pads, _marks_in(cut, processor, model), model)),
        shown=tuple(shown),
        text_tokens=text,
        visual_tokens=visual,
        learned_tokens=learned,
        most_tokens=contract.max_length,
    )
    return replace(found, warnings=tuple(_warnings(found, model)))


def _marks_in(cut: Sequence[Segment], processor: "ProcessorMixin", model: Model) -> str:
    """A pattern of the marks of the model's own in the text."""
    if model.packed:
        return _MARK
    tokenizer: Any = processor.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    text = "".join(one.text for one in cut)
    there = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special and token.content in text}
    return "|".join(map(re.escape, sorted(there, key=len, reverse=True))) or _MARK


def previews(examples: Iterable[Example], processor: "ProcessorMixin", model: Model, contract: Contract) -> Iterator[Preview]:
    """The same of many; what cannot be encoded is shown with the reason."""
    for example in examples:
        try:
            yield preview(example, processor, model, contract)
        except UsageError as error:
            yield Preview(example=example, most_tokens=contract.max_length, refusal=error.message)


def visible(text: str) -> str:
    """``text`` with what a terminal would obey and a reader could not see written as Python writes it."""
    return "".join(_escape(char) if not char.isprintable() and _is_unseen(char) else char for char in text)


def _is_unseen(char: str) -> bool:
    return char not in "\n\t" and char not in _JOINERS and category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(char: str) -> str:
    return repr(char)[1:-1]


def _shown(example: Example, sizes: Sequence[tuple[int, int]], model: Model, counts: Sequence[int] | None) -> list[Shown]:
    """``counts``: visual tokens of each image, where they do not follow from its size."""
    media = media_of(example)
    left, first = iter(sizes), []
    for medium in media:
        first.append([next(left) for _ in medium.blocks(model)])
    stored = [image_size(medium.files[0]) for medium in media]
    boxes = outlines(example, stored, [sizes[0] for sizes in first], model)
    numbers = {True: 0, False: 0}
    found = []
    for place, (medium, blocks, own, told) in enumerate(zip(media, first, stored, boxes, strict=True)):
        numbers[medium.is_video] += 1
        width, height = blocks[0]
        by_size = len(blocks) * (width // model.pixel_step) * (height // model.pixel_step)
        found.append(
            Shown(
                name=f"{'video' if medium.is_video else 'image'} {numbers[medium.is_video]}",
                medium=medium,
                stored=own,
                size=(width, height),
                tokens=by_size if counts is None else counts[place],
                outlines=tuple(told),
            )
        )
    return found


def _pieces(cut: Sequence[Segment], shown: Sequence[Shown], pads: Sequence[str], marks: str, model: Model) -> Iterator[Piece]:
    """The text with the ``marks`` of the model told apart, and each run of placeholders as the name of what it stands for."""
    special = re.compile("|".join([*(f"(?P<pad{place}>(?:{re.escape(pad)})+)" for place, pad in enumerate(pads)), marks]))
    counts = [len(one.medium.blocks(model)) for one in shown]
    places = [(one.name, part, count) for one, count in zip(shown, counts, strict=True) for part in range(count)]
    for one in cut:
        start = 0
        for found in special.finditer(one.text):
            yield from _text(one.text[start : found.start()], one)
            start = found.end()
            if any(found.groupdict().values()):
                run = sum(found[0].count(pad) for pad in pads)
                yield from _places(places[:run], one)
                places = places[run:]
            else:
                yield Piece(found[0], one.learned, "mark")
        yield from _text(one.text[start:], one)


def _text(text: str, segment: Segment) -> Iterator[Piece]:
    if text:
        yield Piece(text, segment.learned)


def _places(run: Sequence[tuple[str, int, int]], segment: Segment) -> Iterator[Piece]:
    """``[video 1]``, or ``[video 1, part 2 of 3]`` where its parts do not stand together."""
    for name in dict.fromkeys(name for name, _, _ in run):
        parts = [(part, count) for other, part, count in run if other == name]
        whole = len(parts) == parts[0][1]
        yield Piece(f"[{name}]" if whole else f"[{name}, part {parts[0][0] + 1} of {parts[0][1]}]", segment.learned, "medium")


def _warnings(one: Preview, model: Model) -> Iterator[str]:
    wrong, unlearned = problems_of(one.example, answered=False), problems_of(one.example)
    if wrong:
        yield f"cannot be used: {'; '.join(wrong)}"
    elif unlearned:
        yield f"for prediction alone, training refuses it: {'; '.join(unlearned)}"
    if one.tokens > one.most_tokens:
        yield f"too long: {one.tokens} of {one.most_tokens} tokens; it is refused, never cut"
    if has_boxes(one.example):
        resized = next((each for each in one.shown if is_resized(each.stored, each.size, model)), None)
        if resized is not None:
            sizes = f"{_size(resized.stored)} to {_size(resized.size)}"
            yield (
                f"its boxes are told as they are written, and {resized.name} goes from {sizes}: if they count the pixels of"
                " the image as it is, convert the data with --boxes pixels"
            )
    outside = [each.name for each in one.shown for outline in each.outlines if _reaches_out(outline)]
    if outside:
        names = ", ".join(dict.fromkeys(outside))
        yield f"boxes or points ({len(outside)}) reach beyond {names}, as this model counts: is their scale right?"


def _reaches_out(outline: Outline) -> bool:
    return not all(-_OUTSIDE <= number <= 1 + _OUTSIDE for point in outline for number in point)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
