"""Opening videos: probe them, pick frames in one pass, write them. Every way in which that fails names the file."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetft.data.media.animations import animation_frames, is_animation, measure_animation
from budgetft.data.media.film_frames import check_frame, pixel_aspect, shown_size, turn_of
from budgetft.errors import BudgetftError, UsageError
from budgetft.installed import install_line

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

PAST_END_SECONDS = 0.5
"""A time this far past the end still means the last frame: annotations are rounded, and containers lie a little."""
_LONGER_SECONDS = 0.1
"""A container whose length is by more than this above that of its picture has something else in it that lasts longer."""
_REGULAR = (0.75, 1.5)
"""Frames whose distance is within these shares of the average follow at one rate."""
_CLOSE = 1e-6
"""Seconds that are lost where times are computed."""
DOUBLED_FPS = (59.0, 61.0)
"""Between these the official extractor writes every frame twice, and boxes count what it wrote."""

# Weighted prediction and adaptive B-frames read memory that was never written where a side is no multiple of 16: the
# bytes would differ from run to run.
_X264 = {"preset": "veryfast", "qp": "25", "x264-params": "weightp=0:b-adapt=0"}


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What is known of a video before its frames are taken."""

    width: int
    """As shown, in pixels."""
    height: int
    fps: float
    seconds: float
    """How long its picture lasts."""

    @property
    def doubled(self) -> bool:
        """Whether an annotated ``image_id`` is twice the index of its frame (or that plus 1)."""
        return DOUBLED_FPS[0] < self.fps < DOUBLED_FPS[1]

    def frame_of(self, image_id: int) -> int:
        """The 0-based index of the decoded frame that ``image_id`` of a box file means."""
        return image_id // 2 if self.doubled else image_id


@dataclass(frozen=True)
class At:
    """A moment of a video, by the index of its frame or by seconds from its start."""

    seconds: float = 0.0
    index: int | None = None
    within: tuple[float, float] | None = None
    """Seconds from and to which the frame must be, where there is one."""

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s" if self.index is None else f"frame {self.index}"


@dataclass(frozen=True, kw_only=True)
class Picked:
    """A frame that was asked for."""

    wanted: int
    """Its place in what was asked."""
    index: int
    seconds: float
    """Its own time, from the first frame that is shown."""
    frame: Any
    """An ``av.VideoFrame``, or the image of an animation."""
    lasts: float = 0.0
    """Seconds for which it is shown, where that is told."""
    aspect: Fraction = Fraction(1)
    """Width over height of its pixels as shown."""


def load_av() -> Any:
    """The module ``av``, quiet; a ``BudgetftError`` says how to install it when it is missing."""
    try:
        import av
        import av.logging
    except ImportError:
        raise BudgetftError("videos need the package av", hint=install_line()) from None
    av.logging.set_level(av.logging.PANIC)  # a damaged file would print hundreds of lines; its error is raised anyway
    return av


def probe(path: Path) -> VideoFacts:
    """The facts of the video or animation in ``path``, of which one frame is decoded, or all where its header says too little.

    Raises ``UsageError`` when it is missing, empty, no video, or nothing that can be shown as ordinary pictures.
    """
    if is_animation(path):
        width, height, frames, seconds = measure_animation(path)
        return VideoFacts(width=width, height=height, fps=frames / seconds, seconds=seconds)
    with _opened(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        if stream.duration is not None and stream.time_base:
            seconds, sure = float(stream.duration * stream.time_base), True
        else:
            seconds, sure = (container.duration or 0) / 1e6, len(container.streams) == 1
        size = _first_size(path, container, stream)
    if not rate or seconds <= 0:
        rate, seconds = _measured(path)
    elif not sure:
        own = _measured(path)[1]
        seconds = own if seconds > own + max(_LONGER_SECONDS, 1 / rate) else seconds
    if min(size) < 1:
        raise UsageError(f"cannot read video {path}: no size in its header")
    return VideoFacts(width=size[0], height=size[1], fps=float(rate), seconds=seconds)


def _first_size(path: Path, container: Any, stream: Any) -> tuple[int, int]:
    """``(width, height)`` as shown of the first frame; as the header says where that is damaged."""
    aspect = pixel_aspect(stream)
    try:
        frame = next(iter(container.decode(stream)), None)
    except load_av().error.FFmpegError:  # told when its frames are taken
        frame = None
    if frame is None:
        return shown_size(stream.codec_context.width, stream.codec_context.height, aspect)
    check_frame(frame, path)
    return shown_size(frame.width, frame.height, aspect, turn_of(frame) or (False, False, False))


def _measured(path: Path) -> tuple[float, float]:
    """``(frames a second, seconds)`` of the picture, from the times of its packets, else from its frames."""
    with _opened(path) as (container, stream):
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        base = float(stream.time_base or 0)
        told = [(one.pts, one.duration or 0) for one in container.demux(stream) if one.size and not one.is_discard]
    timed = sorted((pts * base, lasts * base) for pts, lasts in told if pts is not None)
    if len(timed) < len(told) or not timed:
        frames = count_frames(path)
        if not frames:
            raise UsageError(f"cannot read video {path}: it holds no frame")
        return rate, frames / rate
    between = timed[-1][0] - timed[0][0]
    if between > 0:
        rate = (len(timed) - 1) / between
    return rate, between + (timed[-1][1] or 1 / rate)


def pick_frames(path: Path, wanted: Sequence[At], *, on_frame: Any = None) -> Iterator[Picked]:
    """The frame of each of ``wanted``, in the order of the video, decoding it once and no further than needed.

    Of a moment the nearest frame; where frames do not follow at one rate, the one that is shown then. None outside of
    ``within`` when there is one inside. ``on_frame()`` is called for every frame decoded. Raises ``UsageError`` when the
    video breaks off or ends more than ``PAST_END_SECONDS`` before a moment that is wanted.
    """
    by_index = sorted((at.index, place) for place, at in enumerate(wanted) if at.index is not None)
    by_time = sorted((at.seconds, place) for place, at in enumerate(wanted) if at.index is None)
    last: Picked | None = None
    half = 0.0
    for half, now in _shown(path, on_frame or (lambda: None)):
        while by_time and last is not None and by_time[0][0] <= _until(last, now, half):
            place = by_time.pop(0)[1]
            yield _at(_inside(last, now, wanted[place]), place)
        while by_index and by_index[0][0] <= now.index:
            yield _at(now, by_index.pop(0)[1])
        while by_time and by_time[0][0] <= now.seconds:
            place = by_time.pop(0)[1]
            yield _at(_inside(last or now, now, wanted[place], late=True), place)
        last = now
        if not by_index and not by_time:
            return
    if last is None:
        raise UsageError(f"cannot read video {path}: it holds no frame")
    end = last.seconds + max(2 * half, last.lasts)
    late = [place for seconds, place in by_time if seconds > end + PAST_END_SECONDS]
    late += [place for _, place in by_index]
    if late:
        raise UsageError(f"video {path} ends at frame {last.index} ({last.seconds:.3f} s); {wanted[late[0]]} is wanted")
    for _, place in by_time:
        yield _at(last, place)


def _until(last: Picked, now: Picked, half: float) -> float:
    """The moment up to which ``last`` is taken, when ``now`` follows it; ``half`` the average distance of frames."""
    regular = _REGULAR[0] <= (now.seconds - last.seconds) / (2 * half) <= _REGULAR[1]
    return last.seconds + half if regular else now.seconds - _CLOSE  # it is shown until then


def _inside(last: Picked, now: Picked, at: At, *, late: bool = False) -> Picked:
    """``now`` if ``late``, else ``last``; the other one where that is outside of what is allowed and the other is not."""
    taken, other = (now, last) if late else (last, now)
    if at.within is None:
        return taken
    start, end = at.within[0] - _CLOSE, at.within[1] + _CLOSE
    return other if not start <= taken.seconds <= end and start <= other.seconds <= end else taken


def _shown(path: Path, on_frame: Callable[[], None]) -> Iterator[tuple[float, Picked]]:
    """Half of the average distance of frames in seconds, and each frame with its time."""
    if is_animation(path):
        half = 0.5 / probe(path).fps
        for still in animation_frames(path, on_frame):
            yield half, Picked(wanted=-1, index=still.index, seconds=still.seconds, frame=still.image, lasts=still.lasts)
        return
    with _opened(path) as (container, stream):
        half, aspect = 0.5 / float(stream.average_rate or stream.guessed_rate or 25), pixel_aspect(stream)
        start = None
        for index, frame in enumerate(container.decode(stream)):
            on_frame()
            if index == 0:
                check_frame(frame, path)
            time = float(frame.time) if frame.time is not None else 2 * half * index
            start = time if start is None else start
            lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else 0.0
            seconds = max(0.0, time - start)
            yield half, Picked(wanted=-1, index=index, seconds=seconds, frame=frame, lasts=lasts, aspect=aspect)


def count_frames(path: Path) -> int:
    """Decode all of ``path``; how many frames it has."""
    if is_animation(path):
        return measure_animation(path)[2]
    with _opened(path) as (container, stream):
        return sum(1 for _ in container.decode(stream))


def write_video(path: Path, frames: Iterable["PilImage"], *, size: tuple[int, int], fps: Fraction) -> int:
    """Write ``frames`` (each of ``size``, even sides) as an MP4 file; how many there were.

    H.264 where the library can write it, else MPEG-4. Equal frames give equal bytes on one version of the library.
    """
    av = load_av()
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    count = 0
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1  # the bytes depend on it
        stream.options = _X264 if codec == "libx264" else {"qscale": "4"}
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
            count += 1
        container.mux(stream.encode())
    return count


def _at(picked: Picked, place: int) -> Picked:
    return replace(picked, wanted=place)


def _is_cover(stream: Any) -> bool:
    """Whether it is the picture on a sound file."""
    import av.stream

    kinds = getattr(av.stream, "Disposition", None)
    return kinds is not None and bool(stream.disposition & kinds.attached_pic)


class _opened:
    """The container and its first video stream, decoded in one thread; errors of FFmpeg inside become ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container: Any = None

    def __enter__(self) -> tuple[Any, Any]:
        self.av = load_av()
        try:
            self.container = self.av.open(os.fspath(self.path))
            stream = next((one for one in self.container.streams.video if not _is_cover(one)), None)
        except (self.av.error.FFmpegError, OSError, ValueError) as error:
            raise self._explained(error) from None
        if stream is None:
            self.container.close()
            raise UsageError(f"cannot read video {self.path}: it has no picture")
        if stream.codec_context is None:
            self.container.close()
            raise UsageError(f"cannot read video {self.path}: how its picture is coded is not known")
        stream.thread_count = 1  # files are decoded side by side instead
        return self.container, stream

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.container.close()
        if isinstance(error, self.av.error.FFmpegError):
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> UsageError:
        if isinstance(error, FileNotFoundError):
            return UsageError(f"video {self.path} does not exist")
        if self._is_empty():
            return UsageError(f"video {self.path} is empty (0 bytes)")
        if isinstance(error, self.av.error.InvalidDataError):
            return UsageError(f"{self.path} is not a video that can be read, or is damaged")
        return UsageError(f"cannot read video {self.path}: {getattr(error, 'strerror', None) or error}")

    def _is_empty(self) -> bool:
        try:
            return self.path.stat().st_size == 0
        except OSError:
            return False


def spread(window: tuple[float, float], count: int) -> tuple[At, ...]:
    """``count`` moments, each in the middle of its equal part of ``window``."""
    start, end = window
    return tuple(At(seconds=round(start + (end - start) * (part + 0.5) / count, 4)) for part in range(count))


def frame_rate(window: tuple[float, float], count: int) -> float:
    """Frames a second of ``count`` moments of :func:`spread`; of a window without length, as if it lasted a second."""
    start, end = window
    return round(count / (end - start), 6) if end > start else float(count)
