"""Opening image files as a viewer shows them: upright, on white, in sRGB. Every way in which that fails is a ``UsageError``
that names the file."""

import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from budgetft.contract import Contract
from budgetft.data.media.colours import HDR, has_profile, to_rgb
from budgetft.data.media.limits import limits_of
from budgetft.data.tokens import resized_size
from budgetft.errors import UsageError
from budgetft.model import Model

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage


DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_ORIENTATION = 274
_SUBFILE, _OLD_SUBFILE = 254, 255
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_MOVING = ("GIF", "WEBP", "PNG", "AVIF")
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
"""Pillow prints warnings about large and slightly damaged files that are shown all the same."""


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """What the header of an image file says."""

    width: int
    """As shown, in pixels."""
    height: int
    as_stored: bool
    """Whether its pixels are shown as they are stored: not turned, without transparency, by no colour profile."""
    as_ever: bool
    """Whether earlier versions of this program, which turned TIFF and laid RGBA on white but no other file, showed the
    same."""


def image_header(path: str | Path) -> ImageHeader:
    """What the header of ``path`` says; no pixel is decoded. Raises ``UsageError`` for what is no image."""
    with opened_image(path) as (image, file):
        orientation = orientation_of(_with_late_chunks(image, file))
        width, height = _stored_size(image)
        if orientation >= 5:
            width, height = height, width
        by_profile, clear = has_profile(image), image.has_transparency_data or uncovered(image) is not None
        return ImageHeader(
            width=width,
            height=height,
            as_stored=orientation == 1 and not clear and not by_profile,
            as_ever=(orientation == 1 or _turns_itself(image))
            and (not clear or _was_on_white(image))
            and not by_profile
            and image.mode != "LAB",
        )


def image_size(path: str | Path) -> tuple[int, int]:
    """``(width, height)`` in pixels as shown, from the header; no pixel is decoded."""
    header = image_header(path)
    return header.width, header.height


def shown_as_stored(path: str | Path) -> bool:
    """Whether the pixels of the file are shown as they are stored: it is not turned, nothing in it is transparent, and no
    colour profile changes it. From the header; no pixel is decoded."""
    return image_header(path).as_stored


def frames_of_image(path: str | Path) -> int:
    """How many frames or pages the file holds, 1 for a still picture.

    The second picture of a phone's JPEG, the layers of a PSD and the reduced copies in a TIFF are no frames.
    """
    with opened_image(path) as (image, _):
        return _frames(image)


def load_image(path: str | Path) -> "PilImage":
    """What a viewer shows of the file, in mode RGB: upright, transparent parts on white, colours in sRGB.

    Of several frames the first. Raises ``UsageError`` for what cannot be decoded or has more than 8 bits a channel.
    """
    with opened_image(path) as (image, _):
        _refuse_deep(image, path)
        raw_mode, hole = raw_mode_of(image), uncovered(image)
        image.load()  # leaving the block closes the file, not the pixels
        shown = to_rgb(image, raw_mode)
        if hole is not None:
            shown = hole_on_white(shown, hole)
        if not _turns_itself(image):
            shown = turned(shown, orientation_of(image))
        return shown


def turned(image: "PilImage", orientation: int) -> "PilImage":
    """``image`` upright, by its ``orientation`` as EXIF counts: 1 is upright, 6 has its top at the right."""
    from PIL import Image

    how = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    if how is None:
        return image
    image = image.transpose(how)
    image.info = {}  # so that nobody turns it again
    return image


def resized_image_size(path: str | Path, size: tuple[int, int], model: Model, contract: Contract) -> tuple[int, int]:
    """``(width, height)`` as the model sees the image of ``size`` in ``path``; a refusal names the file."""
    try:
        return resized_size(*size, model, contract, limits_of(path))
    except UsageError as error:
        raise UsageError(f"image {path}: {error.message}", hint=error.hint) from None


def unshrunk_image_size(path: str | Path, size: tuple[int, int], model: Model, contract: Contract) -> tuple[int, int]:
    """As :func:`resized_image_size`, but with the model's own limit in place of the contract's."""
    return resized_image_size(path, size, model, contract.replace(max_pixels=model.max_pixels))


def check_image(content: bytes, path: str | Path) -> str:
    """The file extension that fits ``content`` (``jpg``, ``png``, ...), once it decodes to the end.

    Raises ``UsageError`` for what does not, for more than 8 bits a channel, and for several frames or pages.
    """
    if not content.startswith(_JPEG):  # which has nothing to verify but what decoding does
        with opened_image(path, content) as (image, _):
            image.verify()
    with opened_image(path, content) as (image, _):  # verify() leaves the image unusable
        _refuse_deep(image, path)
        frames = _frames(image)
        if frames > 1 and image.format in _MOVING:
            raise UsageError(
                f"image {path} holds {frames} frames",
                hint="give it as a video, with --frames N, or save the one frame that is meant",
            )
        if frames > 1:
            raise UsageError(f"image {path} holds {frames} pages", hint="save each page that is meant as a file of its own")
        image.load()
        kind = (image.format or "image").lower()
    return "jpg" if kind == "jpeg" else kind


@contextmanager
def opened_image(path: str | Path, content: bytes | None = None) -> "Iterator[tuple[PilImage, IO[bytes]]]":
    """The image, not decoded yet, and its file. Whatever goes wrong inside becomes a ``UsageError`` that names ``path``."""
    from PIL import Image

    if _QUIET not in warnings.filters:
        # Not the context manager of the module: another thread's would be undone. Once, for it forgets what was told.
        warnings.filterwarnings("ignore", category=Warning, module=r"PIL\.")
    try:
        with open(path, "rb") if content is None else BytesIO(content) as file, Image.open(file) as image:
            if image.format == "PNG":
                image.info["cicp"] = _coding(file)
            yield image, file
    except UsageError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError and more for damaged files
        raise _unreadable(path, error, content) from None


def _refuse_deep(image: "PilImage", path: str | Path) -> None:
    if image.mode in DEEP_MODES:  # a processor cuts off whatever is above 255: such an image would be white
        raise UsageError(
            f"image {path} has more than 8 bits a channel (mode {image.mode})",
            hint="convert it to 8 bits, with the range that you want",
        )
    coded = image.info.get("cicp")
    if coded is not None and coded[1] in HDR:
        raise UsageError(
            f"image {path} is in high dynamic range ({HDR[coded[1]]}): as an ordinary picture its colours would be wrong",
            hint="convert it to sRGB",
        )


def orientation_of(image: "PilImage") -> int:
    """1 to 8, by the EXIF of the file, else by its XMP; 1 where neither can be read."""
    from PIL import Image

    try:
        if image.format == "AVIF" and "exif" not in image.info:
            return 1  # it says so in a box of its own, which Pillow tells as EXIF; what XMP says does not count
        found: Any = Image.Image.getexif(image).get(_ORIENTATION, 1)  # PNG's own would decode the pixels
    except Exception:  # damaged EXIF: struct.error, SyntaxError, ValueError and more; viewers show such a file unturned
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _turns_itself(image: "PilImage") -> bool:
    """Whether Pillow turns the image while it loads it."""
    return image.format == "TIFF"


def _stored_size(image: "PilImage") -> tuple[int, int]:
    tags: Any = getattr(image, "tag_v2", None)
    if image.format == "TIFF" and tags is not None:  # of a turned one Pillow tells the size now before, now after
        return int(tags[256]), int(tags[257])
    return image.size


def raw_mode_of(image: "PilImage") -> str:
    if image.format != "PNG" or not image.tile:  # pyright: ignore[reportAttributeAccessIssue]
        return ""
    arguments = image.tile[0][3]  # pyright: ignore[reportAttributeAccessIssue]
    return arguments if isinstance(arguments, str) else ""


def _was_on_white(image: "PilImage") -> bool:
    return image.mode == "RGBA" and uncovered(image) is None


def uncovered(image: "PilImage") -> tuple[int, int, int, int] | None:
    """The box of a GIF's first frame where it leaves some of the picture empty, which viewers show as transparent."""
    if image.format != "GIF" or "transparency" in image.info or not image.tile:  # pyright: ignore[reportAttributeAccessIssue]
        return None
    box = image.tile[0][1]  # pyright: ignore[reportAttributeAccessIssue]
    return None if tuple(box) == (0, 0, *image.size) else box


def hole_on_white(image: "PilImage", box: tuple[int, int, int, int]) -> "PilImage":
    from PIL import Image

    shown = Image.new("RGB", image.size, (255, 255, 255))
    shown.paste(image.crop(box), box[:2])
    return shown


def _frames(image: "PilImage") -> int:
    if image.format in ("MPO", "PSD"):
        return 1
    count = int(getattr(image, "n_frames", 1))
    if image.format == "TIFF" and count > 1:
        return sum(_is_page(image, frame) for frame in range(count)) or 1
    return count - bool(getattr(image, "default_image", False))  # of a PNG: shown only by who cannot show the animation


def _is_page(image: "PilImage", frame: int) -> bool:
    """Whether it is a page of the TIFF, neither a reduced copy of another nor a mask."""
    image.seek(frame)
    tags: Any = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
    return not int(tags.get(_SUBFILE, 0)) & 5 and int(tags.get(_OLD_SUBFILE, 1)) != 2


def _with_late_chunks(image: "PilImage", file: IO[bytes]) -> "PilImage":
    """``image``; of a PNG that says more after its pixels, the same without pixels, which has read that too."""
    from PIL import Image

    if image.format != "PNG":
        return image
    place = file.tell()
    head, late = _chunks(file)
    file.seek(place)
    if not late:
        return image
    return Image.open(BytesIO(_PNG + head + late + b"\0\0\0\0IDAT\x35\xaf\x06\x1e" + b"\0\0\0\0IEND\xae\x42\x60\x82"))


def _chunks(file: IO[bytes]) -> tuple[bytes, bytes]:
    """The first chunk of a PNG, and what follows its pixels and may say how it is turned."""
    file.seek(len(_PNG))
    head, late, pixels = b"", b"", False
    while len(start := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", start)
        pixels = pixels or kind == b"IDAT"
        if kind == b"IHDR" or (pixels and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")):
            chunk = start + file.read(size + 4)
            head, late = (chunk, late) if kind == b"IHDR" else (head, late + chunk)
        elif kind == b"IEND":
            break
        else:
            file.seek(size + 4, 1)
    return head, late


def _coding(file: IO[bytes]) -> bytes | None:
    """The content of a PNG's chunk cICP: by number its primaries, its transfer characteristics, and two more."""
    place, found = file.tell(), None
    file.seek(len(_PNG))
    while len(start := file.read(8)) == 8:
        size, kind = struct.unpack(">I4s", start)
        if kind in (b"IDAT", b"IEND"):
            break
        if kind == b"cICP" and size == 4:
            found = file.read(4)
            break
        file.seek(size + 4, 1)
    file.seek(place)
    return found


def _unreadable(path: str | Path, error: Exception, content: bytes | None = None) -> UsageError:
    if isinstance(error, FileNotFoundError):
        return UsageError(f"image {path} does not exist")
    if type(error).__name__ == "UnidentifiedImageError":
        if _is_empty(path, content):
            return UsageError(f"image {path} is empty (0 bytes)")
        return UsageError(f"{path} is not an image that can be read")
    if type(error).__name__ == "DecompressionBombError":
        return UsageError(f"image {path} has too many pixels to be opened", hint="make it smaller: under 178 million pixels")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UsageError(f"cannot read image {path}: {reason}")


def _is_empty(path: str | Path, content: bytes | None) -> bool:
    try:
        return not (Path(path).stat().st_size if content is None else content)
    except OSError:
        return False
