"""Pictures inside a page."""

import base64
from io import BytesIO
from typing import TYPE_CHECKING

from budgetft.errors import BudgetftError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

SIDE = 360
"""Pixels of a thumbnail's longer side, at most."""
_FEW_COLOURS = 256


def data_uri(image: "PilImage") -> str:
    """``image`` (RGB) as a data URI: JPEG, or PNG where it has few colours."""
    buffer = BytesIO()
    kind = "jpeg" if image.getcolors(_FEW_COLOURS) is None else "png"
    image.save(buffer, kind.upper(), **({"quality": 88} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail(path: str, side: int = SIDE) -> str | None:
    """The picture in the file ``path``, made small, as a data URI; None where it cannot be read."""
    from budgetft.data.media.images import load_image

    try:
        image = load_image(path).convert("RGB")
    except (BudgetftError, OSError):
        return None
    image.thumbnail((side, side))
    return data_uri(image)
