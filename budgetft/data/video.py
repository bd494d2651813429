"""Opening videos: probe them, pick frames in one pass, write them. Every way in which that fails names the file."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetft.errors import BudgetftError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

PAST_END_SECONDS = 0.5
"""A time this far past the end still means the last frame: annotations are rounded, and containers lie a little."""
DOUBLED_FPS = (59.0, 61.0)
"""Between these the official extractor writes every frame twice, and boxes count what it wrote."""

# Weighted prediction and adaptive B-frames read memory that was never written where a side is no multiple of 16: the
# bytes would differ from run to run.
_X264 = {"preset": "veryfast", "qp": "25", "x264-params": "weightp=0:b-adapt=0"}


@dataclass(frozen=True, kw_only=True)
class VideoFacts:
    """What the header of a video says."""

    width: int
    height: int
    fps: float
    seconds: float

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

    def __str__(self) -> str:
        return f"{self.seconds:.3f} s" if self.index is None else f"frame {self.index}"


@dataclass(frozen=True, kw_only=True)
class Picked:
    """A frame that was asked for."""

    wanted: int
    """Its place in what was asked."""
    index: int
    seconds: float
    frame: Any
    """An ``av.VideoFrame``."""


def load_av() -> Any:
    """The module ``av``, quiet; a ``BudgetftError`` says how to install it when it is missing."""
    try:
        import av
        import av.logging
    except ImportError:
        raise BudgetftError("videos need the package av", hint='pip install "budgetft[video]"') from None
    av.logging.set_level(av.logging.PANIC)  # a damaged file would print hundreds of lines; its error is raised anyway
    return av


def probe(path: Path) -> VideoFacts:
    """The facts of the video in ``path``; ``UsageError`` when it is missing, empty or no video."""
    with _opened(path) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        if stream.duration is not None and stream.time_base:
            seconds = float(stream.duration * stream.time_base)
        else:
            seconds = (container.duration or 0) / 1e6
        size = stream.codec_context.width, stream.codec_context.height
    if not rate or seconds <= 0 or min(size) < 1:
        raise UsageError(f"cannot read video {path}: no frame rate, length or size in its header ({seconds:g} s)")
    return VideoFacts(width=size[0], height=size[1], fps=float(rate), seconds=seconds)


def pick_frames(path: Path, wanted: Sequence[At], *, on_frame: Any = None) -> Iterator[Picked]:
    """The frame nearest to each of ``wanted``, in the order of the video, decoding it once and no further than needed.

    ``on_frame()`` is called for every frame decoded. Raises ``UsageError`` when the video breaks off or ends more than
    ``PAST_END_SECONDS`` before a moment that is wanted.
    """
    by_index = sorted((at.index, place) for place, at in enumerate(wanted) if at.index is not None)
    by_time = sorted((at.seconds, place) for place, at in enumerate(wanted) if at.index is None)
    last: Picked | None = None
    with _opened(path) as (container, stream):
        half = 0.5 / float(stream.average_rate or stream.guessed_rate or 25)
        start = None
        for index, frame in enumerate(container.decode(stream)):
            if on_frame is not None:
                on_frame()
            time = float(frame.time) if frame.time is not None else 2 * half * index
            start = time if start is None else start
            last = Picked(wanted=-1, index=index, seconds=max(0.0, time - start), frame=frame)
            while by_index and by_index[0][0] <= index:
                yield _at(last, by_index.pop(0)[1])
            while by_time and by_time[0][0] <= last.seconds + half:
                yield _at(last, by_time.pop(0)[1])
            if not by_index and not by_time:
                return
    if last is None:
        raise UsageError(f"cannot read video {path}: it holds no frame")
    late = [place for seconds, place in by_time if seconds > last.seconds + 2 * half + PAST_END_SECONDS]
    late += [place for _, place in by_index]
    if late:
        raise UsageError(f"video {path} ends at frame {last.index} ({last.seconds:.3f} s); {wanted[late[0]]} is wanted")
    for _, place in by_time:
        yield _at(last, place)


class Converter:
    """From decoded frames of one video to images; the tables that this needs are made once, which ``to_image`` does not."""

    def __init__(self) -> None:
        load_av()
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def image(self, frame: Any) -> "PilImage":
        """``frame`` (an ``av.VideoFrame``) in the mode RGBX: RGB with a byte that is not used, which needs no copy."""
        from PIL import Image

        rgb = self._reformatter.reformat(frame, format="rgb0")
        plane: Any = rgb.planes[0]  # a buffer, which its type does not say
        return Image.frombuffer("RGBX", (rgb.width, rgb.height), plane, "raw", "RGBX", plane.line_size, 1)


def count_frames(path: Path) -> int:
    """Decode all of ``path``; how many frames it has."""
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
    return Picked(wanted=place, index=picked.index, seconds=picked.seconds, frame=picked.frame)


class _opened:
    """The container and its first video stream, decoded in one thread; errors of FFmpeg inside become ours."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.container: Any = None

    def __enter__(self) -> tuple[Any, Any]:
        self.av = load_av()
        try:
            self.container = self.av.open(os.fspath(self.path))
            stream = next(iter(self.container.streams.video), None)
        except (self.av.error.FFmpegError, OSError, ValueError) as error:
            raise self._explained(error) from None
        if stream is None:
            self.container.close()
            raise UsageError(f"cannot read video {self.path}: it has no picture")
        stream.thread_count = 1  # files are decoded side by side instead
        return self.container, stream

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.container.close()
        if isinstance(error, self.av.error.FFmpegError):
            raise self._explained(error) from None

    def _explained(self, error: Exception) -> UsageError:
        if isinstance(error, FileNotFoundError):
            return UsageError(f"video {self.path} does not exist")
        if isinstance(error, self.av.error.InvalidDataError):
            return UsageError(f"{self.path} is not a video that can be read, or is damaged")
        return UsageError(f"cannot read video {self.path}: {getattr(error, 'strerror', None) or error}")
