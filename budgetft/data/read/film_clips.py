"""Which frames are taken of a film: as the part of a message says, else as the options say."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from budgetft.data.media.limits import Limits
from budgetft.data.media.shots import Shot
from budgetft.data.media.video import VideoFacts, spread
from budgetft.data.read.drafts import Media
from budgetft.data.read.options import MOST_FRAMES, Options
from budgetft.errors import UsageError


@dataclass(frozen=True)
class Clip:
    """What is taken of a film."""

    media: Media
    shots: tuple[Shot, ...]
    limits: Limits
    as_video: bool


def clip_of(one: Media, film: Path, facts: VideoFacts, options: Options) -> Clip:
    """The frames that ``one`` asks for, each from the middle of its part of the clip."""
    asked = one.options
    start, last = asked.get("video_start", 0.0), asked.get("video_end", facts.seconds)
    end = min(last, facts.seconds)
    if start >= end:
        raise UsageError(f"video {film} lasts {facts.seconds:.3f} s; the clip from {start:g} s to {last:g} s is not in it")
    count, as_video = _frame_count(asked, end - start, options)
    limits = Limits.of(asked)
    if "total_pixels" in asked:  # of qwen-vl-utils: shared by the frames, two of which make a slice
        each = max(1, int(asked["total_pixels"] / count * 2))
        limits = limits.replace(max_pixels=min(each, limits.max_pixels or each))
    moments = spread((start, end), count)
    if "video_start" in asked or "video_end" in asked:
        moments = tuple(replace(at, within=(start, end)) for at in moments)
    return Clip(one, tuple(Shot(video=film, moments=(at,)) for at in moments), limits, as_video)


def _frame_count(asked: Mapping[str, float], seconds: float, options: Options) -> tuple[int, bool]:
    """How many frames are taken, and whether they are a video: as the part says, else as the options say."""
    if "nframes" in asked and "fps" in asked:
        raise UsageError("nframes and fps of one video: only one of them can hold")
    own = "nframes" in asked or "fps" in asked
    if not own and options.frames is None:
        raise UsageError(
            "a video, and nothing says how many frames of it", hint="--frames 8 for images, --frames video:8 for a video"
        )
    as_video = options.video or options.frames is None
    if "nframes" in asked:
        count = int(asked["nframes"])
    elif "fps" in asked:
        low, high = int(asked.get("min_frames", 4)), int(asked.get("max_frames", 768))
        count = int(min(max(seconds * asked["fps"], low), high)) // 2 * 2  # in pairs, as qwen-vl-utils counts them
    else:
        count = options.frames or 1
    if not 1 <= count <= MOST_FRAMES:
        raise UsageError(f"{count} frames of a video; it must be from 1 to {MOST_FRAMES}")
    return count, as_video
