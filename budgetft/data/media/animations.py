"""Animated images (GIF, WebP, PNG, AVIF) as films: their frames as a viewer shows them, each with its own time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from budgetft.data.media.colours import to_rgb
from budgetft.data.media.images import hole_on_white, opened_image, orientation_of, raw_mode_of, turned, uncovered
from budgetft.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_TOO_SHORT_MS, _INSTEAD_MS = 10, 100
"""A frame that is to be shown for at most so many milliseconds is shown for 100: all browsers do so."""


@dataclass(frozen=True, kw_only=True)
class Still:
    """A frame of an animation."""

    index: int
    seconds: float
    """From the start of the animation."""
    lasts: float
    """Seconds for which it is shown."""
    image: "PilImage"
    """RGB."""


def is_animation(path: Path) -> bool:
    """Whether the file is, by its first bytes, of a format of images that may move."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except (OSError, ValueError):
        return False
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return webp or head.startswith((b"GIF8", b"\x89PNG\r\n\x1a\n")) or head[4:12] in (b"ftypavis", b"ftypavif")


def animation_frames(path: Path, on_frame: Callable[[], None] = lambda: None) -> Iterator[Still]:
    """Every frame, in order. Raises ``UsageError`` where one cannot be decoded."""
    with opened_image(path) as (image, _):
        count, first = int(getattr(image, "n_frames", 1)), int(bool(getattr(image, "default_image", False)))
        start = 0.0
        for frame in range(first, max(count, first + 1)):
            image.seek(min(frame, count - 1))
            raw_mode, hole = raw_mode_of(image), uncovered(image) if frame == 0 else None
            image.load()
            on_frame()
            shown = to_rgb(image, raw_mode)
            if hole is not None:
                shown = hole_on_white(shown, hole)
            shown = turned(shown, orientation_of(image))
            lasts = _lasting(image)
            still = shown.copy() if shown is image else shown  # the next frame would be drawn over it
            yield Still(index=frame - first, seconds=round(start, 6), lasts=lasts, image=still)
            start += lasts


def measure_animation(path: Path) -> tuple[int, int, int, float]:
    """``(width, height, frames, seconds)`` as shown; every frame is decoded."""
    width = height = frames = 0
    seconds = 0.0
    for still in animation_frames(path):
        width, height = still.image.size
        frames, seconds = still.index + 1, still.seconds + still.lasts
    if not frames:
        raise UsageError(f"cannot read video {path}: it holds no frame")
    return width, height, frames, round(seconds, 6)


def _lasting(image: "PilImage") -> float:
    told = image.info.get("duration", 0)
    milliseconds = float(told) if isinstance(told, int | float) else 0.0
    return (milliseconds if milliseconds > _TOO_SHORT_MS else _INSTEAD_MS) / 1000
