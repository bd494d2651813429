"""Pictures to take from videos: which moments, and what is made of them; taken in parallel, kept for a rerun."""

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from budgetft.data.media.film_frames import Converter
from budgetft.data.media.video import At, load_av, pick_frames
from budgetft.data.replace import write_whole
from budgetft.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

Finish = Literal["frame", "sheet", "crop"]
Box = tuple[float, float, float, float]
"""x, y, width and height in pixels of the video."""
BOX_COLOURS = {"pedestrian": ("green", (0, 230, 60)), "vehicle": ("red", (240, 30, 30))}
_QUALITY = 90
_VERSION = 2
"""Of what is made of a shot: raised with it, so that kept pictures are made again."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture to make of one video."""

    video: Path
    moments: tuple[At, ...]
    finish: Finish = "frame"
    """The frame; four frames on a sheet, left to right and top to bottom; the part of the frame in ``crop``."""
    drawn: tuple[tuple[str, Box], ...] = ()
    """Boxes to draw, by actor."""
    crop: Box | None = None

    @property
    def key(self) -> str:
        """What it is known by among the shots of its video."""
        said = repr((_VERSION, self.moments, self.finish, self.drawn, self.crop))
        return hashlib.sha256(said.encode()).hexdigest()[:24]


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A picture that was made."""

    file: str
    """Its name below the folder of frames, made of its content."""
    seconds: float
    """Of its first frame, from the first frame that its video shows; to the millisecond."""
    times: tuple[float, ...] = ()
    """Of all its frames, in the order of the moments; to the microsecond."""


@dataclass(kw_only=True)
class Harvest:
    """What came of all videos."""

    taken: dict[tuple[Path, str], Taken] = field(default_factory=dict)
    """By video and key of the shot."""
    bad: dict[Path, str] = field(default_factory=dict)
    """Why nothing came of a video."""
    videos: int = 0
    """Decoded now."""
    kept: int = 0
    """Videos whose pictures an earlier run had made."""
    frames: int = 0
    """Decoded now."""


def take_shots(
    shots: Mapping[Path, Sequence[Shot]],
    work: Path,
    *,
    workers: int | None = None,
    max_side: int | None = None,
    on_video: Callable[[], None] = lambda: None,
) -> Harvest:
    """Make every shot, each video decoded once; pictures are kept below ``work`` and not made again by a rerun.

    A side of a picture is at most ``max_side`` pixels. Threads, not processes: decoding, scaling and compressing release
    the interpreter's lock, and memory is held once. Videos that fail are told in the result.
    """
    (work / "frames").mkdir(parents=True, exist_ok=True)
    (work / "done").mkdir(exist_ok=True)
    harvest = Harvest()
    stop = threading.Event()
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1, thread_name_prefix="video")
    try:
        # The longest first would balance better, but an order that everyone expects makes progress readable.
        pending: dict[Future[_Done], Path] = {
            pool.submit(_take_video, video, list(wanted), work, max_side, stop): video for video, wanted in shots.items()
        }
        for future in as_completed(pending):
            video = pending.pop(future)
            try:
                done = future.result()
            except UsageError as error:
                harvest.bad[video] = error.message
            else:
                harvest.taken |= {(video, key): taken for key, taken in done.taken.items()}
                harvest.frames += done.frames
                harvest.videos += not done.kept
                harvest.kept += done.kept
            on_video()
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
    return harvest


@dataclass(frozen=True, kw_only=True)
class _Done:
    taken: dict[str, Taken]
    frames: int
    kept: bool


class _Stopped(Exception):
    """The run was interrupted while this video was being read."""


def _take_video(video: Path, shots: list[Shot], work: Path, max_side: int | None, stop: threading.Event) -> _Done:
    record = work / "done" / (hashlib.sha256(str(video.resolve()).encode()).hexdigest()[:24] + ".json")
    try:
        status = video.stat()
    except OSError as error:
        raise UsageError(f"cannot read video {video}: {error.strerror}") from None
    identity = {"video": str(video), "bytes": status.st_size, "changed": status.st_mtime_ns, "max_side": max_side}
    known = _read_record(record, identity, work)
    if all(shot.key in known for shot in shots):
        return _Done(taken={shot.key: known[shot.key] for shot in shots}, frames=0, kept=True)
    frames = 0

    def count() -> None:
        nonlocal frames
        frames += 1
        if stop.is_set():
            raise _Stopped

    taken = _decode(video, shots, work / "frames", max_side, count)
    rows = {key: [one.file, one.seconds, one.times] for key, one in {**known, **taken}.items()}
    write_whole(record, json.dumps({**identity, "shots": rows}).encode())  # last: what it names is on the disk
    return _Done(taken=taken, frames=frames, kept=False)


def _decode(
    video: Path, shots: list[Shot], folder: Path, max_side: int | None, on_frame: Callable[[], None]
) -> dict[str, Taken]:
    wanted = [(shot, place) for shot in shots for place in range(len(shot.moments))]
    waiting: dict[str, dict[int, tuple[PilImage, float]]] = {}
    taken: dict[str, Taken] = {}
    load_av()  # says how to install it
    converter = Converter()
    last: tuple[int, PilImage] | None = None
    for picked in pick_frames(video, [shot.moments[place] for shot, place in wanted], on_frame=on_frame):
        shot, place = wanted[picked.wanted]
        if last is None or last[0] != picked.index:  # one frame may be wanted by several shots
            last = picked.index, converter.image(picked.frame, picked.aspect)
        parts = waiting.setdefault(shot.key, {})
        parts[place] = last[1], picked.seconds
        if len(parts) == len(shot.moments):
            ordered = [parts[index] for index in range(len(parts))]
            image = _finished(shot, [image for image, _ in ordered])
            times = tuple(round(seconds, 6) for _, seconds in ordered)
            file = _store(image, folder, max_side)
            taken[shot.key] = Taken(file=file, seconds=round(ordered[0][1], 3), times=times)
            del waiting[shot.key]
    return taken


def _finished(shot: Shot, images: "list[PilImage]") -> "PilImage":
    from PIL import Image, ImageDraw

    if shot.finish == "frame" and not shot.drawn:
        return images[0]
    images = [image.convert("RGB") for image in images]
    if shot.finish == "sheet":
        width, height = images[0].size
        sheet = Image.new("RGB", (width // 2 * 2, height // 2 * 2))
        for place, image in enumerate(images[:4]):
            half = image.resize((width // 2, height // 2), Image.Resampling.BILINEAR)
            sheet.paste(half, (place % 2 * (width // 2), place // 2 * (height // 2)))
        return sheet
    image = images[0]
    if shot.drawn:
        pen = ImageDraw.Draw(image)
        for actor, (x, y, width, height) in shot.drawn:
            colour = BOX_COLOURS[actor][1]
            pen.rectangle((x, y, x + width, y + height), outline=colour, width=max(1, image.height // 240))
    if shot.crop is not None:
        x, y, width, height = shot.crop
        image = image.crop((round(x), round(y), round(x + width), round(y + height)))
    return image


def _store(image: "PilImage", folder: Path, max_side: int | None) -> str:
    if max_side is not None and max(image.size) > max_side:
        image = image.convert("RGB")
        image.thumbnail((max_side, max_side))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    content = buffer.getvalue()
    name = hashlib.sha256(content).hexdigest()[:24] + ".jpg"
    write_whole(folder / name, content)
    return name


def _read_record(path: Path, identity: dict[str, Any], work: Path) -> dict[str, Taken]:
    """The pictures that were made of the same video; none when it has changed or one of them is gone."""
    try:
        data = json.loads(path.read_bytes())
        taken = {
            key: Taken(file=file, seconds=seconds, times=tuple(times)) for key, (file, seconds, times) in data["shots"].items()
        }
        same = all(data[name] == value for name, value in identity.items())
        whole = same and all((work / "frames" / one.file).is_file() for one in taken.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return taken if whole else {}
