"""A row that was understood: who says what, with images and videos that are still files."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from budgetft.data.boxes import box_text, ref_text
from budgetft.data.conversation import Message, Part, Role
from budgetft.data.examples import Example
from budgetft.data.read.layout_keys import BOX_TYPES, MARK, VIDEO_ENDINGS, BadRow


@dataclass(frozen=True)
class Media:
    """An image or a video that a row names."""

    kind: Literal["image", "video"]
    path: str | tuple[str, ...]
    """A file; of a video that is given as its frames, these in order."""
    options: Mapping[str, float] = field(default_factory=dict)
    """What the part says of sizes, of the clip and of the number of frames, in the terms of qwen-vl-utils."""

    @property
    def files(self) -> tuple[str, ...]:
        return (self.path,) if isinstance(self.path, str) else self.path


@dataclass
class Turn:
    """A message whose media are still files."""

    role: Role
    content: list[str | Media]
    learn: bool | None = None
    """None: as the dataset is to be learned."""
    tool_calls: tuple[dict[str, Any], ...] = ()

    @property
    def media(self) -> list[Media]:
        return [one for one in self.content if isinstance(one, Media)]


@dataclass
class Draft:
    """An example whose videos are still films."""

    fields: dict[str, Any]
    """``id`` and the other fields that are not the conversation."""
    turns: list[Turn]
    tools: str | None = None

    @property
    def media(self) -> list[Media]:
        return [one for turn in self.turns for one in turn.media]

    def example(self, shown: Callable[[Media], tuple[Sequence[str], Sequence[float] | None]], *, learn: str = "all") -> Example:
        """The example, with the files that ``shown`` gives for each medium, and their seconds where it stays a video."""
        files: list[str] = []
        seconds: list[float] = []
        videos: list[int] = []
        messages = []
        for turn in self.turns:
            content: list[str | Part] = []
            for one in turn.content:
                if isinstance(one, str):
                    content.append(one)
                    continue
                made, times = shown(one)
                files += made
                seconds += times or [0.0] * len(made)
                if times is None:
                    content += [Part(type="image")] * len(made)
                else:
                    videos.append(len(made))
                    content.append(Part(type="video", frames=len(made)))
            messages.append(Message.of(turn.role, *content).replace(tool_calls=turn.tool_calls))
        learned = learned_turns(self.turns, learn)
        messages = [one.replace(learn=True) if place in learned else one for place, one in enumerate(messages)]
        fields = {**self.fields, "images": tuple(files), "tools": self.tools}
        if self.fields.get("video_fps") is not None:  # a canonical row: its images are the frames of one video
            first = next(place for place, one in enumerate(messages) if one.role == "user")
            messages[first] = Message.of("user", Part(type="video", frames=len(files)), messages[first].text)
        elif videos:
            fields["frame_seconds"] = tuple(seconds)
            if len(videos) == 1 and videos[0] == len(files):
                gaps = len(files) - 1
                rate = gaps / (seconds[-1] - seconds[0]) if gaps and seconds[-1] > seconds[0] else 1.0
                fields["video_fps"] = round(rate, 6) or 1e-6
        return Example.talk(messages, **fields)


def learned_turns(turns: Sequence[Turn], learn: str) -> set[int]:
    """Places of the turns that are learned: what a row says of a turn goes before what holds for all."""
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    wanted = answers if learn == "all" else answers[-1:]
    said = {place: turns[place].learn for place in answers}
    return {place for place in answers if (said[place] if said[place] is not None else place in wanted)}


def is_video(path: str) -> bool:
    """Whether ``path`` is that of a film, by its ending."""
    return path.lower().endswith(VIDEO_ENDINGS)


def at_marks(draft: Draft, media: list[Media]) -> None:
    """Put ``media`` where ``<image>`` and ``<video>`` stand in the users' texts, or before the first of them."""
    asked = [turn for turn in draft.turns if turn.role in ("user", "tool")]
    marks = Counter(mark for turn in asked for one in turn.content if isinstance(one, str) for mark in MARK.findall(one))
    left = {kind: [one for one in media if one.kind == kind] for kind in ("image", "video")}
    if not marks:
        if media and not any(turn.role == "user" for turn in asked):
            raise BadRow(f"{counted(media)}, and no user message to show them in")
        if media:
            first = next(turn for turn in asked if turn.role == "user")
            first.content = [*media, *first.content]
        return
    if not left["image"] and not marks["<video>"]:  # LLaVA-Video marks its videos as images
        left = {"image": left["video"], "video": []}
    for kind, given in left.items():
        if marks[f"<{kind}>"] != len(given):
            raise BadRow(f"{marks[f'<{kind}>']} <{kind}> marks for {len(given)} {kind}s")
    for turn in asked:
        content: list[str | Media] = []
        for one in turn.content:
            content += _marked(one, left) if isinstance(one, str) else [one]
        turn.content = content


def _marked(text: str, left: dict[str, list[Media]]) -> list[str | Media]:
    """``text`` cut at its marks, each replaced by the next of ``left``."""
    pieces = re.split(r"(<image>|<video>)", text)
    content: list[str | Media] = []
    for piece in pieces:
        content.append(left[piece[1:-1]].pop(0) if MARK.fullmatch(piece) else piece)
    # At the edges white space between marks, and the line break that sets them off, are part of how marks are written.
    if len(content) > 1:
        _trim_edge(content, range(len(content)), leading=True)
        _trim_edge(content, range(len(content) - 1, -1, -1), leading=False)
    return [one for one in content if one != ""]


def _trim_edge(content: list[str | Media], places: range, *, leading: bool) -> None:
    for place in places:
        one = content[place]
        if isinstance(one, Media):
            continue
        if not one.strip():
            content[place] = ""
            continue
        if place != places[0]:
            set_off = re.match(r"[ \t]*\r?\n", one) if leading else re.search(r"\r?\n[ \t]*\Z", one)
            if set_off:
                content[place] = one[set_off.end() :] if leading else one[: set_off.start()]
        return


def counted(media: Sequence[Media]) -> str:
    kinds = Counter(one.kind for one in media)
    return " and ".join(f"{count} {kind}{'s' * (count != 1)}" for kind, count in kinds.items())


def write_objects(draft: Draft, objects: Any) -> None:
    """Write ``{ref, bbox, bbox_type}`` of ms-swift into the texts, where ``<ref-object>`` and ``<bbox>`` stand.

    Raises ``BadRow`` when their numbers differ, or they mean more than the first image.
    """
    if not isinstance(objects, Mapping):
        raise BadRow("objects: must be {ref, bbox, bbox_type}")
    given = {key: value for key, value in objects.items() if value is not None}
    scale = given.pop("bbox_type", "real")
    if scale not in BOX_TYPES:
        raise BadRow(f"objects: bbox_type must be {' or '.join(BOX_TYPES)}, not {scale!r}")
    if any(given.pop("image_id", [])):
        raise BadRow("objects: image_id: boxes must be of the first image")
    refs, boxes = given.pop("ref", []), given.pop("bbox", [])
    if given:
        raise BadRow(f"objects: {next(iter(given))}: a key that is not known here")
    for mark, values in (("<ref-object>", [ref_text(one) for one in refs]), ("<bbox>", [box_text(one) for one in boxes])):
        count = sum(one.count(mark) for turn in draft.turns for one in turn.content if isinstance(one, str))
        if count != len(values):
            raise BadRow(f"objects: {count} {mark} marks for {len(values)} values")
        left = iter(values)
        for turn in draft.turns:
            turn.content = [
                re.sub(re.escape(mark), lambda _, left=left: next(left), one) if isinstance(one, str) else one
                for one in turn.content
            ]
    draft.fields["box_scale"] = BOX_TYPES[scale]
