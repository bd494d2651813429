"""The processor of a model that is not of the Qwen-VL families: its own, or one with a toy vocabulary that only counts.

Nothing here knows a family: what a processor does to sizes is found out by running it on noise.
"""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetft.data import recipe
from budgetft.errors import BudgetftError, UsageError
from budgetft.model import Model
from budgetft.profiles import profiles_folder

if TYPE_CHECKING:
    from transformers import ProcessorMixin

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_FILES = (
    *_TOKENIZER_FILES,
    "config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.jinja",
    "tokens.json",
)
_TOY = "toy_vocabulary"
"""An attribute of processors that were made without the model's tokenizer."""
_TRIED = ((64, 64), (80, 60), (45, 80), (80, 45))
_TIMES = (4, 16)
"""Sizes, and how many times as large their sides are in further runs."""


def other_processor(model: Model) -> "ProcessorMixin":
    """The processor of ``model``, kept for as long as its files are as they were.

    It is that of its weights' folder or hub id. A bundled description, or a folder without a tokenizer, gets one with a toy
    vocabulary: see :func:`is_toy`. Raises ``UsageError`` where files are missing, ``BudgetftError`` for what cannot be loaded.
    """
    if model.weights is None:
        folder = profiles_folder() / "models" / model.name
        if not (folder / "config.json").is_file():
            raise UsageError(f"{model.name} has no folder with a processor", hint="give a folder with the model's files")
        return _toy(folder, _stamp(folder))
    folder = Path(model.weights)
    if folder.is_dir() and not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        if not (folder / "tokens.json").is_file():
            raise UsageError(
                f"{folder} has no tokenizer, so examples cannot be counted",
                hint="copy the tokenizer's files (tokenizer.json, tokenizer_config.json) of the model into it",
            )
        return _toy(folder, _stamp(folder))
    return _own(model.weights, _stamp(folder))


def _stamp(folder: Path) -> tuple[int, ...]:
    """When each file that a processor is made of was written."""
    if not folder.is_dir():
        return ()
    return tuple(path.stat().st_mtime_ns if (path := folder / name).is_file() else 0 for name in _FILES)


@lru_cache(maxsize=4)
def _toy(folder: Path, stamp: tuple[int, ...]) -> Any:
    processor: Any = recipe.build_processor(folder)
    setattr(processor, _TOY, True)
    return processor


@lru_cache(maxsize=4)
def _own(weights: str, stamp: tuple[int, ...]) -> Any:
    from transformers import AutoProcessor

    try:
        processor: Any = AutoProcessor.from_pretrained(weights, trust_remote_code=False)
    except ImportError as error:
        raise BudgetftError(
            f"the processor of {weights!r} needs a package that is not installed: {_in_one_line(error)}",
            hint="install it with pip; sizes that are typed (--image) can be planned with a bundled model (budgetft models)",
        ) from None
    except Exception as error:  # the loader raises many kinds; all mean the same to the user
        raise BudgetftError(
            f"cannot load the processor of {weights!r}: {type(error).__name__}: {_in_one_line(error)}",
            hint="check that the folder has preprocessor_config.json or processor_config.json, and the tokenizer's files",
        ) from None
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise BudgetftError(
            f"the processor of {weights!r} does not take both text and images",
            hint="check that the folder has preprocessor_config.json or processor_config.json",
        )
    if not getattr(processor, "chat_template", None):
        processor.chat_template = getattr(tokenizer, "chat_template", None)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def is_toy(processor: Any) -> bool:
    """Whether its tokenizer is a toy: enough to count pictures, not to encode text."""
    return bool(getattr(processor, _TOY, False))


def check_text(processor: Any, model: Model) -> None:
    """Raise a ``UsageError`` where ``processor`` has no vocabulary for text."""
    if is_toy(processor):
        raise UsageError(
            f"{model.name} is a description without the model's tokenizer: it can be planned for sizes that are typed, but"
            " a dataset's texts cannot be counted or encoded",
            hint="give --model the folder or the hub id of the model, with its tokenizer",
        )


@lru_cache(maxsize=8)
def takes_any_size_alike(processor: Any, placeholder: int) -> bool:
    """Whether pictures of one aspect become as many visual tokens at any size: shrinking them first would only blur them."""
    try:
        for width, height in _TRIED:
            small, *larger = (recipe.seen(processor, placeholder, [(width * times, height * times)]) for times in (1, *_TIMES))
            if any(_made(one) != _made(small) for one in larger):
                return False
    except UsageError:  # a size that it does not take
        return False
    return True


def _made(seen: recipe.Seen) -> tuple[object, ...]:
    return seen.tokens, {name: tuple(value.shape) for name, value in seen.inputs.items()}


def size_before(width: int, height: int, model: Model, max_pixels: int) -> tuple[int, int]:
    """(width, height) in pixels at which the processor is given a picture: shrunk to ``max_pixels`` where that matters."""
    if max_pixels < width * height and takes_any_size_alike(other_processor(model), recipe.placeholder_of(model.config)):
        return width, height
    return recipe.shrunk(width, height, max_pixels)
