"""Sizes that an image asks for by itself, kept in the name of its file: ``<content>.max3136.jpg``.

So whoever opens it, for training, statistics, caches or prediction, resizes it alike.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePath

from budgetft.errors import UsageError
from budgetft.value import Value

NAMED = re.compile(r"[0-9a-f]{24}(?:\.min(\d+))?(?:\.max(\d+))?(?:\.(\d+)x(\d+))?\.\w+")
"""Names of a dataset's images."""
_KEYS = ("min_pixels", "max_pixels", "resized_width", "resized_height")


class Limits(Value):
    """What an image asks for besides the run's own limits."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    size: tuple[int, int] | None = None
    """Width and height in pixels that it is to be resized to, before these are rounded to what the model takes."""

    @classmethod
    def of(cls, options: Mapping[str, float]) -> "Limits":
        """Those of a part of a message, in the terms of qwen-vl-utils. Raises ``UsageError`` for limits that contradict."""
        if not any(name in options for name in _KEYS):
            return NO_LIMITS
        width, height = options.get("resized_width"), options.get("resized_height")
        if (width is None) is not (height is None):
            raise UsageError("resized_width and resized_height must be given together")
        low, high = options.get("min_pixels"), options.get("max_pixels")
        if low is not None and high is not None and low > high:
            raise UsageError(f"min_pixels {low:g} is above max_pixels {high:g}")
        for name in _KEYS:
            if name in options and not 1 <= options[name] <= 10**9:
                raise UsageError(f"{name} must be at least 1, not {options[name]:g}")
        return cls(
            min_pixels=None if low is None else int(low),
            max_pixels=None if high is None else int(high),
            size=None if width is None or height is None else (int(width), int(height)),
        )

    @property
    def name(self) -> str:
        """As part of a file's name; nothing when there are none."""
        low = "" if self.min_pixels is None else f".min{self.min_pixels}"
        high = "" if self.max_pixels is None else f".max{self.max_pixels}"
        return low + high + ("" if self.size is None else ".{}x{}".format(*self.size))


NO_LIMITS = Limits()


def limits_of(path: str | Path) -> Limits:
    """What the name of a dataset's image asks for."""
    found = NAMED.fullmatch(PurePath(path).name)
    if not found or not any(found.groups()):
        return NO_LIMITS
    low, high, width, height = (None if one is None else int(one) for one in found.groups())
    return Limits(min_pixels=low, max_pixels=high, size=None if width is None or height is None else (width, height))
