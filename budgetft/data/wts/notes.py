"""Reading the annotation files of WTS: captions, questions, boxes. All problems of a file are noted, with their field."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from budgetft.data.wts.tree import ACTORS, PHASES

LETTERS = ("a", "b", "c", "d")
_DIGITS = {**{str(digit): str(digit) for digit in range(5)}, **{name: str(digit) for digit, name in enumerate(PHASES)}}
_DIGITS["judgment"] = "2"


@dataclass(kw_only=True)
class Notes:
    """What is wrong with one file: ``field: reason``."""

    problems: list[str] = field(default_factory=list)

    def add(self, where: str, reason: str) -> None:
        self.problems.append(f"{where}: {reason}")


@dataclass(frozen=True, kw_only=True)
class PhaseNote:
    """A phase of an event in one video, in seconds from that video's start."""

    digit: str
    start: float
    end: float
    captions: dict[str, str]
    """By actor; empty in a test set."""
    where: str
    """Its place in the file."""


@dataclass(frozen=True, kw_only=True)
class CaptionNote:
    """A caption file."""

    videos: tuple[str, ...]
    phases: tuple[PhaseNote, ...]
    """From 0 to 4, whatever the order in the file; each once."""


@dataclass(frozen=True, kw_only=True)
class QuestionNote:
    """A multiple-choice question; without times it is about the whole video."""

    id: str | None
    text: str
    options: dict[str, str]
    correct: str | None
    digit: str | None
    times: tuple[float, float] | None
    where: str


@dataclass(frozen=True, kw_only=True)
class QuestionsNote:
    """The questions about some videos."""

    videos: tuple[str, ...]
    questions: tuple[QuestionNote, ...]


@dataclass(frozen=True, kw_only=True)
class BoxNote:
    """A box of an actor, x, y, width and height in pixels, in a frame as the official extractor counts them."""

    image_id: int
    box: tuple[float, float, float, float]
    digit: str | None
    where: str


def phase_digit(label: Any) -> str | None:
    """The digit of a phase that is named by its digit or its word, in any spelling that is about; None for others."""
    if isinstance(label, bool) or not isinstance(label, str | int):
        return None
    return _DIGITS.get("".join(letter for letter in str(label).lower() if letter.isalnum()))


def read_captions(path: Path, notes: Notes, *, captions: bool) -> CaptionNote:
    """The caption file ``path``; ``captions`` says that it must have the texts."""
    data = _load(path, notes)
    if data is None:
        return CaptionNote(videos=(), phases=())
    if not isinstance(data, Mapping):
        notes.add("file", f"holds a JSON {type(data).__name__}, not an object")
        return CaptionNote(videos=(), phases=())
    phases = []
    for where, segment in _listed(data.get("event_phase"), "event_phase", notes):
        digit, times = _label(segment, where, notes), _times(segment, where, notes)
        texts = _texts(segment, where, notes) if captions else {}
        if digit is not None and times is not None:
            phases.append(PhaseNote(digit=digit, start=times[0], end=times[1], captions=texts, where=where))
    return CaptionNote(videos=_videos(data, notes), phases=_ordered(phases, notes))


def read_questions(path: Path, notes: Notes) -> list[QuestionsNote]:
    """A question file of train or val, of one view or of the environment: a list with one entry (or that entry)."""
    data = _load(path, notes)
    if data is None:
        return []
    entries = data if isinstance(data, list) else [data]
    return [_entry(entry, f"[{place}]", notes, hidden=False) for place, entry in enumerate(entries)]


def read_test_questions(path: Path, notes: Notes) -> list[QuestionsNote]:
    """The question file of the test set: every question has an id and no answer; many entries have no phase."""
    data = _load(path, notes)
    if data is None:
        return []
    if not isinstance(data, list):
        notes.add("file", f"holds a JSON {type(data).__name__}, not a list of entries")
        return []
    entries = [_entry(entry, f"[{place}]", notes, hidden=True) for place, entry in enumerate(data)]
    seen: dict[str | None, str] = {}
    for one in (one for entry in entries for one in entry.questions):
        if seen.setdefault(one.id, one.where) != one.where:
            notes.add(f"{one.where}.id", f"{one.id!r} is already used by {seen[one.id]}")
    return [
        QuestionsNote(videos=entry.videos, questions=tuple(one for one in entry.questions if seen[one.id] == one.where))
        for entry in entries
    ]


def read_boxes(path: Path, notes: Notes) -> list[BoxNote]:
    """The boxes in ``path``, whether one a phase or one a frame."""
    data = _load(path, notes)
    if data is None:
        return []
    boxes = []
    listed = data.get("annotations") if isinstance(data, Mapping) else None
    for where, row in _listed(listed, "annotations", notes, may_be_empty=True):
        image_id, box = row.get("image_id"), row.get("bbox")
        if isinstance(image_id, bool) or not isinstance(image_id, int) or image_id < 0:
            notes.add(f"{where}.image_id", f"{image_id!r} is not the number of a frame")
            continue
        numbers = box if isinstance(box, list) and len(box) == 4 and all(_is_number(part) for part in box) else None
        if numbers is None or numbers[2] <= 0 or numbers[3] <= 0:
            notes.add(f"{where}.bbox", f"{str(box)[:60]} is not x, y, width and height in pixels")
            continue
        x, y, width, height = (float(part) for part in numbers)
        digit = phase_digit(row.get("phase_number"))
        boxes.append(BoxNote(image_id=image_id, box=(x, y, width, height), digit=digit, where=where))
    return boxes


def _entry(entry: Any, where: str, notes: Notes, *, hidden: bool) -> QuestionsNote:
    """Questions stand under phases, under ``environment`` or, in the test set, at the top of an entry."""
    if not isinstance(entry, Mapping):
        notes.add(where, f"a JSON {type(entry).__name__}, not an object")
        return QuestionsNote(videos=(), questions=())
    questions: list[QuestionNote] = []
    for key in ("environment", "conversations"):
        if key in entry:
            questions += _questions(entry[key], f"{where}.{key}", notes, digit=None, times=None, hidden=hidden)
    if "event_phase" in entry:
        for place, segment in _listed(entry["event_phase"], f"{where}.event_phase", notes):
            digit, times = _label(segment, place, notes), _times(segment, place, notes)
            asked = segment.get("conversations")
            questions += _questions(asked, f"{place}.conversations", notes, digit=digit, times=times, hidden=hidden)
    if not questions and not any(key in entry for key in ("environment", "conversations", "event_phase")):
        notes.add(where, "has none of event_phase, environment and conversations")
    return QuestionsNote(videos=_videos(entry, notes, f"{where}."), questions=tuple(questions))


def _questions(
    value: Any, where: str, notes: Notes, *, digit: str | None, times: tuple[float, float] | None, hidden: bool
) -> list[QuestionNote]:
    found = []
    for place, row in _listed(value, where, notes, may_be_empty=True):
        text, name, correct = row.get("question"), row.get("id"), row.get("correct")
        options = {letter: row[letter] for letter in LETTERS if letter in row}
        if not isinstance(text, str) or not text.strip():
            notes.add(f"{place}.question", f"{text!r} is not a text" if text != "" else "empty")
            continue
        bad = next((letter for letter, option in options.items() if not isinstance(option, str) or not option.strip()), None)
        if len(options) < 2 or bad is not None:
            notes.add(f"{place}.{bad or 'a'}", "needs two to four options, each a text")
            continue
        correct = correct.strip().lower() if isinstance(correct, str) else correct
        if not hidden and correct not in options:
            notes.add(f"{place}.correct", f"{correct!r} is not one of the options {', '.join(options)}")
            continue
        if hidden and (not isinstance(name, str) or not name.strip()):
            notes.add(f"{place}.id", f"{name!r} is not an id")
            continue
        found.append(
            QuestionNote(
                id=name if hidden else None,
                text=text.strip(),
                options=options,
                correct=None if hidden else correct,
                digit=digit,
                times=times,
                where=place,
            )
        )
    return found


def _load(path: Path, notes: Notes) -> Any:
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        notes.add("file", f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        notes.add("file", f"is not UTF-8 text: byte {error.start} cannot be read")
    except (ValueError, RecursionError) as error:
        notes.add("file", f"is not JSON: {error}")
    else:
        if data is None:
            notes.add("file", "holds null")
        return data
    return None


def _listed(value: Any, where: str, notes: Notes, *, may_be_empty: bool = False) -> list[tuple[str, Mapping[str, Any]]]:
    if not isinstance(value, list):
        notes.add(where, "missing" if value is None else f"a JSON {type(value).__name__}, not a list")
        return []
    if not value and not may_be_empty:
        notes.add(where, "empty")
    rows = []
    for place, row in enumerate(value):
        if isinstance(row, Mapping):
            rows.append((f"{where}[{place}]", row))
        else:
            notes.add(f"{where}[{place}]", f"a JSON {type(row).__name__}, not an object")
    return rows


def _label(segment: Mapping[str, Any], where: str, notes: Notes) -> str | None:
    labels = segment.get("labels")
    if "labels" not in segment or labels == []:
        notes.add(f"{where}.labels", "missing")
        return None
    digit = phase_digit(labels[0] if isinstance(labels, list) and labels else labels)
    if digit is None:
        notes.add(f"{where}.labels", f"{labels!r} is not a phase, 0 to 4 or {', '.join(PHASES)}")
    return digit


def _times(segment: Mapping[str, Any], where: str, notes: Notes) -> tuple[float, float] | None:
    found = []
    for key in ("start_time", "end_time"):
        value = segment.get(key)
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or number < 0:
            given = "missing" if key not in segment else f"{value!r} is not a time in seconds"
            notes.add(f"{where}.{key}", given)
        else:
            found.append(number)
    if len(found) < 2:
        return None
    if found[1] <= found[0]:
        notes.add(f"{where}.end_time", f"{found[1]:g} s is not after the start at {found[0]:g} s")
        return None
    return found[0], found[1]


def _texts(segment: Mapping[str, Any], where: str, notes: Notes) -> dict[str, str]:
    texts = {}
    for actor in ACTORS:
        text = segment.get(f"caption_{actor}")
        if isinstance(text, str) and text.strip():
            texts[actor] = text.strip()
        else:
            reason = "missing" if text is None else "empty" if isinstance(text, str) else f"{text!r} is not a text"
            notes.add(f"{where}.caption_{actor}", reason)
    return texts


def _ordered(phases: list[PhaseNote], notes: Notes) -> tuple[PhaseNote, ...]:
    """Each phase once, and none before the one that it follows; overlaps are in the official data and are fine."""
    seen: dict[str, PhaseNote] = {}
    for one in phases:
        if one.digit in seen:
            notes.add(f"{one.where}.labels", f"phase {one.digit} is already given by {seen[one.digit].where}")
        seen.setdefault(one.digit, one)
    kept: list[PhaseNote] = []
    for after in sorted(seen.values(), key=lambda one: one.digit):
        before = kept[-1] if kept else after
        if after.start < before.start or after.end < before.end:
            notes.add(
                f"{after.where}.start_time",
                f"phase {after.digit} ({after.start:g} to {after.end:g} s) comes before"
                f" phase {before.digit} ({before.start:g} to {before.end:g} s)",
            )
        else:
            kept.append(after)
    return tuple(kept)


def _videos(data: Mapping[str, Any], notes: Notes, where: str = "") -> tuple[str, ...]:
    """The video names, under whichever key; BDD files have none."""
    for key in ("overhead_videos", "vehicle_view", "videos"):
        if key not in data:
            continue
        value = data[key]
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            notes.add(f"{where}{key}", f"{str(value)[:60]} is not a list of video names")
            return ()
        plain = tuple(name for name in names if PurePosixPath(name).name == name == PureWindowsPath(name).name != "..")
        for name in names:
            if name not in plain:
                notes.add(f"{where}{key}", f"{name!r} is a path, not the name of a video")
        return plain
    return ()


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
