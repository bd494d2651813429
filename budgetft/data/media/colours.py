"""From the pixels of an image file to the colours that a viewer shows: sRGB, on white, by the file's own colour profile."""

import struct
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

_SAME = 2
"""A profile that changes no colour of a grid by more than so many of 255 steps is sRGB's: its pixels are taken as they are."""
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
_WHITE_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
_SRGB_POINTS = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""x and y of white, red, green and blue, as PNG's chunk cHRM holds them."""
_SRGB_GAMMA = 0.45455
HDR = {16: "PQ", 18: "HLG"}
"""Transfer characteristics of a high dynamic range, as ITU-T H.273 counts them."""
PRIMARIES = {
    9: (0.3127, 0.329, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),  # BT.2020
    12: (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),  # Display P3
}
"""Chromaticities of white, red, green and blue, where they are not nearly those of sRGB, by H.273."""


def to_rgb(image: "PilImage", raw_mode: str = "") -> "PilImage":
    """The loaded ``image`` in RGB, transparent parts on white, in sRGB where its colour profile can be read.

    ``raw_mode`` says how its samples were packed in the file, as Pillow calls it (``L;2``). An RGB image with neither is
    given back as it is.
    """
    from PIL import Image

    if image.has_transparency_data:
        colours, alpha = _apart(image, raw_mode)
        shown = Image.new("RGB", image.size, (255, 255, 255))
        shown.paste(_in_srgb(colours, image), mask=alpha)
        return shown
    return _in_srgb(image, image)


def has_profile(image: "PilImage") -> bool:
    """Whether a colour profile in the file changes its colours, from its header alone."""
    return _profile_of(image, _colour_mode(image)) is not None


def _apart(image: "PilImage", raw_mode: str) -> "tuple[PilImage, PilImage]":
    """The colours of an image with transparency, not premultiplied, and their alpha."""
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "LA":
        return image.getchannel("L"), image.getchannel("A")
    key = image.info.get("transparency")
    if key is not None and image.mode in ("L", "RGB"):
        image = image.copy()
        image.info["transparency"] = _key_of_bytes(key, raw_mode)
    grey = image.mode in ("1", "L")
    whole = image.convert("RGBA")
    return whole.getchannel("R") if grey else whole.convert("RGB"), whole.getchannel("A")


def _key_of_bytes(key: Any, raw_mode: str) -> Any:
    """The transparent colour of a PNG in steps of 255: its file counts in the bits of a sample."""
    bits = raw_mode.partition(";")[2]
    if bits in ("1", "2", "4"):
        return min(255, int(key) * 255 // (2 ** int(bits) - 1))
    if bits.startswith("16"):
        return tuple(value >> 8 for value in key) if isinstance(key, tuple) else int(key) >> 8
    return key


def _in_srgb(colours: "PilImage", file: "PilImage") -> "PilImage":
    """``colours`` in RGB, by the profile of ``file``."""
    from PIL import ImageCms

    transform = _profile_of(file, colours.mode if colours.mode in _SPACES.values() else "RGB")
    if transform is None:
        if colours.mode == "LAB":
            return _apply(_lab_transform(), colours)
        return colours if colours.mode == "RGB" else colours.convert("RGB")
    if colours.mode != transform.input_mode:
        colours = colours.convert(transform.input_mode)
    try:
        return _apply(transform, colours)
    except (ImageCms.PyCMSError, ValueError):
        return colours.convert("RGB")


def _apply(transform: Any, colours: "PilImage") -> "PilImage":
    from PIL import ImageCms

    shown = ImageCms.applyTransform(colours, transform)
    assert shown is not None  # it is None only where the image itself is changed
    return shown


def _colour_mode(image: "PilImage") -> str:
    """The mode of its colours, without alpha or palette."""
    return {"LA": "L", "La": "L", "1": "L", "CMYK": "CMYK", "L": "L", "LAB": "LAB"}.get(image.mode, "RGB")


def _profile_of(image: "PilImage", mode: str) -> Any:
    """How to get from colours of ``mode`` to sRGB; None where the file says nothing that can be read, or sRGB."""
    profile = image.info.get("icc_profile")
    if image.format == "PNG":
        profile = _png_profile(image, profile)
    if not profile or not isinstance(profile, bytes):
        return None
    found = _transform(profile, mode)
    if found is None and mode == "L" and image.format != "PNG":  # which PNG forbids
        found = _transform(profile, "RGB")
    return found


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    """From ``mode`` to sRGB; None for a profile that is broken, of another colour space, or sRGB itself."""
    try:
        from PIL import ImageCms

        opened: Any = ImageCms.ImageCmsProfile(BytesIO(profile))
        if _SPACES.get(opened.profile.xcolor_space.strip()) != mode:
            return None
        flags = ImageCms.Flags.HIGHRESPRECALC if mode in ("CMYK", "LAB") else ImageCms.Flags.NONE
        found = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB", flags=flags)
        return None if _keeps_colours(found, mode) else found
    except Exception:  # viewers show the pixels as they are; PyCMSError, OSError, TypeError, or built without the library
        return None


def _keeps_colours(transform: Any, mode: str) -> bool:
    from PIL import Image

    if mode == "L":
        grid = Image.frombytes("L", (256, 1), bytes(range(256)))
    elif mode == "RGB":
        steps = [*range(0, 256, 32), 255]
        grid = Image.frombytes("RGB", (729, 1), bytes(c for r in steps for g in steps for b in steps for c in (r, g, b)))
    else:
        return False
    seen, wanted = _apply(transform, grid).tobytes(), grid.convert("RGB").tobytes()
    return max(abs(one - other) for one, other in zip(seen, wanted, strict=True)) <= _SAME


@lru_cache(maxsize=1)
def _lab_transform() -> Any:
    from PIL import ImageCms

    flags = ImageCms.Flags.NOOPTIMIZE  # its table is off by up to 4 of 255
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB", flags=flags)


def _png_profile(image: "PilImage", profile: Any) -> Any:
    """The profile of a PNG: by its chunk cICP, else its own, none where it says sRGB, else by gamma and chromaticities."""
    coded = image.info.get("cicp")
    if coded is not None and _colour_mode(image) == "RGB":
        points, gamma = PRIMARIES.get(coded[0], _SRGB_POINTS), {4: 2.2, 5: 2.8, 8: 1.0}.get(coded[1])
        return matrix_profile(points, gamma)
    if profile or "srgb" in image.info or _colour_mode(image) != "RGB":
        return profile
    gamma, points = image.info.get("gamma"), image.info.get("chromaticity")
    if not gamma or not 0.05 <= gamma <= 5:
        return None
    points = points or _SRGB_POINTS
    ordinary = all(abs(one - other) < 0.005 for one, other in zip(points, _SRGB_POINTS, strict=False))
    if ordinary and abs(gamma - _SRGB_GAMMA) < 0.01:  # so sRGB is written where its own chunk is not
        return None
    return matrix_profile(tuple(points), 1 / gamma)


@lru_cache(maxsize=32)
def matrix_profile(points: tuple[float, ...], gamma: float | None) -> bytes | None:
    """An ICC profile of RGB with the chromaticities ``points`` (x and y of white, red, green, blue) whose light is the
    sample to the power of ``gamma`` (None: as of sRGB); None for points that span no colours."""
    try:
        columns = _adapted(points)
    except (ZeroDivisionError, ValueError):
        return None

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    if gamma is None:
        steps = [step / 1023 for step in range(1024)]
        light = [step / 12.92 if step <= 0.04045 else ((step + 0.055) / 1.055) ** 2.4 for step in steps]
        curve = b"curv" + bytes(4) + struct.pack(">I1024H", 1024, *(round(value * 65535) for value in light))
    else:
        curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = {b"wtpt": b"XYZ " + bytes(4) + b"".join(map(fixed, _WHITE_D50))}
    for name, column in zip((b"r", b"g", b"b"), columns, strict=True):
        tags[name + b"XYZ"] = b"XYZ " + bytes(4) + b"".join(map(fixed, column))
        tags[name + b"TRC"] = curve
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    head = bytearray(128)
    head[0:4] = struct.pack(">I", start + len(body))
    head[8:24] = b"\x02\x10\0\0mntrRGB XYZ "
    head[36:40] = b"acsp"
    head[68:80] = b"".join(map(fixed, _WHITE_D50))
    return bytes(head) + table + body


def _adapted(points: tuple[float, ...]) -> list[list[float]]:
    """XYZ of red, green and blue at full, for a white that is D50."""
    white, *primaries = [_xyz(points[at], points[at + 1]) for at in range(0, 8, 2)]
    shares = _solve([[one[row] for one in primaries] for row in range(3)], white)
    seen, wanted = _times(_BRADFORD, white), _times(_BRADFORD, _WHITE_D50)
    columns = []
    for one, share in zip(primaries, shares, strict=True):
        cones = [value * to / of for value, to, of in zip(_times(_BRADFORD, one), wanted, seen, strict=True)]
        columns.append([value * share for value in _solve(_BRADFORD, cones)])
    return columns


def _xyz(x: float, y: float) -> tuple[float, float, float]:
    return x / y, 1.0, (1 - x - y) / y


def _times(matrix: Any, vector: Any) -> list[float]:
    return [sum(factor * value for factor, value in zip(row, vector, strict=True)) for row in matrix]


def _solve(matrix: Any, wanted: Any) -> list[float]:
    """The vector that ``matrix`` (3, 3) makes ``wanted`` of, by Cramer's rule."""

    def size(m: Any) -> float:
        (a, b, c), (d, e, f), (g, h, i) = m
        return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)

    def swapped(column: int) -> list[list[float]]:
        return [[wanted[row] if at == column else matrix[row][at] for at in range(3)] for row in range(3)]

    whole = size(matrix)
    return [size(swapped(column)) / whole for column in range(3)]


def in_srgb(image: "PilImage", points: tuple[float, ...]) -> "PilImage":
    """The RGB ``image``, whose red, green, blue and white have the chromaticities ``points``, in sRGB."""
    profile = matrix_profile(points, None)
    transform = None if profile is None else _transform(profile, "RGB")
    return image if transform is None else _apply(transform, image.convert("RGB"))
