"""An image file is loaded as every viewer shows it, or refused by name."""

import itertools
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from media import (
    curve,
    exif,
    icc,
    jpeg_with,
    light_of_srgb,
    png,
    seen,
    srgb_of_xyz,
    tiff,
    webp_with,
    xmp,
    xyz,
    xyz_of_lab,
)
from PIL import Image

from budgetft.data.media import images
from budgetft.data.media.images import check_image, frames_of_image, image_size, load_image, shown_as_stored
from budgetft.errors import UsageError

NOISE = np.random.default_rng(7)
PIXELS = NOISE.integers(0, 256, (6, 10, 3), dtype=np.uint8)
COLOUR_STEPS = 2
"""Of 255. LittleCMS works in 8 bits: half a step is lost by its rounding, up to one by its tables, and half by the truth's."""


def saved(pixels, kind, **options):
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def shown(path, content):
    path.write_bytes(content)
    image = load_image(path)
    assert image.mode == "RGB"
    assert image.size == image_size(path)
    return np.asarray(image)


def raw_profile(orientation):
    """As ImageMagick writes EXIF into PNG."""
    body = b"Exif\0\0" + exif(orientation)
    return b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n%s\n" % (len(body), body.hex().encode()))


def mpo(orientation):
    buffer, second = BytesIO(), Image.fromarray(PIXELS[::-1].copy())
    told = Image.Exif()
    told[274] = orientation
    Image.fromarray(PIXELS).save(buffer, "MPO", save_all=True, append_images=[second], exif=told.tobytes(), quality=95)
    return buffer.getvalue()


def avif(orientation):
    told = Image.Exif()
    told[274] = orientation
    return saved(PIXELS, "AVIF", quality=95, exif=told.tobytes())


JPEG, WEBP = saved(PIXELS, "JPEG", quality=95), saved(PIXELS, "WEBP", lossless=True)
PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
SIZE = (10, 6)
TURNED = {
    "jpeg": lambda o: jpeg_with(JPEG, (0xE1, b"Exif\0\0" + exif(o))),
    "jpeg, big endian": lambda o: jpeg_with(JPEG, (0xE1, b"Exif\0\0" + exif(o, ">"))),
    "jpeg, xmp": lambda o: jpeg_with(JPEG, (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(o))),
    "jpeg, exif before xmp": lambda o: jpeg_with(
        JPEG, (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(9 - o)), (0xE1, b"Exif\0\0" + exif(o))
    ),
    "mpo": mpo,
    "png": lambda o: png(PIXELS, 2, 8, (b"eXIf", exif(o))),
    "png, after the pixels": lambda o: png(PIXELS, 2, 8, after=((b"eXIf", exif(o, ">")),)),
    "png, raw profile": lambda o: png(PIXELS, 2, 8, (b"zTXt", raw_profile(o))),
    "png, raw profile after the pixels": lambda o: png(PIXELS, 2, 8, after=((b"zTXt", raw_profile(o)),)),
    "png, xmp": lambda o: png(PIXELS, 2, 8, (b"iTXt", PNG_XMP + xmp(o))),
    "webp": lambda o: webp_with(WEBP, SIZE, b"EXIF", exif(o), 0x08),
    "webp, xmp": lambda o: webp_with(WEBP, SIZE, b"XMP ", xmp(o), 0x04),
    "tiff": lambda o: tiff([PIXELS], (0, 274, o)),
    "tiff, big endian": lambda o: tiff([PIXELS], (0, 274, o), order=">"),
    "avif": avif,
}


@pytest.mark.parametrize("kind", TURNED)
def test_every_orientation_is_upright_in_every_format_and_turned_once(tmp_path, kind):
    path = tmp_path / "a"
    stored = shown(path, TURNED[kind](1))
    if not kind.startswith(("jpeg", "mpo", "avif")):
        assert np.array_equal(stored, PIXELS)
    assert shown_as_stored(path)
    for orientation in range(2, 9):
        assert np.array_equal(shown(path, TURNED[kind](orientation)), seen(stored, orientation)), orientation
        assert not shown_as_stored(path)
        told = load_image(path).getexif().get(274, 1)
        assert told == 1, "somebody else would turn it again"


@pytest.mark.parametrize("told", [exif(0), exif(9), exif(6)[:14], b"II*\0\xff\xff\xff\xff", b"rubbish", b""])
def test_an_orientation_that_cannot_be_read_leaves_a_picture_as_it_is(tmp_path, told, recwarn):
    for content in (jpeg_with(JPEG, (0xE1, b"Exif\0\0" + told)), png(PIXELS, 2, 8, (b"eXIf", told))):
        plain = JPEG if content[:2] == b"\xff\xd8" else png(PIXELS, 2, 8)
        assert np.array_equal(shown(tmp_path / "a", content), np.asarray(Image.open(BytesIO(plain))))
        assert shown_as_stored(tmp_path / "a")
    assert not recwarn.list


def test_the_size_is_known_without_decoding(tmp_path, monkeypatch):
    for number, make in enumerate(TURNED.values()):
        (tmp_path / str(number)).write_bytes(make(6))

    def refuse(*_, **__):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    for number in range(len(TURNED)):
        assert image_size(tmp_path / str(number)) == (6, 10)


def on_white(colours, alpha):
    """``colours`` (h, w, 3) with ``alpha`` (h, w) from 0 to 1 on white, not rounded."""
    return 255 + (colours.astype(float) - 255) * alpha[..., None]


def close(found, wanted, steps=1.0):
    """Within half a step of rounding, and half a step for the whole numbers in which Pillow blends."""
    return np.abs(found.astype(float) - wanted).max() <= steps


def grey_pixels(depth, key):
    """Samples among which the key is frequent."""
    samples = NOISE.integers(0, 2**depth, (8, 9, 1))
    samples[::2, ::3] = key
    return samples


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_grey_of_every_depth_is_white(tmp_path, depth):
    for key in {0, 1, 2**depth - 1, 2**depth // 3}:
        samples = grey_pixels(depth, key)
        found = shown(tmp_path / "a.png", png(samples, 0, depth, (b"tRNS", struct.pack(">H", key))))
        grey = np.repeat(samples * 255 / (2**depth - 1), 3, 2)
        assert close(found, on_white(grey, (samples[..., 0] != key).astype(float))), key
        assert not shown_as_stored(tmp_path / "a.png")


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white_and_its_other_processes_are_not(tmp_path, depth):
    scale = 257 if depth == 16 else 1
    samples = NOISE.integers(0, 4, (12, 12, 3)) * scale
    key = np.array([1, 2, 3]) * scale
    samples[0, :] = key
    found = shown(tmp_path / "a.png", png(samples, 2, depth, (b"tRNS", struct.pack(">3H", *key.tolist()))))
    assert close(found, on_white(samples / scale, (samples != key).any(2).astype(float)))


@pytest.mark.parametrize(("depth", "given"), [(1, 2), (2, 4), (2, 1), (4, 16), (8, 256), (8, 3), (8, 0)])
def test_a_palette_with_transparency_is_on_white(tmp_path, depth, given):
    colours = NOISE.integers(0, 256, (2**depth, 3))
    alphas = NOISE.integers(0, 256, given)
    samples = NOISE.integers(0, 2**depth, (9, 11, 1))
    more = [(b"PLTE", colours.astype(np.uint8).tobytes())]
    more += [(b"tRNS", alphas.astype(np.uint8).tobytes())] if given else []
    found = shown(tmp_path / "a.png", png(samples, 3, depth, *more))
    alpha = np.full(2**depth, 255)
    alpha[:given] = alphas
    assert close(found, on_white(colours[samples[..., 0]], alpha[samples[..., 0]] / 255))
    assert shown_as_stored(tmp_path / "a.png") is (given == 0)


@pytest.mark.parametrize(("colour_type", "channels", "depth"), [(4, 2, 8), (6, 4, 8), (4, 2, 16), (6, 4, 16)])
def test_an_alpha_channel_is_on_white(tmp_path, colour_type, channels, depth):
    samples = NOISE.integers(0, 256, (9, 7, channels))
    found = shown(tmp_path / "a.png", png(samples * (257 if depth == 16 else 1), colour_type, depth))
    colours = samples[..., :-1] if channels == 4 else np.repeat(samples[..., :1], 3, 2)
    assert close(found, on_white(colours, samples[..., -1] / 255))


def test_premultiplied_colours_are_on_white(tmp_path):
    alpha = NOISE.integers(32, 256, (8, 8, 1))
    straight = NOISE.integers(0, 256, (8, 8, 3))
    stored = np.concatenate([np.round(straight * alpha / 255), alpha], 2).astype(np.uint8)
    found = shown(tmp_path / "a.tif", tiff([stored], (0, 338, 1)))  # associated alpha
    # What is stored is rounded, and so is what is made of it again before it is laid on white.
    assert close(found, stored[..., :3].astype(int) + 255 - alpha, steps=2)
    for mode, channels in (("RGBa", 4), ("La", 2)):
        image = Image.frombytes(mode, (8, 8), stored[..., [0, 1, 2, 3][-channels:]].tobytes())
        colours = np.repeat(stored[..., 2:3], 3, 2) if mode == "La" else stored[..., :3]
        made = np.asarray(images.to_rgb(image)).astype(float)
        assert close(made, np.clip(colours + 255.0 - alpha, 0, 255), steps=2), mode


def test_a_palette_with_an_alpha_channel_is_on_white():
    colours, alpha = NOISE.integers(0, 256, (256, 3), dtype=np.uint8), NOISE.integers(0, 256, (5, 5), dtype=np.uint8)
    index = NOISE.integers(0, 256, (5, 5), dtype=np.uint8)
    image = Image.frombytes("PA", (5, 5), np.stack([index, alpha], 2).tobytes())
    image.putpalette(colours.tobytes())
    assert close(np.asarray(images.to_rgb(image)), on_white(colours[index], alpha / 255))
    image = Image.frombytes("P", (5, 5), index.tobytes())
    shades = NOISE.integers(0, 256, 256, dtype=np.uint8)
    image.putpalette(np.concatenate([colours, shades[:, None]], 1).tobytes(), "RGBA")
    assert close(np.asarray(images.to_rgb(image)), on_white(colours[index], shades[index] / 255))


def gif(frames, *, key=None, delay=7, size=None, at=(0, 0)):
    """A GIF of four colours: black, red, green, blue; ``frames`` are (h, w) of indices. Codes are never compressed."""
    height, width = frames[0].shape
    canvas = size or (width, height)
    content = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x81, 0, 0)
    content += bytes([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    for frame in frames:
        flags = 0 if key is None else 1
        content += b"\x21\xf9\x04" + struct.pack("<BHBB", flags, delay, key or 0, 0)
        content += b"\x2c" + struct.pack("<HHHHB", *at, width, height, 0) + b"\x02"
        bits = ""
        for place, index in enumerate(frame.ravel()):  # a clear code now and then keeps the codes at 3 bits
            bits += (f"{4:03b}"[::-1] if place % 2 == 0 else "") + f"{index:03b}"[::-1]
        bits += f"{5:03b}"[::-1]
        bits += "0" * (-len(bits) % 8)
        packed = bytes(int(bits[start : start + 8][::-1], 2) for start in range(0, len(bits), 8))
        for start in range(0, len(packed), 255):
            content += bytes([len(packed[start : start + 255])]) + packed[start : start + 255]
        content += b"\0"
    return content + b"\x3b"


PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]])


def test_a_gif_is_on_white_where_it_is_transparent_or_leaves_its_canvas_empty(tmp_path):
    frame = NOISE.integers(0, 4, (6, 8))
    assert np.array_equal(shown(tmp_path / "a.gif", gif([frame])), PALETTE[frame])
    assert shown_as_stored(tmp_path / "a.gif")
    wanted = on_white(PALETTE[frame], (frame != 0).astype(float))
    assert np.array_equal(shown(tmp_path / "a.gif", gif([frame], key=0)), wanted)
    whole = np.full((10, 12, 3), 255)
    whole[2:8, 3:11] = PALETTE[frame]
    assert np.array_equal(shown(tmp_path / "a.gif", gif([frame], size=(12, 10), at=(3, 2))), whole)
    assert not shown_as_stored(tmp_path / "a.gif")


def test_a_webp_with_transparency_is_on_white(tmp_path):
    samples = NOISE.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    found = shown(tmp_path / "a.webp", saved(samples, "WEBP", lossless=True, exact=True))
    assert close(found, on_white(samples[..., :3], samples[..., 3] / 255))


POWER = {b"wtpt": xyz(0.9642, 1, 0.8249)}
ADOBE = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
P3 = np.array([[0.51512, 0.29198, 0.1571], [0.2412, 0.69225, 0.06657], [-0.00105, 0.04189, 0.78407]])


def matrix_icc(columns, tone):
    tags = {b"wtpt": xyz(0.9642, 1, 0.8249)}
    for name, column in zip((b"r", b"g", b"b"), columns.T, strict=True):
        tags |= {name + b"XYZ": xyz(*column), name + b"TRC": tone}
    return icc(b"RGB ", tags)


SRGB_TONE = curve(*light_of_srgb(np.linspace(0, 1, 1024)))
WIDE = {
    "Adobe RGB": (matrix_icc(ADOBE, curve(2.19921875)), ADOBE, lambda v: v**2.19921875),
    "Display P3": (matrix_icc(P3, SRGB_TONE), P3, light_of_srgb),
}
GRID = np.array(list(itertools.product(range(0, 256, 51), repeat=3)), dtype=np.uint8).reshape(12, 18, 3)


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "rgba", "palette"])
def test_the_colours_of_a_wide_profile_are_shown_in_srgb(tmp_path, name, kind):
    profile, columns, light = WIDE[name]
    chunk = (b"iCCP", b"wide\0\0" + zlib.compress(profile))
    opaque = np.concatenate([GRID, np.full((12, 18, 1), 255)], 2)
    index = np.arange(216).reshape(12, 18, 1)
    content = {
        "png": lambda: png(GRID, 2, 8, chunk),
        "rgba": lambda: png(opaque, 6, 8, chunk),
        "palette": lambda: png(index, 3, 8, chunk, (b"PLTE", GRID.tobytes())),
        "webp": lambda: saved(GRID, "WEBP", lossless=True, icc_profile=profile),
        "tiff": lambda: saved(GRID, "TIFF", icc_profile=profile),
    }[kind]()
    found = shown(tmp_path / "a", content)
    wanted = srgb_of_xyz(light(GRID.reshape(-1, 3) / 255) @ columns.T).reshape(GRID.shape)
    assert close(found, wanted, COLOUR_STEPS)
    assert np.abs(found.astype(int) - GRID).max() > 10 * COLOUR_STEPS
    assert not shown_as_stored(tmp_path / "a")


def test_transparent_colours_of_a_wide_profile_are_mixed_with_white_in_srgb(tmp_path):
    profile, columns, light = WIDE["Display P3"]
    samples = np.concatenate([GRID, NOISE.integers(0, 256, (12, 18, 1))], 2)
    found = shown(tmp_path / "a.png", png(samples, 6, 8, (b"iCCP", b"p3\0\0" + zlib.compress(profile))))
    colours = srgb_of_xyz(light(GRID.reshape(-1, 3) / 255) @ columns.T).reshape(GRID.shape)
    assert close(found, on_white(colours, samples[..., 3] / 255), COLOUR_STEPS + 1)


@pytest.mark.parametrize("alpha", [False, True])
def test_greys_of_a_profile_are_shown_in_srgb(tmp_path, alpha):
    profile = icc(b"GRAY", {b"wtpt": xyz(0.9642, 1, 0.8249), b"kTRC": curve(1.8)})
    greys = np.arange(256).reshape(16, 16, 1)
    samples = np.concatenate([greys, np.full((16, 16, 1), 255)], 2) if alpha else greys
    content = png(samples, 4 if alpha else 0, 8, (b"iCCP", b"g\0\0" + zlib.compress(profile)))
    found = shown(tmp_path / "a.png", content)
    white = np.array([[0.9642, 1.0, 0.8249]])
    wanted = srgb_of_xyz((greys.reshape(-1, 1) / 255) ** 1.8 * white).reshape(16, 16, 3)
    assert close(found, wanted, COLOUR_STEPS)


CORNERS = NOISE.integers(0, 256, (16, 3))  # Lab of every mix of full and no ink, in bytes
CORNERS[:, 0] = NOISE.integers(60, 200, 16)
CORNERS[:, 1:] = NOISE.integers(110, 146, (16, 2))
CORNERS[0], CORNERS[15] = (255, 128, 128), (0, 128, 128)  # white and black, which would be made so


def cmyk_icc():
    identity = bytes(range(256))
    table = (
        b"mft1\0\0\0\0"
        + bytes([4, 3, 2, 0])
        + b"".join(struct.pack(">i", 65536 * (row == column)) for row in range(3) for column in range(3))
    )
    table += identity * 4 + CORNERS.astype(np.uint8).tobytes() + identity * 3
    return icc(b"CMYK", {b"wtpt": xyz(0.9642, 1, 0.8249), b"A2B0": table}, b"prtr", b"Lab ")


INKS = np.array(list(itertools.product((0, 255), repeat=4)), dtype=np.uint8)


def lab_colours(stored):
    return srgb_of_xyz(xyz_of_lab(np.stack([stored[:, 0] / 2.55, stored[:, 1] - 128.0, stored[:, 2] - 128.0], 1)))


def test_inks_of_a_profile_are_shown_in_srgb(tmp_path):
    blocks = np.repeat(np.repeat(INKS.reshape(4, 4, 4), 8, 0), 8, 1)
    image = Image.frombytes("CMYK", (32, 32), blocks.tobytes())
    wanted = lab_colours(CORNERS.astype(float)).reshape(4, 4, 3)
    for kind in ("TIFF", "JPEG"):
        image.save(tmp_path / "a", kind, icc_profile=cmyk_icc(), **({"quality": 100} if kind == "JPEG" else {}))
        found = np.asarray(load_image(tmp_path / "a"))[4::8, 4::8]
        # A step of ink by JPEG's rounding is at most the widest difference of two corners over 255: below 1.
        assert close(found, wanted, COLOUR_STEPS + (kind == "JPEG")), kind


@pytest.mark.parametrize("adobe", ["CMYK", "YCCK"])
def test_inks_without_a_profile_are_shown_as_ink_takes_light_away(tmp_path, adobe):
    inks = NOISE.integers(0, 256, (4, 4, 4))
    stored = inks.astype(float)
    if adobe == "YCCK":  # Adobe keeps inks inverted, and tells luma and chroma of what that is as light: of the inks again
        red, green, blue = (stored[..., channel] for channel in range(3))
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        told = [luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128]
        stored[..., :3] = np.stack([255 - np.clip(one, 0, 255) for one in told], -1)
    blocks = np.repeat(np.repeat(np.round(stored).astype(np.uint8), 8, 0), 8, 1)
    buffer = BytesIO()
    Image.frombytes("CMYK", (32, 32), blocks.tobytes()).save(buffer, "JPEG", quality=100, subsampling=0)
    content = bytearray(buffer.getvalue())
    place = content.index(b"Adobe")
    content[place + 11] = 2 if adobe == "YCCK" else 0
    found = shown(tmp_path / "a.jpg", bytes(content))[4::8, 4::8]
    wanted = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
    # Three rounded numbers, each off by half a step of up to 1.772, and one step by the transform's.
    assert close(found, wanted, 4)


def test_lab_is_shown_in_srgb(tmp_path):
    samples = np.concatenate([NOISE.integers(60, 200, (8, 8, 1)), NOISE.integers(-20, 20, (8, 8, 2))], 2)
    content = tiff([(samples % 256).astype(np.uint8)], (0, 262, 8))
    wanted = lab_colours((samples + np.array([0, 128, 128])).reshape(-1, 3).astype(float)).reshape(8, 8, 3)
    assert close(shown(tmp_path / "a.tif", content), wanted, COLOUR_STEPS)


@pytest.mark.parametrize("profile", [b"rubbish" * 40, WIDE["Adobe RGB"][0][:200], icc(b"GRAY", {b"kTRC": curve(1.8)}), b""])
def test_a_profile_that_is_broken_or_of_another_colour_space_is_ignored(tmp_path, profile):
    content = png(PIXELS, 2, 8, (b"iCCP", b"x\0\0" + zlib.compress(profile)))
    assert np.array_equal(shown(tmp_path / "a.png", content), PIXELS)
    assert shown_as_stored(tmp_path / "a.png")


def test_the_gamma_of_a_png_is_honoured_unless_it_is_that_of_srgb(tmp_path):
    linear = png(GRID, 2, 8, (b"gAMA", struct.pack(">I", 100_000)))
    wanted = 255 * np.vectorize(lambda v: 12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055)(GRID / 255)
    assert close(shown(tmp_path / "a.png", linear), wanted, COLOUR_STEPS)
    points = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
    ordinary = png(GRID, 2, 8, (b"gAMA", struct.pack(">I", 45_455)), (b"cHRM", points))
    assert np.array_equal(shown(tmp_path / "a.png", ordinary), GRID)
    assert shown_as_stored(tmp_path / "a.png")
    overruled = png(GRID, 2, 8, (b"gAMA", struct.pack(">I", 100_000)), (b"sRGB", b"\0"))
    assert np.array_equal(shown(tmp_path / "a.png", overruled), GRID)


def test_the_code_points_of_a_png_come_before_its_profile(tmp_path):
    wide = (b"iCCP", b"wide\0\0" + zlib.compress(WIDE["Adobe RGB"][0]))
    found = shown(tmp_path / "a.png", png(GRID, 2, 8, (b"cICP", bytes([12, 13, 0, 1])), wide))
    wanted = srgb_of_xyz(light_of_srgb(GRID.reshape(-1, 3) / 255) @ P3.T).reshape(GRID.shape)
    assert close(found, wanted, COLOUR_STEPS)
    assert np.array_equal(shown(tmp_path / "a.png", png(GRID, 2, 8, (b"cICP", bytes([1, 13, 0, 1])), wide)), GRID)
    assert shown_as_stored(tmp_path / "a.png")
    for transfer, name in ((16, "PQ"), (18, "HLG")):
        (tmp_path / "a.png").write_bytes(png(GRID, 2, 8, (b"cICP", bytes([9, transfer, 0, 1]))))
        with pytest.raises(UsageError, match=rf"a\.png is in high dynamic range \({name}\)"):
            load_image(tmp_path / "a.png")


def ordinary_files():
    grey, flags = PIXELS[..., 0], PIXELS[..., 0] > 128
    srgb = matrix_icc(np.array([[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169],
                                [0.0139322, 0.0971045, 0.7141733]]), SRGB_TONE)  # fmt: skip
    yield "jpeg", saved(PIXELS, "JPEG")
    yield "grey jpeg", saved(grey, "JPEG")
    yield "jpeg with sRGB", saved(PIXELS, "JPEG", icc_profile=srgb)
    yield "jpeg with exif", jpeg_with(JPEG, (0xE1, b"Exif\0\0" + exif(1)))
    for kind in ("PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "TGA", "JPEG2000", "AVIF"):
        yield kind, saved(PIXELS, kind)
        if kind not in ("AVIF",):
            yield f"grey {kind}", saved(grey, kind)
    yield "bits", saved(flags, "PNG")
    yield "bits tiff", saved(flags, "TIFF")
    yield "palette", png(PIXELS[..., :1] % 16, 3, 4, (b"PLTE", bytes(range(48))))
    yield "grey of two bits", png(PIXELS[..., :1] % 4, 0, 2)


@pytest.mark.parametrize(("name", "content"), ordinary_files(), ids=lambda value: value if isinstance(value, str) else "")
def test_ordinary_images_stay_bit_for_bit_what_they_were(tmp_path, name, content):
    (tmp_path / "a").write_bytes(content)
    with Image.open(tmp_path / "a") as image:
        before = np.asarray(image.convert("RGB"))
    assert np.array_equal(np.asarray(load_image(tmp_path / "a")), before)
    assert shown_as_stored(tmp_path / "a")
    assert images.image_header(tmp_path / "a").as_ever


def test_rgba_is_laid_on_white_as_it_always_was(tmp_path):
    samples = NOISE.integers(0, 256, (56, 56, 4), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(saved(samples, "PNG"))
    with Image.open(tmp_path / "a.png") as image:
        before = Image.new("RGB", image.size, (255, 255, 255))  # as qwen_vl_utils does it
        before.paste(image, mask=image.split()[3])
    assert np.array_equal(np.asarray(load_image(tmp_path / "a.png")), np.asarray(before))
    assert not shown_as_stored(tmp_path / "a.png")
    assert images.image_header(tmp_path / "a.png").as_ever


def animation(kind, count, **options):
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "lime", "blue", "white")[:count]]
    buffer = BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_is_no_image_and_the_way_on_is_told(tmp_path, kind):
    content = animation(kind, 3)
    (tmp_path / "a").write_bytes(content)
    assert frames_of_image(tmp_path / "a") == 3
    with pytest.raises(UsageError, match="image a holds 3 frames") as refused:
        check_image(content, "a")
    assert "--frames" in refused.value.hint
    still = animation(kind, 1)
    (tmp_path / "a").write_bytes(still)
    assert frames_of_image(tmp_path / "a") == 1
    assert check_image(still, "a") == kind.lower()


def test_pages_are_counted_but_no_copies_masks_and_second_pictures(tmp_path):
    pages = [PIXELS, PIXELS[::2], PIXELS[:, ::2]]
    for content, count in (
        (tiff(pages), 3),
        (tiff(pages, (1, 254, 1), (2, 254, 4)), 1),
        (tiff(pages, (1, 255, 2)), 2),
        (tiff(pages[:1]), 1),
        (mpo(1), 1),
    ):
        (tmp_path / "a").write_bytes(content)
        assert frames_of_image(tmp_path / "a") == count
        if count > 1:
            with pytest.raises(UsageError, match=f"image a holds {count} pages"):
                check_image(content, "a")
        else:
            assert check_image(content, "a") in ("tiff", "mpo")


def test_the_still_that_a_png_shows_where_animations_cannot_be_shown_is_no_frame(tmp_path):
    content = animation("PNG", 3, default_image=True)
    (tmp_path / "a").write_bytes(content)
    assert frames_of_image(tmp_path / "a") == 2


def deep_files():
    yield np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8), "PNG"
    yield np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8), "TIFF"
    yield np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), "TIFF"
    yield np.linspace(0, 70000, 64, dtype=np.int32).reshape(8, 8), "TIFF"


@pytest.mark.parametrize(("pixels", "kind"), deep_files())
def test_more_than_eight_bits_are_refused_with_the_way_on(tmp_path, pixels, kind):
    (tmp_path / "deep").write_bytes(saved(pixels, kind))
    for read in (load_image, lambda path: check_image(path.read_bytes(), path)):
        with pytest.raises(UsageError, match="deep has more than 8 bits a channel") as refused:
            read(tmp_path / "deep")
        assert "convert it to 8 bits" in refused.value.hint


def large_png(width, height):
    """Its header alone is sound."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = struct.pack(">I4s", len(head), b"IHDR") + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I4s", 0, b"IDAT") + struct.pack(">I", zlib.crc32(b"IDAT"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"hello", "is not an image that can be read"),
        (JPEG[: len(JPEG) // 2], "truncated|broken|cannot read"),
        (png(PIXELS, 2, 8)[:60], "cannot read image|not an image"),
        (large_png(20_000, 10_000), "too many pixels to be opened"),
    ],
)
def test_files_that_cannot_be_shown_are_refused_in_one_sentence(tmp_path, content, why, recwarn):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    for read in (load_image, lambda path: check_image(path.read_bytes(), path)):
        with pytest.raises(UsageError, match=why) as refused:
            read(path)
        assert "bad.jpg" in refused.value.message
        assert "\n" not in refused.value.message
    assert not recwarn.list
    with pytest.raises(UsageError, match="does not exist"):
        image_size(tmp_path / "gone.jpg")


def test_a_picture_of_108_megapixels_is_measured_without_a_warning(tmp_path, recwarn):
    (tmp_path / "large.png").write_bytes(large_png(12_000, 9_000))
    assert image_size(tmp_path / "large.png") == (12_000, 9_000)
    assert shown_as_stored(tmp_path / "large.png")
    assert not recwarn.list


def test_a_plain_jpeg_is_decoded_once_and_neither_copied_nor_turned(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(JPEG)
    decoded = []
    load = Image.Image.load

    def refuse(*_, **__):
        raise AssertionError("more work than decoding")

    for name in ("convert", "copy", "transpose", "point", "paste", "resize"):
        monkeypatch.setattr(Image.Image, name, refuse)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: (decoded.append(1), load(self)))
    load_image(tmp_path / "a.jpg")
    assert len(decoded) == 1
