"""What the processor of any family makes of pictures, found out by running it on noise of their sizes.

No family's arithmetic is written down here: placeholders are counted in what the processor returns. A processor can be made
without the hub from a description folder, with the special tokens of ``tokens.json`` and a toy vocabulary for all other text.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from math import isqrt
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from budgetft.data.toy_tokens import toy_tokenizer
from budgetft.errors import BudgetftError, UsageError
from budgetft.value import Value, read_json

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import ProcessorMixin

TEXT_INPUTS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "token_type_ids",
    "mm_token_type_ids",
    "cross_attention_mask",
    "labels",
)
"""Model inputs as long as the text; all others describe pictures."""

_LARGEST_TRIED = 4096
"""Pixels of a side up to which a size that works is looked for when one does not."""


class Seen(Value):
    """What a processor makes of the pictures of one example."""

    tokens: tuple[int, ...]
    """Placeholders of each picture, which the model replaces by what its tower made."""
    text_tokens: int
    """Other tokens that the processor adds: marks around a picture, ends of rows, names of tiles."""
    inputs: dict[str, Any]
    """The model's inputs that describe the pictures, by name; tensors."""


# -- a processor without the hub ------------------------------------------------------------------------------------------


def build_processor(folder: Path) -> "ProcessorMixin":
    """The processor that a description folder describes, with a toy vocabulary; nothing is downloaded.

    The folder holds ``config.json``, ``processor_config.json`` or ``preprocessor_config.json``, and ``tokens.json`` (special
    tokens with their ids). Text comes out as bytes, two line ends as one token; special tokens have their true ids.
    Raises ``UsageError`` where a file is missing or wrong, ``BudgetftError`` where a package is missing.
    """
    config = read_json(folder / "config.json")
    if not (folder / "tokens.json").is_file():
        raise UsageError(
            f"{folder} has no tokens.json, so its processor cannot be made",
            hint="use a bundled model (budgetft models), or a folder with the model's own tokenizer",
        )
    tokens = read_json(folder / "tokens.json")
    placeholder = placeholder_of(config)
    if placeholder not in tokens.values():
        raise UsageError(f"{folder / 'tokens.json'}: no token has the id {placeholder}, the placeholder of config.json")
    options = _options(folder)
    kind = _processor_class(options.get("processor_class"), config, folder)
    parts = {"tokenizer": toy_tokenizer(tokens, placeholder)}
    for name, make in _MAKERS.items():
        if name in inspect.signature(kind.__init__).parameters:
            parts[name] = _made(make, folder, config)
    known = inspect.signature(kind.__init__).parameters
    chosen = {name: value for name, value in options.items() if name in known and name not in parts and name != "chat_template"}
    return _made(_without_num2words, kind, {**parts, **chosen})


def _options(folder: Path) -> dict[str, Any]:
    """What the folder's files say of the processor itself; the newer file wins."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found |= read_json(folder / name)
    if not found:
        raise UsageError(f"{folder} has neither processor_config.json nor preprocessor_config.json")
    return found


def _processor_class(named: Any, config: Mapping[str, Any], folder: Path) -> Any:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES  # pyright: ignore

    name = named or PROCESSOR_MAPPING_NAMES.get(str(config.get("model_type")))
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if kind is None:
        said = f"no processor {name!r}" if name else f"no processor for the type {config.get('model_type')!r}"
        raise UsageError(
            f"{folder}: transformers {transformers.__version__} has {said}",
            hint="a newer transformers may: pip install -U transformers",
        )
    return kind


def _image_processor(folder: Path, config: Mapping[str, Any]) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _video_processor(folder: Path, config: Mapping[str, Any]) -> Any:
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES  # pyright: ignore

    return _by_type(VIDEO_PROCESSOR_MAPPING_NAMES, config)


def _feature_extractor(folder: Path, config: Mapping[str, Any]) -> Any:
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES  # pyright: ignore

    return _by_type(FEATURE_EXTRACTOR_MAPPING_NAMES, config)


def _by_type(names: Any, config: Mapping[str, Any]) -> Any:
    """A part that pictures do not need, with its type's defaults. Some releases name one class, some one a backend."""
    import transformers

    named = names[config["model_type"]]
    return getattr(transformers, next(iter(named.values())) if isinstance(named, Mapping) else named)()


_MAKERS: dict[str, Callable[[Path, Mapping[str, Any]], Any]] = {
    "image_processor": _image_processor,
    "video_processor": _video_processor,
    "feature_extractor": _feature_extractor,
}


def _without_num2words(kind: Any, parts: Mapping[str, Any]) -> Any:
    """The processor. SmolVLM's wants a package that spells numbers, for videos only; while it is made a stand-in is there."""
    home = inspect.getmodule(kind)
    lacks = getattr(home, "num2words", kind) is None
    if lacks:
        setattr(home, "num2words", str)  # noqa: B010
    try:
        return kind(**parts)
    finally:
        if lacks:
            setattr(home, "num2words", None)  # noqa: B010


def _made(make: Callable[..., Any], *arguments: Any) -> Any:
    """What ``make`` returns; whatever transformers raises becomes one sentence."""
    try:
        return make(*arguments)
    except ImportError as error:
        wanted = " ".join(str(error).split())[:200]
        raise BudgetftError(
            f"this processor needs a package that is not installed: {wanted}", hint="install it with pip"
        ) from None
    except BudgetftError:
        raise
    except Exception as error:  # processors raise many kinds; all mean the same to the user
        said = shorten(str(error), 200, placeholder="...")
        raise BudgetftError(
            f"the processor cannot be made: {type(error).__name__}: {said}",
            hint="check the folder's processor_config.json, and that transformers is new enough for this type",
        ) from None


def placeholder_of(config: Any) -> int:
    """The id of the image placeholder in a config: a transformers config or the object of ``config.json``."""
    for name in ("image_token_id", "image_token_index"):
        found = config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
        if isinstance(found, int):
            return found
    raise UsageError("the config names no image placeholder (image_token_id), so this is no model for pictures")


# -- pictures ------------------------------------------------------------------------------------------------------------


def shrunk(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """The size of a picture of ``width`` x ``height`` when at most ``max_pixels`` may reach the processor, aspect kept.

    A picture that is small enough stays as it is. Sides are rounded down, to 1 at least.
    """
    if min(width, height) < 1 or (max_pixels is not None and max_pixels < 1):
        raise UsageError(f"a picture of {width}x{height} within {max_pixels} pixels is not possible")
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    new_width = min(max(1, isqrt(max_pixels * width // height)), max_pixels)
    return new_width, max(1, min(max_pixels // new_width, round(height * new_width / width)))


def noise(width: int, height: int, seed: int = 0) -> "Image":
    """An RGB picture of seeded noise: some processors take a blank one for padding and drop it."""
    import numpy as np
    from PIL import Image as pictures

    return pictures.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def seen(processor: "ProcessorMixin", placeholder_id: int, sizes: Sequence[tuple[int, int]], *, seed: int = 0) -> Seen:
    """What ``processor`` makes of one example with pictures of these (width, height) in this order, by running it on noise.

    Pictures are run together, as some processors cut one by how many others there are. Remembered by processor and sizes: the
    tensors are shared by all callers, so none may change them in place.
    Raises ``UsageError`` that names a picture that the processor cannot take, and a size that it can.
    """
    if not sizes:
        return Seen(tokens=(), text_tokens=0, inputs={})
    tokens, text_tokens, inputs = _run(processor, placeholder_id, _sizes(sizes), seed)
    return Seen(tokens=tokens, text_tokens=text_tokens, inputs=dict(inputs))


def tokens_of(
    processor: "ProcessorMixin", placeholder_id: int, sizes: Sequence[tuple[int, int]]
) -> tuple[tuple[int, ...], int]:
    """The counts of :func:`seen`, without the pictures' inputs: remembered for many more sizes."""
    return _counted(processor, placeholder_id, _sizes(sizes)) if sizes else ((), 0)


def _sizes(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    for width, height in sizes:
        if min(width, height) < 1:
            raise UsageError(f"a picture of {width}x{height} has no pixels")
    return tuple((int(width), int(height)) for width, height in sizes)


@lru_cache(maxsize=4096)
def _counted(processor: Any, placeholder_id: int, sizes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, ...], int]:
    return _run(processor, placeholder_id, sizes, 0)[:2]


@lru_cache(maxsize=8)
def _run(
    processor: Any, placeholder_id: int, sizes: tuple[tuple[int, int], ...], seed: int
) -> "tuple[tuple[int, ...], int, dict[str, torch.Tensor]]":
    """Placeholders of each picture, other tokens added, and the inputs that describe the pictures."""
    try:
        return _ran(processor, placeholder_id, sizes, seed)
    except Exception as error:  # processors raise many kinds for pictures that they cannot take
        raise _refused(processor, placeholder_id, sizes, error) from None


def _ran(
    processor: Any, placeholder_id: int, sizes: tuple[tuple[int, int], ...], seed: int
) -> "tuple[tuple[int, ...], int, dict[str, torch.Tensor]]":
    between, between_id = _separator(processor.tokenizer, placeholder_id)
    text = between.join([image_mark(processor, placeholder_id)] * len(sizes))
    pictures = [noise(width, height, seed + number) for number, (width, height) in enumerate(sizes)]
    made = processor(images=[pictures], text=[text], return_tensors="pt", add_special_tokens=False)
    ids = made["input_ids"][0].tolist()
    parts: list[int] = [0]
    for token in ids:
        if token == between_id:
            parts.append(0)
        else:
            parts[-1] += token == placeholder_id
    if len(parts) != len(sizes) or not all(parts):
        raise ValueError(f"it leaves {parts} tokens of {len(sizes)} pictures")
    others = len(ids) - sum(parts) - (len(sizes) - 1)
    return tuple(parts), others, {name: value for name, value in made.items() if name not in TEXT_INPUTS}


def image_mark(processor: Any, placeholder_id: int) -> str:
    """What stands for a picture in the text that a processor is given; not the placeholder in every family."""
    mark = getattr(processor, "image_token", None)
    return mark if isinstance(mark, str) else processor.tokenizer.convert_ids_to_tokens(placeholder_id)


def _separator(tokenizer: Any, placeholder_id: int) -> tuple[str, int]:
    """A special token, of one id in any vocabulary, that no processor writes around a picture."""
    for token in (tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token):
        found = tokenizer.convert_tokens_to_ids(token) if token else None
        if isinstance(found, int) and found != placeholder_id:
            return token, found
    raise ValueError("its tokenizer has no end token")


def _refused(processor: Any, placeholder_id: int, sizes: tuple[tuple[int, int], ...], error: Exception) -> BudgetftError:
    """One sentence about the first picture that the processor cannot take even alone, with the nearest size that it can."""
    said = shorten(f"{type(error).__name__}: {error}", 120, placeholder="...")
    for width, height in sizes:
        if _works(processor, placeholder_id, (width, height)):
            continue
        side = min(width, height)
        while side < _LARGEST_TRIED:
            side *= 2
            wider = (max(width, side), max(height, side))
            if _works(processor, placeholder_id, wider):
                return UsageError(
                    f"the processor cannot take a picture of {width}x{height} ({said})",
                    hint=f"pictures of {wider[0]}x{wider[1]} work: leave smaller or more elongated ones out, or pad them",
                )
        return BudgetftError(f"the processor takes no picture of {width}x{height} and none larger ({said})")
    listed = ", ".join(f"{width}x{height}" for width, height in sizes)
    return UsageError(f"the processor takes each of the pictures {listed}, but not all in one example ({said})")


def _works(processor: Any, placeholder_id: int, size: tuple[int, int]) -> bool:
    try:
        _ran(processor, placeholder_id, (size,), 0)
    except Exception:
        return False
    return True


# -- several examples ----------------------------------------------------------------------------------------------------


def joined(parts: "Sequence[Mapping[str, torch.Tensor]]", *, stack_on: int = 0) -> "dict[str, torch.Tensor]":
    """The image inputs of several examples as those of one batch, as the processor itself makes them.

    One after another on dimension 0, with zeros where other dimensions differ. ``stack_on``: the dimension of
    ``pixel_values`` where a family packs pictures on another (MiniCPM-V: -1). Examples without pictures are left out.
    """
    import torch

    def padded(part: torch.Tensor, most: list[int], axis: int) -> torch.Tensor:
        room = [(0, 0 if dim == axis else most[dim] - part.shape[dim]) for dim in range(part.dim())]
        flat = [side for pair in reversed(room) for side in pair]
        return torch.nn.functional.pad(part, flat) if any(flat) else part

    names = dict.fromkeys(name for part in parts for name in part)
    out: dict[str, torch.Tensor] = {}
    for name in names:
        found = [part[name] for part in parts if name in part]
        dims = found[0].dim()
        if any(part.dim() != dims for part in found):
            raise ValueError(f"{name} has {sorted({part.dim() for part in found})} dimensions in different examples")
        axis = (stack_on if name.startswith("pixel_values") else 0) % dims
        most = [max(part.shape[dim] for part in found) for dim in range(dims)]
        out[name] = torch.cat([padded(part, most, axis) for part in found], dim=axis)
    if "aspect_ratio_mask" in out:  # Llama 3.2 Vision: a tile of a picture that is missing is not masked, as none may be
        out["aspect_ratio_mask"][..., 0] = 1
    return out
