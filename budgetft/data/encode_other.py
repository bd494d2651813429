"""An example of any family but Qwen-VL as tensors, by the model's own processor and chat template.

Ids are those of the text with each picture written as the processor writes it. With pixels the processor itself is run on the
real pictures, and must come to the same ids. Shapes: t tokens of one example, v visual tokens, f numbers in a visual token's
features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from budgetft.contract import Contract
from budgetft.data import recipe
from budgetft.data.boxes import rescaled
from budgetft.data.conversation import Segment
from budgetft.data.examples import Example
from budgetft.data.media.images import image_size, load_image, resized_image_size
from budgetft.data.other_processor import check_text
from budgetft.data.told import Told, pictures_told, run_on, run_on_noise, without_pixels
from budgetft.data.turns import turns
from budgetft.errors import BudgetftError, UsageError
from budgetft.model import Model

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as PilImage

    from budgetft.data.visuals import FeaturesOf

TYPES = "mm_token_type_ids"


@dataclass(frozen=True)
class Read:
    """An example as its model reads it."""

    sizes: tuple[tuple[int, int], ...]
    """(width, height) of each picture in pixels, as the processor is given it."""
    told: tuple[Told, ...]
    pieces: tuple[Segment, ...]
    """With the processor's marks for pictures."""
    short: tuple[int, ...]
    """Ids, with one placeholder for each run of them."""
    learned: tuple[bool, ...]
    """Of each of these."""
    joint: bool
    """Whether the pieces are tokenized together: no token reaches from one into the next."""
    special: bool
    """Whether the tokenizer adds its own marks, as the template writes none."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Visual tokens of each picture."""
        return tuple(one.tokens for one in self.told)

    @property
    def text_tokens(self) -> int:
        """All others."""
        return len(self.short) - sum(len(one.runs) for one in self.told)


def read_as(
    example: Example,
    processor: Any,
    model: Model,
    contract: Contract,
    known: dict[str, tuple[int, int]] | None = None,
    *,
    answered: bool = True,
) -> Read:
    """What the model is given of ``example``, from the headers of its pictures; ``known`` sizes spare reading one again.

    Raises ``UsageError`` for videos, for what the model's template or processor cannot take, and where there is no vocabulary.
    """
    check_text(processor, model)
    if any(part.type == "video" for message in example.conversation for part in message.media):
        raise UsageError(
            f"videos are for the Qwen-VL families; {model.name} takes images",
            hint="give the frames as a list of images, or take a Qwen-VL model",
        )
    known = {} if known is None else known
    for path in example.images:
        if path not in known:
            known[path] = resized_image_size(path, image_size(path), model, contract)
    sizes = tuple(known[path] for path in example.images)
    said = example.conversation
    if example.box_scale is not None:
        said = rescaled(said, example.box_scale, [image_size(path) for path in example.images], sizes, model)
    if not answered and said[-1].role == "assistant":
        said = said[:-1]
    pieces = turns(said, processor, model, tools=example.tools, answered=answered)
    placeholder = recipe.placeholder_of(model.config)
    mark = recipe.image_mark(processor, placeholder)
    found = sum(piece.text.count(mark) for piece in pieces)
    if found != len(sizes):
        raise UsageError(
            f"the text has {found} marks of images ({mark}), the example {len(sizes)} images",
            hint=f"leave {mark} out of the texts: images are put where the example has them",
        )
    told = tuple(pictures_told(processor, placeholder, sizes)) if sizes else ()
    return _read(sizes, told, pieces, processor, model)


def _read(
    sizes: tuple[tuple[int, int], ...],
    told: tuple[Told, ...],
    pieces: Sequence[Segment],
    processor: Any,
    model: Model,
) -> Read:
    placeholder, chats = recipe.placeholder_of(model.config), not model.facts.answers_marked
    mark, pictures = recipe.image_mark(processor, placeholder), iter(told)
    texts = ["".join(next(pictures).brief if part is None else part for part in _parts(one.text, mark)) for one in pieces]
    bos = processor.tokenizer.bos_token
    special = not (bos is not None and texts[0].startswith(bos)) and chats
    ids, ends = _together(texts, processor.tokenizer, special)
    joint = ends is not None and chats
    if not joint or ends is None:
        each = [
            processor.tokenizer(text, add_special_tokens=special and not place).input_ids for place, text in enumerate(texts)
        ]
        ids = [token for part in each for token in part]
        ends = [sum(map(len, each[: place + 1])) for place in range(len(each))]
    learned = [one.learned for one, start, end in zip(pieces, [0, *ends], ends, strict=False) for _ in range(end - start)]
    if ids.count(placeholder) != sum(len(one.runs) for one in told):
        raise UsageError(f"the text holds the model's own placeholder of images: {ids.count(placeholder)} of them")
    return Read(sizes, told, tuple(pieces), tuple(ids), tuple(learned), joint, special)


def _parts(text: str, mark: str) -> list[str | None]:
    """``text`` between the marks, and None for each of them."""
    first, *others = text.split(mark)
    return [first, *(part for other in others for part in (None, other))]


def _together(texts: Sequence[str], tokenizer: Any, special: bool) -> tuple[list[int], list[int] | None]:
    """Ids of all ``texts`` as one, and where each ends; None where a token reaches from one into the next."""
    ids = tokenizer("".join(texts), add_special_tokens=special).input_ids
    ends = []
    for place in range(1, len(texts)):
        before = tokenizer("".join(texts[:place]), add_special_tokens=special).input_ids
        if ids[: len(before)] != before:
            return ids, None
        ends.append(len(before))
    return ids, [*ends, len(ids)]


def encoded_fields(
    example: Example,
    processor: Any,
    model: Model,
    contract: Contract,
    *,
    features_of: "FeaturesOf | None" = None,
    answered: bool = True,
) -> "dict[str, Any]":
    """``input_ids``, ``learned`` (bool), ``mm_token_type_ids``, all (t,), and ``images`` of an example; with ``features_of``
    also ``features`` (v, f), and images without pixels. Raises ``UsageError``."""
    import torch

    read = read_as(example, processor, model, contract, answered=answered)
    placeholder = recipe.placeholder_of(model.config)
    short = torch.tensor(read.short, dtype=torch.int64)
    times = torch.ones_like(short)
    times[short == placeholder] = torch.tensor([run for one in read.told for run in one.runs], dtype=torch.int64)
    ids = short.repeat_interleave(times)
    fields = {
        "input_ids": ids,
        "learned": torch.tensor(read.learned).repeat_interleave(times),
        "mm_token_type_ids": (ids == placeholder).long(),
        "images": {},
    }
    if features_of is not None:
        return fields | _with_features(example, read, processor, model, features_of)
    if read.sizes:
        fields["images"] = _with_pixels(example, read, ids, processor, model)
    return fields


def _with_pixels(
    example: Example, read: Read, ids_T: "torch.Tensor", processor: Any, model: Model
) -> "dict[str, torch.Tensor]":
    """What the processor makes of the real pictures. Raises ``UsageError`` where it writes the text otherwise."""
    pictures = {path: picture(path, size) for path, size in zip(example.images, read.sizes, strict=True)}
    images = [[pictures[path] for path in example.images]]
    if not model.facts.answers_marked:
        text = "".join(one.text for one in read.pieces)
        given: dict[str, Any] = {"text": [text], "add_special_tokens": read.special}
    else:  # PaliGemma writes what starts the text and ends it itself
        prompt, *answers = (one.text for one in read.pieces)
        given = {"text": [prompt.removesuffix("\n").replace(processor.tokenizer.bos_token, "", 1)]}
        given |= {"suffix": [answers[0].removesuffix(processor.tokenizer.eos_token)]} if answers else {}
    try:
        made = processor(images=images, return_tensors="pt", **given)
    except Exception as error:  # processors raise many kinds; all mean the same to the user
        raise UsageError(f"the model's processor refuses it: {type(error).__name__}: {str(error)[:160]}") from None
    own, placeholder = made["input_ids"][0], recipe.placeholder_of(model.config)
    same = own.tolist() == ids_T.tolist() if read.joint else int((own == placeholder).sum()) == sum(read.tokens)
    if not same:
        raise BudgetftError(
            f"example {example.id!r}: the processor of {model.name} writes its images otherwise than it did of noise in their"
            f" sizes: {len(own)} tokens, not {len(ids_T)}",
            hint="this is a mistake of budgetft or of the processor: please report it with the sizes of the images",
        )
    return _kept(made, ids_T, model)


def _kept(made: "Mapping[str, torch.Tensor]", ids_T: "torch.Tensor", model: Model) -> "dict[str, torch.Tensor]":
    """The inputs that describe pictures, and those as long as the text that the model wants beside the types of tokens."""
    images = {name: value for name, value in made.items() if name not in recipe.TEXT_INPUTS}
    if (across := made.get("cross_attention_mask")) is not None:  # (1, t, pictures, tiles), the same after the last picture
        more = len(ids_T) - across.shape[1]
        kept = across[:, : len(ids_T)]
        images["cross_attention_mask"] = kept if more <= 0 else _repeated_end(kept, more)
    if TYPES in made and not model.facts.verified:
        images[TYPES] = (ids_T == recipe.placeholder_of(model.config)).long()[None]
    return images


def _repeated_end(mask_1TNK: "torch.Tensor", more: int) -> "torch.Tensor":
    import torch

    return torch.cat([mask_1TNK, mask_1TNK[:, -1:].expand(-1, more, -1, -1)], dim=1)


def picture(path: str, size: tuple[int, int]) -> "PilImage":
    """The picture in ``path`` as a viewer shows it, resized to ``size`` (width, height) where it is not so large."""
    from PIL import Image

    shown = load_image(path)
    return shown if shown.size == size else shown.resize(size, Image.Resampling.BICUBIC)


def picture_inputs(path: str, processor: Any, model: Model, contract: Contract) -> "dict[str, torch.Tensor]":
    """What ``processor`` makes of the picture in ``path`` alone, as :func:`encoded_fields` does: of which features are kept."""
    size = resized_image_size(path, image_size(path), model, contract)
    return run_on(processor, recipe.placeholder_of(model.config), [picture(path, size)])[1]


def _with_features(example: Example, read: Read, processor: Any, model: Model, features_of: "FeaturesOf") -> "dict[str, Any]":
    """Features of each picture, and what else is told of them."""
    import torch

    rows = [features_of((path,)) for path in example.images]
    for path, one, wanted in zip(example.images, rows, read.tokens, strict=True):
        if len(one) != wanted:
            raise UsageError(f"image {path} has {wanted} visual tokens, its features {len(one)}")
    placeholder = recipe.placeholder_of(model.config)
    beside = without_pixels(run_on_noise(processor, placeholder, read.sizes)[1]) if read.sizes else {}
    return {"images": beside, "features": torch.cat(rows) if rows else torch.empty(0, model.feature_width)}
