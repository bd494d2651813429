"""Decoded frames of a film as a player shows them: upright, in their own proportions, in sRGB."""

import struct
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetft.data.media.colours import HDR, PRIMARIES, in_srgb
from budgetft.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_SDR_HINT = (
    "convert it first: ffmpeg -i IN -vf "
    "zscale=t=linear:npl=203,tonemap=hable,zscale=p=bt709:t=bt709:m=bt709:r=tv,format=yuv420p OUT.mp4"
)
Turn = tuple[bool, bool, bool]
"""Whether rows become columns; then whether left and right change, and top and bottom."""


def check_frame(frame: Any, path: Path) -> None:
    """Raise ``UsageError`` for a film whose frames cannot be shown as ordinary pictures."""
    hdr = HDR.get(getattr(frame, "color_trc", 0) or 0)
    if hdr is not None:
        raise UsageError(
            f"video {path} is in high dynamic range ({hdr}): as an ordinary picture its colours would be wrong", hint=_SDR_HINT
        )
    if turn_of(frame) is None:
        raise UsageError(f"video {path} is turned by {frame.rotation} degrees", hint="turn it by a multiple of 90 degrees")


def shown_size(width: int, height: int, aspect: Fraction, turn: Turn = (False, False, False)) -> tuple[int, int]:
    """``(width, height)`` as shown of ``width`` x ``height`` stored pixels, each ``aspect`` times as wide as high.

    The side that is too short grows, as in browsers: nothing that is stored is lost.
    """
    if aspect > 1:
        width = round(width * aspect)
    elif aspect < 1:
        height = round(height / aspect)
    return (height, width) if turn[0] else (width, height)


def pixel_aspect(stream: Any) -> Fraction:
    """How many times as wide as high a stored pixel is shown; 1 where the film does not say, or nothing sensible."""
    told = stream.sample_aspect_ratio
    return Fraction(told) if told and Fraction(1, 16) <= told <= 16 else Fraction(1)


def turn_of(frame: Any) -> Turn | None:
    """How the display matrix of ``frame`` turns it; None for what is no multiple of 90 degrees."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False
    # x' = a x + c y and y' = b x + d y, downwards.
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    straight, across = min(abs(a), abs(d)), min(abs(b), abs(c))
    if straight > 64 * max(abs(b), abs(c)):
        return False, a < 0, d < 0
    if across > 64 * max(abs(a), abs(d)):
        return True, c < 0, b < 0
    return None if any((a, b, c, d)) else (False, False, False)  # all zero says nothing


class Converter:
    """From decoded frames of one video to images; the tables that this needs are made once, which ``to_image`` does not."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def image(self, frame: Any, aspect: Fraction = Fraction(1)) -> "PilImage":
        """``frame`` (an ``av.VideoFrame``, or an image of an animation) as a player shows it.

        An image is given back as it is. Else in the mode RGBX, which is RGB with a byte that is not used and needs no
        copy, or in RGB. ``aspect`` is the width of a pixel over its height.
        """
        from PIL import Image

        if isinstance(frame, Image.Image):
            return frame
        alpha = any(part.is_alpha for part in frame.format.components)
        size = shown_size(frame.width, frame.height, aspect)
        scaled = {} if size == (frame.width, frame.height) else {"width": size[0], "height": size[1]}
        rgb = self._reformatter.reformat(frame, format="rgba" if alpha else "rgb0", **scaled)
        plane: Any = rgb.planes[0]  # a buffer, which its type does not say
        mode = "RGBA" if alpha else "RGBX"
        image = Image.frombuffer(mode, (rgb.width, rgb.height), plane, "raw", mode, plane.line_size, 1)
        if alpha:
            image = _on_white(image)
        points = PRIMARIES.get(getattr(frame, "color_primaries", 0) or 0)
        if points is not None:
            image = in_srgb(image, points)
        return _turned(image, turn_of(frame) or (False, False, False))


def _on_white(image: "PilImage") -> "PilImage":
    """An RGBA ``image`` on white; one that is transparent throughout does not use its alpha, and is shown as it is."""
    from PIL import Image

    alpha = image.getchannel("A")
    if alpha.getextrema()[1] == 0:
        return image.convert("RGB")
    shown = Image.new("RGB", image.size, (255, 255, 255))
    shown.paste(image.convert("RGB"), mask=alpha)
    return shown


def _turned(image: "PilImage", turn: Turn) -> "PilImage":
    from PIL import Image

    how = {
        (False, True, False): Image.Transpose.FLIP_LEFT_RIGHT,
        (False, False, True): Image.Transpose.FLIP_TOP_BOTTOM,
        (False, True, True): Image.Transpose.ROTATE_180,
        (True, False, False): Image.Transpose.TRANSPOSE,
        (True, True, False): Image.Transpose.ROTATE_270,
        (True, False, True): Image.Transpose.ROTATE_90,
        (True, True, True): Image.Transpose.TRANSVERSE,
    }.get(turn)
    return image if how is None else image.transpose(how)
