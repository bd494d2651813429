"""From several frames a row to the frames that an example may have: one, a sheet, a frame and a part of it, or N."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from budgetft.data.media.shots import BOX_COLOURS, Box, Shot
from budgetft.data.media.video import At, VideoFacts, frame_rate, spread
from budgetft.data.wts.tree import ACTORS, OVERHEAD, PHASES
from budgetft.value import Value

Policy = Literal["mid", "boxes", "expand"]
_SHEET = 4
_PADDING = 0.6
"""Added to each side of a crop, as a share of the boxes in it: the surroundings explain the actor."""
_SMALLEST_CROP = 0.25
"""Of the frame's sides."""


class Format(Value):
    """What the images of an example are."""

    frames: Literal["single", "sheet", "crop"] | int = "single"
    """One frame an example; four frames on one sheet; a frame and the enlarged part around the actors; N frames."""
    video: bool = False
    """The N frames are one video, for the model's video tokens; else N images."""
    policy: Policy = "mid"
    """For ``single``: the frame in the middle of the phase; the frame with boxes nearest to it, boxes drawn; or
    ``per_row`` frames, an example of weight 1/N each."""
    per_row: int = Field(default=3, ge=1, le=64)

    @model_validator(mode="after")
    def _agree(self) -> "Format":
        if isinstance(self.frames, int) and not 1 <= self.frames <= 64:
            raise ValueError(f"frames must be single, sheet, crop or a number from 1 to 64, not {self.frames}")
        if self.video and not isinstance(self.frames, int):
            raise ValueError(f"a video is of a number of frames, not of frames={self.frames}")
        if self.frames != "single" and self.policy != "mid":
            raise ValueError(f"the policy {self.policy} is for frames=single, not for frames={self.frames}")
        return self


@dataclass(frozen=True, kw_only=True)
class FrameBox:
    """A box of an actor in a frame, by the index of the decoded frame."""

    index: int
    box: Box
    digit: str | None


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video that can be read."""

    path: Path
    view: str
    facts: VideoFacts
    boxes: dict[str, list[FrameBox]] = field(default_factory=dict)
    """By actor."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A caption or a question, before it is decided which frames show it."""

    id: str
    """The same for all cameras and frames that it is expanded into."""
    scenario: str
    digit: str | None
    actor: str | None
    window: tuple[float, float] | None
    """Seconds; None for the whole video."""
    ask: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An example whose pictures are still to be taken."""

    fields: dict[str, Any]
    shots: tuple[Shot, ...]


def drafts_of(row: Row, clips: list[Clip], form: Format) -> list[Draft]:
    """The examples of ``row``: its frames in each of ``clips``, each of weight 1 over their number."""
    many = [(clip, rank, shots) for clip in clips for rank, shots in enumerate(_shots(row, clip, form))]
    several = len({clip.path for clip in clips}) > 1
    drafts = []
    for clip, rank, shots in many:
        name = row.id
        if several:
            name += f"|{clip.path.stem}"
        if form.policy == "expand":
            name += f"|{rank}"
        fields = {
            "id": name,
            "prompt": f"{_heading(row, clip, form, shots)}\n{row.ask}",
            "answer": row.answer,
            "source_id": row.id,
            "weight": 1.0 / len(many),
            "scenario": row.scenario,
            "phase": row.digit,
            "actor": row.actor,
            "view": clip.view,
            "frame_rank": rank,
            "video_fps": frame_rate(_window(row, clip), len(shots)) if form.video else None,
        }
        drafts.append(Draft(fields=fields, shots=shots))
    return drafts


def _window(row: Row, clip: Clip) -> tuple[float, float]:
    return row.window or (0.0, clip.facts.seconds)


def _shots(row: Row, clip: Clip, form: Format) -> list[tuple[Shot, ...]]:
    """The pictures of each example of ``row`` in ``clip``."""
    window = _window(row, clip)
    if form.frames == "sheet":
        return [(Shot(video=clip.path, moments=spread(window, _SHEET), finish="sheet"),)]
    if isinstance(form.frames, int):
        return [tuple(Shot(video=clip.path, moments=(at,)) for at in spread(window, form.frames))]
    if form.frames == "single" and form.policy == "expand":
        return [(Shot(video=clip.path, moments=(at,)),) for at in spread(window, form.per_row)]
    if form.frames == "single" and form.policy == "mid":
        return [(Shot(video=clip.path, moments=spread(window, 1)),)]
    index, boxes = _boxed_frame(row, clip, window)
    at = spread(window, 1) if index is None else (At(index=index),)
    if form.frames == "single":
        return [(Shot(video=clip.path, moments=at, drawn=boxes),)]
    own = [box for actor, box in boxes if actor == row.actor]
    part = _around(own or [box for _, box in boxes], clip.facts)
    return [(Shot(video=clip.path, moments=at), Shot(video=clip.path, moments=at, finish="crop", crop=part))]


def _boxed_frame(row: Row, clip: Clip, window: tuple[float, float]) -> tuple[int | None, tuple[tuple[str, Box], ...]]:
    """The frame in ``window`` that has a box of the actor (or of any) nearest to its middle, and the boxes in it."""
    wanted = [row.actor] if row.actor is not None and clip.boxes.get(row.actor) else list(ACTORS)
    fps = clip.facts.fps
    first, last = window[0] * fps - 1.0, window[1] * fps + 1.0
    middle = (first + last) / 2
    found = [
        one
        for actor in wanted
        for one in clip.boxes.get(actor, ())
        if (one.digit is None or row.digit is None or one.digit == row.digit) and first <= one.index <= last
    ]
    if not found:
        return None, ()
    index = min(found, key=lambda one: (abs(one.index - middle), one.index)).index
    boxes = {actor: one.box for actor in ACTORS for one in clip.boxes.get(actor, ()) if one.index == index}
    return index, tuple(boxes.items())


def _around(boxes: list[Box], facts: VideoFacts) -> Box:
    """The part of the frame with all ``boxes`` and some surroundings; without boxes its middle half."""
    if not boxes:
        return facts.width * 0.25, facts.height * 0.25, facts.width * 0.5, facts.height * 0.5
    left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
    right, bottom = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    wide = max((right - left) * (1 + 2 * _PADDING), facts.width * _SMALLEST_CROP)
    high = max((bottom - top) * (1 + 2 * _PADDING), facts.height * _SMALLEST_CROP)
    wide, high = min(wide, facts.width), min(high, facts.height)
    x = min(max((left + right) / 2 - wide / 2, 0.0), facts.width - wide)
    y = min(max((top + bottom) / 2 - high / 2, 0.0), facts.height - high)
    return round(x, 1), round(y, 1), round(wide, 1), round(high, 1)


def _heading(row: Row, clip: Clip, form: Format, shots: tuple[Shot, ...]) -> str:
    """What the images are, or the video is: order, camera, phase and time; and what the boxes in them mean."""
    camera = "a fixed overhead camera" if clip.view == OVERHEAD else "the camera of the vehicle"
    if form.frames == "sheet":
        what = "These four frames of a traffic scenario, in the order of reading, were"
    elif form.video:
        what = "This video of a traffic scenario was"
    elif isinstance(form.frames, int) and form.frames > 1:
        what = f"These {form.frames} frames of a traffic scenario, in order, were"
    else:
        what = "This frame of a traffic scenario was"
    if row.digit is None:
        when = ""
    else:
        start, end = _window(row, clip)
        when = f" in phase {row.digit} ({PHASES[int(row.digit)]}), which lasts {end - start:.1f} s"
        if len(shots[0].moments) == 1 and len({shot.moments for shot in shots}) == 1:
            at = shots[0].moments[0]
            seconds = at.seconds if at.index is None else at.index / clip.facts.fps
            when += f", {max(0.0, seconds - start):.1f} s after it began"
    text = f"{what} taken by {camera}{when}."
    if form.frames == "crop":
        text += " The second image is a part of it, enlarged."
    for actor, _ in shots[0].drawn:
        text += f" The {actor} is in the {BOX_COLOURS[actor][0]} box."
    return text
