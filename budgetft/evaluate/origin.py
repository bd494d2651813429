"""What predictions were made of: whether it is the data that they are scored on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from budgetft.data.examples import Example, Examples
from budgetft.data.wts.notes import phase_digit
from budgetft.errors import UsageError
from budgetft.evaluate.notes import Note, note
from budgetft.evaluate.predictions import Prediction

_ORIGIN = ("scenario", "phase", "actor", "view", "frame_rank", "source_id")
_SHOWN = 5
_SHORT = 8
"""Digits of a dataset's hash."""


def check_origin(rows: Sequence[Prediction], examples: Sequence[Example], *, left_out: frozenset[str]) -> list[Prediction]:
    """``rows`` without those of the examples ``left_out``.

    Raises ``UsageError`` when rows and examples of the same ids say that they are of different scenarios, phases, actors,
    views or frames: the predictions are then of another dataset, whose ids happen to be the same.
    """
    known = {example.id: example for example in examples}
    differing: dict[str, str] = {}
    for row in rows:
        example = known.get(row.id)
        field = None if example is None else _differs(row, example)
        if field is not None:
            differing[row.id] = field
    if differing:
        first = ", ".join(f"{name} ({field})" for name, field in list(differing.items())[:_SHOWN])
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise UsageError(
            f"{len(differing)} predictions are of another dataset: their ids are in this one, but not their scenario, phase,"
            f" actor, view or frame: {first}{more}",
            hint="give the dataset that they were predicted for: --data DIR",
        )
    return [row for row in rows if row.id not in left_out]


def _differs(row: Prediction, example: Example) -> str | None:
    """The first field that both have and that differs; a row of other tools has none of them."""
    for name in _ORIGIN:
        said, known = getattr(row, name), getattr(example, name)
        if name == "phase" and said is not None and known is not None:
            said, known = phase_digit(said) or said, phase_digit(known) or known
        if said is not None and said != known:
            return name
    return None


def record_notes(predictions: Sequence[Path], folders: Sequence[Examples]) -> list[Note]:
    """What ``NAME.run.json`` beside the predictions says of how they were made; nothing where it cannot be read."""
    settings = [(path, _settings(path.with_name(f"{path.stem}.run.json"))) for path in predictions]
    random = [path for path, found in settings if found.get("weights") == "random"]
    hashes = {folder.fingerprint for folder in folders} if any(found for _, found in settings) else set()
    other = [path for path, found in settings if hashes and found.get("data_fingerprint", "") not in {"", *hashes}]
    return [
        *note(
            "random weights",
            [path.name for path in random],
            "{n} files of predictions were made with random weights: their scores are those of noise",
        ),
        *note(
            "other data",
            [path.name for path in other],
            "{n} files of predictions were made for a dataset with another hash than"
            f" {', '.join(sorted(one[:_SHORT] for one in hashes))}: ids are the same, images and prompts may not be",
        ),
    ]


def _settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        return settings if isinstance(settings, dict) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
