"""The organisers' own files: captions and answers, as truth, as a submission, and the test set that lacks both."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from budgetft.data.problems import problem_report
from budgetft.data.wts.notes import phase_digit
from budgetft.data.wts.tree import ACTORS
from budgetft.errors import UsageError
from budgetft.value import read_parsed

_SUFFIX = "_caption.json"
_EXTERNAL = re.compile(r"video\d+")
_VEHICLE_VIEW = "vehicle_view"
# A bare "A" before a word is an article, so that letter needs a bracket, a full stop or the end after it.
_LETTER = re.compile(r"\(?\s*([A-Da-d])\s*(?:[).:,]|$)|([B-Db-d])\s")
_LETTER_LATER = re.compile(r"\b(?:answer|option|choice)\b\W*(?:is\b)?\W*([A-D])\s*(?:[).:,*]|$)", re.IGNORECASE)
_ALSO = re.compile(r"[\W_]*(?:(?:and|or)\b\W*)?([A-Da-d])(?![^\W_])(?!\s+[A-Za-z]{2})", re.IGNORECASE)
"""Another letter right after the first: ``A, B``, ``a) or b)``; not the article of ``b. A man``."""
_LISTED = re.compile(r"(?:^|\s)[(\[]?([A-Da-d])(?:[)\]:](?=\s|$)|\.(?=\s+\S))")
"""A letter with its mark, as options are listed: ``(a) Left (b) Right``, ``A. Left B. Right``."""


class Slot(NamedTuple):
    """What one caption is of."""

    scenario: str
    phase: str
    """A digit, "0" (pre-recognition) to "4" (avoidance)."""
    actor: str

    def __str__(self) -> str:
        return f"{self.scenario} phase {self.phase} {self.actor}"


def is_external(scenario: str) -> bool:
    """Whether ``scenario`` is of BDD_PC_5K: asked for, but not scored in 2026."""
    return _EXTERNAL.fullmatch(scenario) is not None


def official_name(scenario: str) -> str:
    """What the organisers' script calls ``scenario``: it takes letters of ``_caption.json`` off both ends of the name."""
    return f"{scenario}{_SUFFIX}".strip(_SUFFIX)


def answer_letter(text: str) -> str | None:
    """The letter that a generated answer gives: ``b``, ``B.``, ``(b) Left``, ``The answer is b``.

    None when it gives none, or several: ``A, B, C, D`` and ``(a) Left (b) Right`` answer nothing.
    """
    stripped = text.strip()
    first = _LETTER.match(stripped)
    found = first or _LETTER_LATER.search(stripped)
    if found is None:
        return None
    letter = next(letter for letter in found.groups() if letter).lower()
    also = _ALSO.match(stripped, found.end())
    others = {also[1].lower()} if also else set()
    if first:
        others |= {other.lower() for other in _LISTED.findall(stripped)}
    else:
        others |= {other[1].lower() for other in _LETTER_LATER.finditer(stripped)}
    return None if others - {letter} else letter


def load_json(path: Path) -> Any:
    """What ``path`` holds; a missing or truncated file is a ``UsageError``."""
    return read_parsed(path, json.loads, "JSON", encoding="utf-8-sig")


def read_captions(path: Path) -> dict[Slot, str]:
    """The captions of a submission file: of repeated scenarios and phases the last counts, as in the official script.

    Raises one ``UsageError`` for everything that is not in the official shape.
    """
    data = load_json(path)
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds a JSON {type(data).__name__}, not an object of scenarios")
    captions: dict[Slot, str] = {}
    problems: list[str] = []
    for scenario, segments in data.items():
        captions |= _captions_of(scenario, segments, problems)
    if problems:
        raise problem_report(str(path), problems)
    return captions


def repeated_captions(path: Path) -> list[str]:
    """The scenarios, and the phases of a scenario, that the submission file ``path`` holds more than once."""
    found: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.extend(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        return dict(pairs)

    data = read_parsed(path, lambda text: json.loads(text, object_pairs_hook=once), "JSON", encoding="utf-8-sig")
    for scenario, segments in data.items():
        digits = Counter(_label(segment, []) for segment in segments)
        found += [f"{scenario} phase {digit}" for digit, count in digits.items() if count > 1]
    return found


def read_answers(path: Path) -> list[tuple[str, str]]:
    """(question id, letter) of a VQA file, a submission or the truth, repeated ids included."""
    data = load_json(path)
    rows: list[tuple[str, str]] = []
    problems: list[str] = []
    for number, item in enumerate(data if isinstance(data, list) else [None], start=1):
        if isinstance(item, dict) and isinstance(item.get("id"), str) and isinstance(item.get("correct"), str):
            rows.append((item["id"], item["correct"]))
        else:
            problems.append(f"item {number}: needs an id and a letter under 'correct'")
    if problems:
        raise problem_report(str(path), problems)
    return rows


def read_annotated_captions(folder: Path) -> dict[Slot, str]:
    """The true captions below ``folder`` (``annotations/caption/val`` or above), one set per scenario; some may be empty.

    Both views carry the same captions, so the vehicle view is read only where it is alone.
    Raises one ``UsageError`` for all files that are not in the official shape, or when there are none.
    """
    captions: dict[Slot, str] = {}
    problems: list[str] = []
    for scenario, path in caption_files(folder):
        found: list[str] = []
        captions |= _captions_of(scenario, _segments(path, found), found)
        problems += [f"{path.relative_to(folder)}: {problem}" for problem in found]
    if problems:
        raise problem_report(str(folder), problems)
    if not captions:
        raise UsageError(f"{folder} holds no files *{_SUFFIX}", hint="name the folder annotations/caption/val, or above it")
    return captions


def vehicle_view_only(folder: Path) -> list[str]:
    """The scenarios below ``folder`` of which there is the vehicle's view alone: the organisers' script leaves them out."""
    return [scenario for scenario, path in caption_files(folder) if _VEHICLE_VIEW in str(path)]


def repeated_phases(folder: Path) -> list[str]:
    """The scenarios below ``folder`` that tell a phase twice.

    The organisers' script counts such a phase once where the scenario was predicted, and twice where it was not.
    """
    found = []
    for scenario, path in caption_files(folder):
        digits = [_label(segment, []) for segment in _segments(path, [])]
        if len(set(digits)) < len(digits):
            found.append(scenario)
    return found


def read_labels(folder: Path) -> dict[str, tuple[str, ...]]:
    """The phases, as digits, that each scenario below ``folder`` asks captions for; captions may be absent.

    Raises one ``UsageError`` for all files that are not in the official shape.
    """
    labels: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    for scenario, path in caption_files(folder):
        found: list[str] = []
        digits = [_label(segment, found) for segment in _segments(path, found)]
        problems += [f"{path.relative_to(folder)}: {problem}" for problem in found]
        labels[scenario] = tuple(dict.fromkeys(digit for digit in digits if digit is not None))
    if problems:
        raise problem_report(str(folder), problems)
    return labels


def caption_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(scenario, file) of every scenario below ``folder``: another view than the vehicle's where there is one."""
    chosen: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"*{_SUFFIX}")):
        scenario = path.name.removesuffix(_SUFFIX)
        if scenario not in chosen or _VEHICLE_VIEW in chosen[scenario].parts:
            chosen[scenario] = path
    yield from chosen.items()


def _segments(path: Path, problems: list[str]) -> list[Any]:
    try:
        data = load_json(path)
    except UsageError as error:
        problems.append(error.message)
        return []
    segments = data.get("event_phase") if isinstance(data, Mapping) else None
    if not isinstance(segments, list):
        problems.append("event_phase: not a list")
        return []
    return segments


def _label(segment: Any, problems: list[str]) -> str | None:
    labels = segment.get("labels") if isinstance(segment, Mapping) else None
    digit = phase_digit(labels[0]) if isinstance(labels, list) and labels and isinstance(labels[0], str) else None
    if digit is None:
        problems.append(f'labels: {labels!r} is not a list of one phase, "0" to "4"')
    return digit


def _captions_of(scenario: str, segments: Any, problems: list[str]) -> dict[Slot, str]:
    captions: dict[Slot, str] = {}
    for segment in segments if isinstance(segments, list) else [None]:
        found: list[str] = []
        digit = _label(segment, found)
        for actor in ACTORS:
            text = segment.get(f"caption_{actor}") if isinstance(segment, Mapping) else None
            if not isinstance(text, str):
                found.append(f"caption_{actor}: {'None' if text is None else f'a {type(text).__name__}'} is not a text")
            elif digit is not None:
                captions[Slot(scenario, digit, actor)] = text
        problems += [f"{scenario}: {problem}" for problem in found]
    return captions
