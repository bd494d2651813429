"""Image files written byte by byte, and what must be seen of them: nothing here is read or turned by Pillow."""

import struct
import zlib

import numpy as np

SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
"""Where the first row and the first column of the stored pixels are seen, as the EXIF standard tells it (tag 274)."""


def seen(stored: np.ndarray, orientation: int) -> np.ndarray:
    """(h, w, 3) what is seen of ``stored`` pixels, put where the standard says, one by one."""
    row, column = SIDES[orientation]
    rows, columns = stored.shape[:2]
    sideways = row in ("left", "right")
    out = np.empty((columns, rows, *stored.shape[2:]) if sideways else stored.shape, stored.dtype)
    for r in range(rows):
        for c in range(columns):
            down = {"top": r, "bottom": rows - 1 - r}.get(row, {"top": c, "bottom": columns - 1 - c}.get(column))
            right = {"left": r, "right": rows - 1 - r}.get(row, {"left": c, "right": columns - 1 - c}.get(column))
            out[down, right] = stored[r, c]
    return out


def exif(orientation: int, order: str = "<") -> bytes:
    """A TIFF structure with tag 274 alone, in little (``<``) or big (``>``) endian."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    return head + struct.pack(order + "HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)


def xmp(orientation: int) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def jpeg_with(content: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with more segments (marker, content) after its start."""
    more = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return content[:2] + more + content[2:]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    samples: np.ndarray, colour_type: int, depth: int, *before: tuple[bytes, bytes], after: tuple[tuple[bytes, bytes], ...] = ()
) -> bytes:
    """A PNG of ``samples`` (h, w, channels), each below 2**depth, with chunks ``before`` its pixels and ``after`` them."""
    height, width, channels = samples.shape
    rows = b""
    for row in samples.astype(np.int64).reshape(height, width * channels):
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    parts = [head, *(chunk(*one) for one in before), chunk(b"IDAT", zlib.compress(rows)), *(chunk(*one) for one in after)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def webp_with(content: bytes, size: tuple[int, int], kind: bytes, body: bytes, flag: int) -> bytes:
    """A simple WebP as an extended one, with a chunk more at its end."""
    width, height = size
    extended = struct.pack("<4sI", b"VP8X", 10) + bytes([flag, 0, 0, 0])
    extended += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    inner = b"WEBP" + extended + content[12:] + struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(inner)) + inner


def tiff(pages: list[np.ndarray], *tags: tuple[int, int, int], order: str = "<") -> bytes:
    """An uncompressed RGB TIFF of ``pages`` (h, w, 3); ``tags`` (page, tag, value) are added as 16-bit numbers."""
    content = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    for number, page in enumerate(pages):
        height, width, channels = page.shape
        found = {256: width, 257: height, 258: 8, 259: 1, 262: 2, 277: channels, 278: height, 284: 1}
        found |= {tag: value for at, tag, value in tags if at == number}
        start = len(content)
        pixels_at = start + 2 + 12 * (len(found) + 2) + 4
        entries = [(tag, 3, 1, value) for tag, value in found.items() if tag != 258]
        entries += [(258, 3, 1, 8), (273, 4, 1, pixels_at), (279, 4, 1, page.nbytes)]
        content += struct.pack(order + "H", len(entries))
        for tag, kind, count, value in sorted(entries):
            packed = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
            content += struct.pack(order + "HHI", tag, kind, count) + packed
        pixels = page.tobytes() + b"\0" * (page.nbytes % 2)
        following = pixels_at + len(pixels) if number + 1 < len(pages) else 0
        content += struct.pack(order + "I", following) + b"\0" * (pixels_at - start - 2 - 12 * len(entries) - 4) + pixels
    return content


def icc(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", pcs: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2 with ``tags``."""
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += b"\0" * (-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(">I4xI", start + len(body), 0x02100000) + kind + space + pcs + bytes(12) + b"acsp"
    head = head.ljust(68, b"\0") + _fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + table + body


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(*values)


def curve(*values: float) -> bytes:
    """One value is a power; more are a table from 0 to 1."""
    numbers = [round(values[0] * 256)] if len(values) == 1 else [round(value * 65535) for value in values]
    return b"curv\0\0\0\0" + struct.pack(f">I{len(numbers)}H", len(numbers), *numbers)


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


# XYZ of sRGB's red, green and blue for a white of D50 (IEC 61966-2-1, adapted by Bradford).
SRGB_D50 = np.array([[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]])


def srgb_of_xyz(values: np.ndarray) -> np.ndarray:
    """0 to 255, not rounded, of (n, 3) XYZ with white D50; what sRGB cannot show is cut off."""
    light = np.clip(values @ np.linalg.inv(SRGB_D50).T, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def light_of_srgb(values: np.ndarray) -> np.ndarray:
    """0 to 1, of samples from 0 to 1."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def xyz_of_lab(values: np.ndarray) -> np.ndarray:
    """(n, 3) with white D50."""
    y = (values[:, 0] + 16) / 116
    steps = np.stack([y + values[:, 1] / 500, y, y - values[:, 2] / 200], 1)
    return np.where(steps > 6 / 29, steps**3, 3 * (6 / 29) ** 2 * (steps - 4 / 29)) * [0.9642, 1.0, 0.8249]
