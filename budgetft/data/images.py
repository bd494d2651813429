"""Opening image files: every way in which that fails is a ``UsageError`` that names the file."""

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from budgetft.contract import Contract
from budgetft.data.tokens import resized_size
from budgetft.errors import UsageError
from budgetft.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def image_size(path: str | Path) -> tuple[int, int]:
    """``(width, height)`` in pixels from the header; no pixel is decoded."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError and more for damaged files
        raise _unreadable(path, error) from None


def load_image(path: str | Path) -> "PilImage":
    """The decoded image, in the mode of the file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()  # leaving the block closes the file, not the pixels
            return image
    except Exception as error:
        raise _unreadable(path, error) from None


def resized_image_size(path: str | Path, size: tuple[int, int], model: Model, contract: Contract) -> tuple[int, int]:
    """``(width, height)`` as the model sees the image of ``size`` in ``path``; a refusal names the file."""
    try:
        return resized_size(*size, model, contract)
    except UsageError as error:
        raise UsageError(f"image {path}: {error.message}", hint=error.hint) from None


def check_image(content: bytes, path: str | Path) -> str:
    """The file extension that fits ``content`` (``jpg``, ``png``, ...), once it decodes to the end."""
    from PIL import Image

    try:
        with Image.open(BytesIO(content)) as image:
            image.verify()
        with Image.open(BytesIO(content)) as image:  # verify() leaves the image unusable
            image.load()
            kind, mode = (image.format or "image").lower(), image.mode
    except Exception as error:
        raise _unreadable(path, error) from None
    if mode in DEEP_MODES:  # a processor cuts off whatever is above 255: such an image would be white
        raise UsageError(
            f"image {path} has more than 8 bits a channel (mode {mode})",
            hint="convert it to 8 bits, with the range that you want",
        )
    return "jpg" if kind == "jpeg" else kind


def _unreadable(path: str | Path, error: Exception) -> UsageError:
    if isinstance(error, FileNotFoundError):
        return UsageError(f"image {path} does not exist")
    if type(error).__name__ == "UnidentifiedImageError":
        return UsageError(f"{path} is not an image that can be read")
    if type(error).__name__ == "DecompressionBombError":
        return UsageError(f"image {path} has too many pixels to be opened", hint="make it smaller: under 178 million pixels")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UsageError(f"cannot read image {path}: {reason}")
