"""How many tokens an image costs: the resize rule of the Qwen-VL processors, without torch; others are asked.

The rule is that of qwen-vl-utils (``smart_resize``); a test holds the two equal. ``encode`` uses theirs on pixels, this
one serves estimates and statistics.
"""

import math

from budgetft.contract import Contract
from budgetft.data.media.limits import NO_LIMITS, Limits
from budgetft.data.other_processor import size_before
from budgetft.errors import UsageError
from budgetft.model import Model

MAX_ASPECT = 200


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """``(height, width)`` in pixels after resizing: multiples of ``factor``, area within the bounds, aspect kept.

    Sides are rounded to the nearest multiple with halves to even (Python's ``round``). An image enlarged to reach
    ``min_pixels`` is rounded up, so it may end above ``max_pixels`` when the bounds nearly meet.
    Raises ``UsageError`` for an aspect above 200, and when ``max_pixels`` leaves a side without a single multiple.
    """
    if min(height, width) < 1:
        raise UsageError(f"an image of {width}x{height} has no pixels")
    if max_pixels < min_pixels:
        raise UsageError(f"max_pixels {max_pixels} is below min_pixels {min_pixels}")
    if max(height, width) / min(height, width) > MAX_ASPECT:
        raise UsageError(f"an image of {width}x{height} has an aspect above {MAX_ASPECT}", hint="crop it")
    new_height = max(factor, round(height / factor) * factor)
    new_width = max(factor, round(width / factor) * factor)
    if new_height * new_width > max_pixels:
        scale = math.sqrt((height * width) / max_pixels)
        new_height = math.floor(height / scale / factor) * factor
        new_width = math.floor(width / scale / factor) * factor
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    if min(new_height, new_width) == 0:
        raise UsageError(
            f"an image of {width}x{height} shrunk to {max_pixels} pixels has a side under {factor} pixels",
            hint="raise --max-pixels, or crop the image",
        )
    return new_height, new_width


def check_positions(model: Model, contract: Contract) -> None:
    """Raise a ``UsageError`` when ``contract`` allows longer examples than the model has positions for."""
    if contract.max_length > model.max_positions:
        raise UsageError(
            f"--max-length {contract.max_length} is more than the {model.max_positions} positions of {model.name}",
            hint=f"at most --max-length {model.max_positions}",
        )


def pixel_bounds(model: Model, contract: Contract, limits: Limits = NO_LIMITS) -> tuple[int, int]:
    """``(min_pixels, max_pixels)`` of one image: the model's own, with the contract's cap and the image's own limits.

    A cap below the minimum removes the minimum: enlarging up to the cap would overshoot it.
    """
    max_pixels = min(contract.max_pixels, limits.max_pixels or model.max_pixels, model.max_pixels)
    wanted = max(limits.min_pixels or 0, model.min_pixels)
    minimum = wanted if wanted <= max_pixels else min(model.pixel_step**2, max_pixels)
    return minimum, max_pixels


def resized_size(width: int, height: int, model: Model, contract: Contract, limits: Limits = NO_LIMITS) -> tuple[int, int]:
    """``(width, height)`` in pixels of an image as the model sees it; errors as in :func:`smart_resize`.

    ``limits`` are the image's own: it is treated as if it had their size, and kept within their pixels too. In other families
    than Qwen-VL this is the size that the model's processor is given: shrunk, but not where the processor makes as many tokens
    of a picture of any size. Errors then as in :func:`budgetft.data.other_processor.other_processor`.
    """
    width, height = limits.size or (width, height)
    if not model.packed:
        return size_before(width, height, model, min(contract.max_pixels, limits.max_pixels or model.max_pixels))
    min_pixels, max_pixels = pixel_bounds(model, contract, limits)
    new_height, new_width = smart_resize(height, width, factor=model.pixel_step, min_pixels=min_pixels, max_pixels=max_pixels)
    return new_width, new_height


def visual_tokens(width: int, height: int, model: Model, contract: Contract) -> int:
    """Language-model tokens of one image of ``width`` x ``height`` pixels before resizing, in the Qwen-VL families.

    Start and end are excluded.
    """
    new_width, new_height = resized_size(width, height, model, contract)
    return (new_width // model.pixel_step) * (new_height // model.pixel_step)
