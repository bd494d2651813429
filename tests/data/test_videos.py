"""Frames of a film are what a player shows at a moment: upright, in proportion, in colour, and of the time that is told."""

import wave
from fractions import Fraction
from io import BytesIO

import numpy as np
import pytest
from media import exif, light_of_srgb, seen, srgb_of_xyz
from PIL import Image

from budgetft.data.media.film_frames import Converter
from budgetft.data.media.shots import Shot, take_shots
from budgetft.data.media.video import At, count_frames, pick_frames, probe
from budgetft.errors import UsageError

av = pytest.importorskip("av")

NOISE = np.random.default_rng(3)
PIXELS = NOISE.integers(0, 256, (16, 32, 3), dtype=np.uint8)
CODE_STEPS = 2
"""Of 255. A colour is stored in rounded luma and chroma; half a step of these is up to 1.86 / 2 of red or blue."""


def film(
    path,
    frames,
    *,
    codec="png",
    pix_fmt="rgb24",
    rate=10,
    times=None,
    base=1000,
    form="rgb24",
    tell=None,
    options=None,
    matrix=None,
):
    """Write ``frames`` (h, w, 3), each for ``times`` (seconds) or at ``rate``."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = frames[0].shape[:2] if form == "rgb24" else frames[0].shape[1:]
        stream.pix_fmt = pix_fmt
        stream.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, base)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for name, value in (tell or {}).items():
            setattr(stream.codec_context, name, value)
        for number, pixels in enumerate(frames):
            frame = picture(pixels, form)
            for name in ("color_range", "colorspace", "color_trc", "color_primaries"):
                if name in (tell or {}):
                    setattr(frame, name, tell[name])
            frame.pts = number if times is None else round(times[number] * base)
            frame.time_base = Fraction(1, rate) if times is None else Fraction(1, base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def picture(pixels, form):
    if form == "rgb24":
        return av.VideoFrame.from_ndarray(pixels, format="rgb24")
    _, height, width = pixels.shape
    frame = av.VideoFrame(width, height, form)
    for plane, values in zip(frame.planes, pixels, strict=True):
        rows = np.zeros((height, plane.line_size), np.uint8)
        packed = values.astype("<u2" if form.endswith("le") else np.uint8).view(np.uint8).reshape(height, -1)
        rows[:, : packed.shape[1]] = packed
        plane.update(rows.tobytes())
    return frame


def greys(count, size=(32, 16)):
    """Frame k is of the grey 10 k."""
    return [np.full((size[1], size[0], 3), 10 * number, np.uint8) for number in range(count)]


def looked_at(path, at=None):
    (picked,) = pick_frames(path, [at or At(index=0)])
    return np.asarray(Converter().image(picked.frame, picked.aspect).convert("RGB"))


def number_of(pixels):
    return round(float(pixels.mean()) / 10)


# EXIF's orientation says where the first row and column are seen, and so does the matrix (x, y right and down).
MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


def matrix_of(a, b, c, d, scale=1.0):
    one = round(65536 * scale)
    return [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30]


@pytest.mark.parametrize("orientation", MATRICES)
def test_films_turned_or_mirrored_by_their_container_are_upright(tmp_path, orientation):
    path = film(tmp_path / "a.mov", [PIXELS] * 2, matrix=matrix_of(*MATRICES[orientation]))
    wanted = seen(PIXELS, orientation)
    assert np.array_equal(looked_at(path), wanted)
    facts = probe(path)
    assert (facts.width, facts.height) == (wanted.shape[1], wanted.shape[0])


def test_a_film_turned_askew_is_refused_by_name(tmp_path):
    path = film(tmp_path / "askew.mov", [PIXELS], matrix=[46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30])
    for read in (probe, looked_at):
        with pytest.raises(UsageError, match=r"askew\.mov is turned by -?45 degrees"):
            read(path)


@pytest.mark.parametrize(
    ("aspect", "orientation", "size"),
    [
        (Fraction(2), 1, (64, 16)),
        (Fraction(1, 2), 1, (32, 32)),
        (Fraction(3, 2), 6, (16, 48)),
        (Fraction(16, 15), 3, (34, 16)),
        (Fraction(1), 1, (32, 16)),
    ],
)
def test_pixels_that_are_not_square_are_shown_in_proportion(tmp_path, aspect, orientation, size):
    path = film(
        tmp_path / "a.mov",
        [PIXELS],
        codec="mpeg4",
        pix_fmt="yuv420p",
        tell={"sample_aspect_ratio": aspect},
        matrix=matrix_of(*MATRICES[orientation]),
    )
    facts = probe(path)
    assert (facts.width, facts.height) == size
    assert looked_at(path).shape[:2] == size[::-1]


def test_the_coded_size_of_a_film_is_cropped_to_the_shown_one(tmp_path):
    frames = [np.full((34, 50, 3), 200, np.uint8)] * 3
    path = film(tmp_path / "a.mp4", frames, codec="libx264", pix_fmt="yuv420p")  # codes 64 x 48
    facts = probe(path)
    assert (facts.width, facts.height) == (50, 34)
    assert looked_at(path).shape == (34, 50, 3)


WEIGHTS = {
    "BT.601": (5, 0.299, 0.114),
    "BT.709": (1, 0.2126, 0.0722),
    "BT.2020": (9, 0.2627, 0.0593),
    "untold": (2, 0.299, 0.114),
}
COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [200, 40, 90], [10, 10, 10], [255, 255, 255], [30, 200, 220], [0, 0, 0]]
)


def coded(colours, red, blue, full, bits):
    """(3, h, w) luma and chroma of (h, w, 3) colours, by the formula of ITU-R BT.601 and its successors."""
    r, g, b = (colours[..., channel] / 255 for channel in range(3))
    luma = red * r + (1 - red - blue) * g + blue * b
    chroma = [(b - luma) / (2 - 2 * blue), (r - luma) / (2 - 2 * red)]
    scale = 2 ** (bits - 8)
    if full:
        most = 2**bits - 1
        parts = [luma * most, *(one * most + 128 * scale for one in chroma)]
    else:
        parts = [(16 + 219 * luma) * scale, *((128 + 224 * one) * scale for one in chroma)]
    return np.clip(np.round(np.stack(parts)), 0, 2**bits - 1)


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_colours_are_read_by_the_range_and_the_matrix_of_the_film(tmp_path, weights, full, bits):
    told, red, blue = WEIGHTS[weights]
    colours = np.repeat(np.repeat(COLOURS.reshape(2, 4, 3), 8, 0), 8, 1)
    path = film(
        tmp_path / "a.mkv",
        [coded(colours, red, blue, full, bits)],
        codec="ffv1",
        pix_fmt="yuv444p" if bits == 8 else "yuv444p10le",
        form="yuv444p" if bits == 8 else "yuv444p10le",
        tell={"color_range": 2 if full else 1, "colorspace": told},
    )
    found = looked_at(path).astype(float)
    assert np.abs(found - colours).max() <= CODE_STEPS


@pytest.mark.parametrize(("told", "points"), [(9, "BT.2020"), (12, "P3")])
def test_wide_colours_of_a_film_are_shown_in_srgb(tmp_path, told, points):
    # XYZ of the primaries for a white of D65 (ITU-R BT.2020, SMPTE EG 432-1), and from there to D50 (Bradford).
    columns = {
        "BT.2020": [[0.636958, 0.1446169, 0.168881], [0.2627002, 0.6779981, 0.0593017], [0.0, 0.0280727, 1.060985]],
        "P3": [[0.4865709, 0.2656677, 0.1982173], [0.2289746, 0.6917385, 0.0792869], [0.0, 0.0451134, 1.0439444]],
    }[points]
    to_d50 = [[1.0478112, 0.0228866, -0.0501270], [0.0295424, 0.9904844, -0.0170491], [-0.0092345, 0.0150436, 0.7521316]]
    colours = np.repeat(np.repeat(NOISE.integers(40, 216, (2, 4, 3)), 8, 0), 8, 1)
    path = film(
        tmp_path / "a.mkv",
        [coded(colours, 0.2126, 0.0722, False, 8)],
        codec="ffv1",
        pix_fmt="yuv444p",
        form="yuv444p",
        tell={"color_range": 1, "colorspace": 1, "color_primaries": told, "color_trc": 1},
    )
    stored = colours.reshape(-1, 3)
    wanted = srgb_of_xyz(light_of_srgb(stored / 255) @ (np.array(to_d50) @ columns).T).reshape(colours.shape)
    # A step of what is stored is made larger by the matrix between the primaries: rows up to 1.66 + 0.59 + 0.07 in size, and
    # by the tone curve where it is lower than what it was (up to three times near black).
    assert np.median(np.abs(looked_at(path) - wanted)) <= CODE_STEPS
    assert np.abs(looked_at(path) - wanted).max() <= 3 * 2.4 * CODE_STEPS


@pytest.mark.parametrize(("told", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_refused_by_name_with_the_way_on(tmp_path, told, name):
    path = film(
        tmp_path / "bright.mkv",
        [coded(PIXELS, 0.2627, 0.0593, False, 10)],
        codec="ffv1",
        pix_fmt="yuv444p10le",
        form="yuv444p10le",
        tell={"color_range": 1, "colorspace": 9, "color_primaries": 9, "color_trc": told},
    )
    for read in (probe, looked_at):
        with pytest.raises(UsageError, match=rf"bright\.mkv is in high dynamic range \({name}\)") as refused:
            read(path)
        assert "tonemap" in refused.value.hint


def test_transparent_parts_of_a_film_are_white(tmp_path):
    frame = np.zeros((16, 32, 4), np.uint8)
    frame[:, 16:] = 200, 30, 60, 255
    with av.open(str(tmp_path / "a.mov"), "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "rgba"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgba")))
        container.mux(stream.encode())
    found = looked_at(tmp_path / "a.mov")
    assert (found[:, :16] == 255).all()
    assert (found[:, 16:] == [200, 30, 60]).all()


def test_the_pictures_of_shots_are_upright_and_say_the_times_of_all_their_frames(tmp_path):
    blocks = np.zeros((64, 128, 3), np.uint8)
    blocks[:, :64] = 250, 20, 20  # stored at the left: seen at the top
    path = film(tmp_path / "a.mov", [blocks] * 8, matrix=matrix_of(*MATRICES[6]))
    frame = Shot(video=path, moments=(At(seconds=0.32),))
    sheet = Shot(video=path, moments=tuple(At(seconds=second) for second in (0.1, 0.3, 0.41, 0.68)), finish="sheet")
    harvest = take_shots({path: [frame, sheet]}, tmp_path / "work")
    taken = harvest.taken[path, frame.key]
    assert (taken.seconds, taken.times) == (0.3, (0.3,))
    with Image.open(tmp_path / "work" / "frames" / taken.file) as image:
        assert image.size == (64, 128)
        red, black = np.asarray(image)[8, 32], np.asarray(image)[120, 32]
    assert (np.abs(red.astype(int) - [250, 20, 20]) < 12).all()
    assert (black < 12).all()
    assert harvest.taken[path, sheet.key].times == (0.1, 0.3, 0.4, 0.7)
    again = take_shots({path: [frame, sheet]}, tmp_path / "work")
    assert (again.kept, again.taken) == (1, harvest.taken)


def test_records_of_pictures_from_before_there_were_times_are_made_again(tmp_path):
    import json

    path = film(tmp_path / "a.mov", greys(3))
    shot = Shot(video=path, moments=(At(index=1),))
    first = take_shots({path: [shot]}, tmp_path / "work")
    (record,) = (tmp_path / "work" / "done").iterdir()
    data = json.loads(record.read_text())
    data["shots"] = {key: row[:2] for key, row in data["shots"].items()}
    record.write_text(json.dumps(data))
    again = take_shots({path: [shot]}, tmp_path / "work")
    assert again.kept == 0
    assert again.taken == first.taken


def times_and_numbers(path, wanted):
    converter = Converter()
    return {
        one.wanted: (one.seconds, number_of(np.asarray(converter.image(one.frame, one.aspect).convert("RGB"))))
        for one in pick_frames(path, wanted)
    }


UNEVEN = [0.0, 0.1, 0.2, 0.3, 2.3, 2.4, 2.42, 2.44, 2.5, 6.0]


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
def test_frames_at_uneven_times_are_taken_when_they_are_shown(tmp_path, kind):
    codec = {"codec": "ffv1", "pix_fmt": "bgr0"} if kind == "mkv" else {"codec": "libx264", "pix_fmt": "yuv420p"}
    path = film(tmp_path / f"a.{kind}", greys(10), times=UNEVEN, **codec)
    moments = [0.0, 0.1, 1.0, 2.25, 2.31, 2.405, 2.43, 4.0, 5.9, 6.0]
    found = times_and_numbers(path, [At(seconds=moment) for moment in moments])
    for place, moment in enumerate(moments):
        seconds, number = found[place]
        assert seconds == pytest.approx(UNEVEN[number], abs=1e-6), "the time is of the frame that was taken"
        shown = max(index for index, start in enumerate(UNEVEN) if start <= moment + 1e-6)
        nearest = min(range(10), key=lambda index: abs(UNEVEN[index] - moment))
        assert number in (shown, nearest), moment
        assert abs(UNEVEN[number] - moment) <= max(0.02, moment - UNEVEN[shown]), moment


@pytest.mark.parametrize("seed", range(4))
def test_no_frame_outside_of_a_part_is_taken_when_one_is_inside(tmp_path, seed):
    noise = np.random.default_rng(seed)
    gaps = noise.choice([0.02, 0.1, 0.1, 0.1, 0.7], 23) if seed else np.full(23, 0.1)
    times = np.round(np.concatenate([[0], np.cumsum(gaps)]), 3)
    path = film(tmp_path / "a.mkv", greys(24), codec="ffv1", pix_fmt="bgr0", times=times)
    wanted = []
    for _ in range(60):
        start, end = np.sort(noise.uniform(0, times[-1], 2))
        if noise.random() < 0.5:  # exactly from one frame to another
            start, end = np.sort(noise.choice(times, 2))
        wanted.append(At(seconds=float(noise.uniform(start, end)), within=(float(start), float(end))))
    found = times_and_numbers(path, wanted)
    for place, at in enumerate(wanted):
        start, end = at.within
        seconds, number = found[place]
        assert seconds == pytest.approx(times[number], abs=1e-6)
        if any(start <= one <= end for one in times):
            assert start - 1e-6 <= seconds <= end + 1e-6, at
        else:
            assert number == max(np.flatnonzero(times <= at.seconds)) or abs(seconds - at.seconds) <= 0.05, at


def test_times_count_from_the_first_frame_that_is_shown(tmp_path):
    late = film(tmp_path / "late.mkv", greys(10), codec="ffv1", pix_fmt="bgr0", times=[3 + k / 10 for k in range(10)])
    later = film(tmp_path / "later.mp4", greys(10), codec="libx264", pix_fmt="yuv420p", times=[3 + k / 10 for k in range(10)])
    for path in (late, later):
        assert times_and_numbers(path, [At(seconds=0.5), At(index=2)]) == {
            0: (pytest.approx(0.5), 5),
            1: (pytest.approx(0.2), 2),
        }


def test_frames_before_the_start_of_an_edit_list_are_not_shown(tmp_path):
    film(tmp_path / "whole.mp4", greys(20), codec="libx264", pix_fmt="yuv420p", tell={"gop_size": 50, "max_b_frames": 0})
    with (
        av.open(str(tmp_path / "whole.mp4")) as source,
        av.open(str(tmp_path / "cut.mp4"), "w", options={"avoid_negative_ts": "disabled", "use_editlist": "1"}) as out,
    ):
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is None:
                continue
            shift = round(0.5 / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = stream
            out.mux(packet)
    facts = probe(tmp_path / "cut.mp4")
    assert facts.seconds == pytest.approx(1.5, abs=0.02)
    assert count_frames(tmp_path / "cut.mp4") == 15
    found = times_and_numbers(tmp_path / "cut.mp4", [At(seconds=0.0), At(seconds=1.0)])
    assert found == {0: (pytest.approx(0.0), 5), 1: (pytest.approx(1.0), 15)}


LENGTHLESS = {
    "recorder.webm": {"codec": "libvpx", "pix_fmt": "yuv420p", "options": {"live": "1"}},
    "live.mkv": {"codec": "libx264", "pix_fmt": "yuv420p", "options": {"live": "1"}},
    "pieces.mp4": {"codec": "libx264", "pix_fmt": "yuv420p", "options": {"movflags": "frag_keyframe+empty_moov"}},
    "flash.flv": {"codec": "flv1", "pix_fmt": "yuv420p", "options": {"flvflags": "no_duration_filesize"}},
    "stream.ts": {"codec": "libx264", "pix_fmt": "yuv420p"},
}


@pytest.mark.parametrize("name", LENGTHLESS)
def test_a_film_without_a_length_in_its_header_is_counted(tmp_path, name):
    path = film(tmp_path / name, greys(20), **LENGTHLESS[name])
    facts = probe(path)
    assert facts.seconds == pytest.approx(2.0, abs=0.11)  # the last frame's own length may be untold
    assert facts.fps == pytest.approx(10, abs=0.1)
    found = times_and_numbers(path, [At(seconds=facts.seconds * (part + 0.5) / 4) for part in range(4)])
    for part, (seconds, number) in found.items():
        assert seconds == pytest.approx(number / 10, abs=1e-3)
        assert abs(seconds - facts.seconds * (part + 0.5) / 4) <= 0.05 + 1e-3


def test_a_bare_stream_without_any_times_is_counted_frame_by_frame(tmp_path):
    path = film(tmp_path / "bare.h264", greys(20), codec="libx264", pix_fmt="yuv420p", rate=25)
    facts = probe(path)
    assert facts.seconds == pytest.approx(20 / facts.fps)
    found = times_and_numbers(path, [At(seconds=4.5 / facts.fps), At(index=19)])
    assert found[1][1] == 19
    assert found[0][1] in (4, 5)


@pytest.mark.parametrize("name", ["one.mp4", "one.webm", "one.mkv", "live.webm", "one.mov"])
def test_a_film_of_one_frame_is_a_film(tmp_path, name):
    codec = {"webm": "libvpx", "mov": "png"}.get(name[-4:].strip("."), "libx264")
    options = {"live": "1"} if name.startswith("live") else {}
    pix_fmt = "rgb24" if codec == "png" else "yuv420p"
    path = film(tmp_path / name, greys(6)[5:], codec=codec, pix_fmt=pix_fmt, options=options)
    facts = probe(path)
    assert 0 < facts.seconds <= 1
    assert facts.fps > 0
    assert times_and_numbers(path, [At(seconds=facts.seconds / 2)])[0] == (0.0, 5)


def test_sound_that_lasts_longer_does_not_make_the_picture_longer(tmp_path):
    for name in ("a.mkv", "a.mp4"):
        with av.open(str(tmp_path / name), "w") as container:
            picture_stream = container.add_stream("libx264", rate=10)
            picture_stream.width, picture_stream.height, picture_stream.pix_fmt = 32, 16, "yuv420p"
            sound = container.add_stream("aac", rate=16000)
            for pixels in greys(20):
                container.mux(picture_stream.encode(av.VideoFrame.from_ndarray(pixels)))
            container.mux(picture_stream.encode())
            for start in range(0, 16000 * 6, 1024):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 16000, start
                container.mux(sound.encode(frame))
            container.mux(sound.encode())
        assert probe(tmp_path / name).seconds == pytest.approx(2.0, abs=0.1), name


def test_the_cover_of_a_sound_file_is_no_film(tmp_path):
    with av.open(str(tmp_path / "song.mp3"), "w") as container:
        sound = container.add_stream("mp3", rate=16000)
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 16, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        for packet in cover.encode(av.VideoFrame.from_ndarray(PIXELS).reformat(format="yuvj420p")) + cover.encode():
            container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    with pytest.raises(UsageError, match=r"song\.mp3: it has no picture"):
        probe(tmp_path / "song.mp3")


def test_what_is_no_film_is_refused_in_one_sentence(tmp_path):
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello")
    whole = film(tmp_path / "whole.mp4", greys(20), codec="libx264", pix_fmt="yuv420p").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name, why in (
        ("sound.wav", "has no picture"),
        ("empty.mp4", r"is empty \(0 bytes\)"),
        ("text.mp4", "not a video that can be read"),
        ("cut.mp4", "not a video that can be read, or is damaged"),
        ("gone.mp4", "does not exist"),
    ):
        for read in (probe, looked_at):
            with pytest.raises(UsageError, match=why) as refused:
                read(tmp_path / name)
            assert name in refused.value.message
            assert "\n" not in refused.value.message


def test_a_film_that_ends_before_what_its_header_says_is_refused_by_name(tmp_path):
    noise = [NOISE.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(20)]
    whole = film(tmp_path / "whole.mkv", noise, codec="ffv1", pix_fmt="bgr0").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UsageError, match=r"cut\.mkv (ends at frame \d+ .* is wanted|.*damaged)"):
        list(pick_frames(tmp_path / "cut.mkv", [At(seconds=1.9)]))


DELAYS = [200, 50, 400, 100, 250]


def animation(kind, path, *, delays=DELAYS, orientation=1, transparent=False):
    frames = []
    for number in range(len(delays)):
        frame = Image.new("RGBA" if transparent else "RGB", (32, 16), (40 * number, 40 * number, 40 * number))
        frame.paste((255, 0, 0, 0) if transparent else (255, 0, 0), (0, 0, 16, 8))
        frames.append(frame)
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 95}, "GIF": {"optimize": False, "disposal": 2}}.get(kind, {})
    if orientation != 1:
        options["exif"] = b"Exif\0\0" + exif(orientation)
    buffer = BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=list(delays), loop=0, **options)
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animated_image_is_a_film_of_its_own_delays(tmp_path, kind):
    path = animation(kind, tmp_path / f"a.{kind.lower()}")
    facts = probe(path)
    assert (facts.width, facts.height) == (32, 16)
    assert facts.seconds == pytest.approx(sum(DELAYS) / 1000, abs=2e-3)
    assert facts.fps == pytest.approx(len(DELAYS) / sum(DELAYS) * 1000, rel=0.01)
    assert count_frames(path) == len(DELAYS)
    starts = [sum(DELAYS[:number]) / 1000 for number in range(len(DELAYS))]
    wanted = [At(seconds=start + delay / 2000) for start, delay in zip(starts, DELAYS, strict=True)]
    converter = Converter()
    for picked in pick_frames(path, wanted):
        pixels = np.asarray(converter.image(picked.frame, picked.aspect))
        assert picked.index == picked.wanted
        assert picked.seconds == pytest.approx(starts[picked.index], abs=2e-3)
        assert np.abs(pixels[12, 24].astype(int) - 40 * picked.index).max() <= (6 if kind == "AVIF" else 0)
        assert np.abs(pixels[4, 8].astype(int) - [255, 0, 0]).max() <= (12 if kind == "AVIF" else 0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_on_white_where_it_is_transparent(tmp_path, kind):
    path = animation(kind, tmp_path / "a", transparent=True)
    for picked in pick_frames(path, [At(index=number) for number in range(len(DELAYS))]):
        pixels = np.asarray(picked.frame)
        assert (pixels[:8, :16] == 255).all()
        assert (pixels[8:, 16:] == 40 * picked.index).all()


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_an_animation_is_upright(tmp_path, kind):
    path = animation(kind, tmp_path / "a", orientation=6)
    facts = probe(path)
    assert (facts.width, facts.height) == (16, 32)
    pixels = looked_at(path, At(index=2))
    assert (pixels[:16, 8:] == [255, 0, 0]).all()


def test_delays_that_are_too_short_are_what_browsers_make_of_them(tmp_path):
    path = animation("GIF", tmp_path / "a.gif", delays=[0, 10, 20, 50])
    assert probe(path).seconds == pytest.approx(0.1 + 0.1 + 0.02 + 0.05)


def test_the_still_of_a_moving_png_is_no_frame_of_it(tmp_path):
    frames = [Image.new("RGB", (8, 8), (40 * number,) * 3) for number in range(4)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:], default_image=True, duration=100)
    assert count_frames(tmp_path / "a.png") == 3
    assert number_of(looked_at(tmp_path / "a.png")) == 4


def test_shots_of_an_animation_have_their_own_times(tmp_path):
    path = animation("GIF", tmp_path / "a.gif")
    shot = Shot(video=path, moments=(At(seconds=0.5),))
    harvest = take_shots({path: [shot]}, tmp_path / "work")
    assert not harvest.bad
    assert harvest.taken[path, shot.key].times == (0.25,)
    broken = tmp_path / "broken.gif"
    broken.write_bytes(path.read_bytes()[:60])
    assert "broken.gif" in take_shots({broken: [Shot(video=broken, moments=(At(seconds=0.5),))]}, tmp_path / "work").bad[broken]
