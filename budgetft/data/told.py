"""What the processor of any family writes into the text in place of a picture, found out by running it on noise.

Shapes: t tokens of one example.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from budgetft.data import recipe
from budgetft.errors import BudgetftError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PilImage

Size = tuple[int, int]
_OF_MEDIA = ("image", "img", "video", "audio", "vision", "boi", "eoi", "boa", "eoa", "tile", "row_", "fake")
"""In names of tokens that processors write around a picture, or look for."""


@dataclass(frozen=True)
class Told:
    """One picture in the text."""

    ids: tuple[int, ...]
    """Placeholders and marks."""
    runs: tuple[int, ...]
    """How many placeholders stand together, run by run."""
    brief: str
    """The same as text, with one placeholder for every run."""

    @property
    def tokens(self) -> int:
        """Placeholders: visual tokens."""
        return sum(self.runs)


@lru_cache(maxsize=8)
def run_on_noise(
    processor: Any, placeholder: int, sizes: tuple[Size, ...], seed: int = 0
) -> "tuple[tuple[tuple[int, ...], ...], dict[str, torch.Tensor]]":
    """Ids that stand for each picture of one example of ``sizes``, (width, height), and the inputs that describe them.

    Raises ``UsageError`` for a size that the processor cannot take.
    """
    return run_on(processor, placeholder, [recipe.noise(*size, seed + number) for number, size in enumerate(sizes)])


def run_on(
    processor: Any, placeholder: int, pictures: "Sequence[PilImage]"
) -> "tuple[tuple[tuple[int, ...], ...], dict[str, torch.Tensor]]":
    """The same of real ``pictures``."""
    sizes = [picture.size for picture in pictures]
    between, between_id = separator(processor, placeholder)
    mark = recipe.image_mark(processor, placeholder)
    text = between + between.join([mark] * len(sizes)) + between
    try:
        made = processor(images=[list(pictures)], text=[text], return_tensors="pt", add_special_tokens=False)
    except Exception as error:  # processors raise many kinds for pictures that they cannot take
        recipe.tokens_of(processor, placeholder, sizes)  # which says what it would take
        raise BudgetftError(f"the processor refuses pictures: {type(error).__name__}: {str(error)[:160]}") from None
    parts: list[list[int]] = [[]]
    for token in made["input_ids"][0].tolist():
        if token == between_id:
            parts.append([])
        else:
            parts[-1].append(token)
    parts = parts[1 : len(sizes) + 1]
    if len(parts) != len(sizes) or not all(placeholder in part for part in parts):
        raise BudgetftError(f"the processor does not write {len(sizes)} pictures into the text as {mark}")
    inputs = {name: value for name, value in made.items() if name not in recipe.TEXT_INPUTS}
    return tuple(map(tuple, parts)), inputs


def separator(processor: Any, placeholder: int) -> tuple[str, int]:
    """A special token, and its id, that no processor writes around a picture and no white space sticks to."""
    tokenizer = processor.tokenizer
    known = tokenizer.added_tokens_decoder
    first = [one for one in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id) if one is not None]
    for number in dict.fromkeys([*first, *sorted(known)]):
        token = known.get(number)
        if number == placeholder or token is None or not token.special or token.lstrip or token.rstrip:
            continue
        if not any(part in token.content.lower() for part in _OF_MEDIA):
            return token.content, number
    raise BudgetftError("the model's tokenizer has no special token beside those of images")


def pictures_told(processor: Any, placeholder: int, sizes: Sequence[Size]) -> list[Told]:
    """Each picture of one example of ``sizes``, (width, height) as the processor is given them.

    Each size is run once, alone or beside another: some processors cut a picture that is alone into tiles. Where a picture is
    told by its place among many, all are run together.
    """
    if len(sizes) > 1 and not _told_alike(processor, placeholder, len(sizes)):
        return [_told(processor, placeholder, ids) for ids in run_on_noise(processor, placeholder, tuple(sizes))[0]]
    return [_of_size(processor, placeholder, size, min(2, len(sizes))) for size in sizes]


def tokens_alike(processor: Any, placeholder: int, sizes: Sequence[Size]) -> tuple[tuple[int, ...], int]:
    """Visual tokens of each picture, and text tokens that all of them bring."""
    told = pictures_told(processor, placeholder, sizes)
    return tuple(one.tokens for one in told), sum(len(one.ids) - one.tokens for one in told)


@lru_cache(maxsize=64)
def _told_alike(processor: Any, placeholder: int, count: int) -> bool:
    """Whether each of ``count`` pictures of one size is told as the first of two: some processors number them."""
    size = (640, 480)
    pair, all_of_them = (run_on_noise(processor, placeholder, (size,) * number)[0] for number in (2, count))
    return {*pair, *all_of_them} == {pair[0]}


@lru_cache(maxsize=4096)
def _of_size(processor: Any, placeholder: int, size: Size, count: int) -> Told:
    return _told(processor, placeholder, run_on_noise(processor, placeholder, (size,) * count)[0][0])


def _told(processor: Any, placeholder: int, ids: tuple[int, ...]) -> Told:
    if ids[-1] == processor.tokenizer.bos_token_id:  # PaliGemma: what starts the text comes after its pictures
        ids = ids[:-1]
    runs = tuple(len(list(group)) for token, group in groupby(ids) if token == placeholder)
    short = [token for token, group in groupby(ids) for token in ([token] if token == placeholder else group)]
    return Told(ids=ids, runs=runs, brief=_as_text(processor.tokenizer, short))


def _as_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """``ids`` as the text that is tokenized into them. Raises ``BudgetftError`` where there is none."""
    known = tokenizer.added_tokens_decoder
    parts = []
    for is_mark, group in groupby(ids, key=known.__contains__):
        each = list(group)
        parts.append("".join(known[one].content for one in each) if is_mark else tokenizer.decode(each))
    text = "".join(parts)
    if tokenizer(text, add_special_tokens=False).input_ids != list(ids):
        raise BudgetftError(f"the model's tokenizer does not read {text[:60]!r} as it is written around a picture")
    return text


def without_pixels(inputs: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """What is told of pictures beside their pixels, such as grids."""
    return {name: value for name, value in inputs.items() if not name.startswith("pixel")}
