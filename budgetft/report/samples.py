"""What a model said to a few examples, with their pictures: from a run's own captions or from a file of predictions."""

import json
from pathlib import Path
from typing import Any

from budgetft.errors import BudgetftError, UsageError
from budgetft.report.pictures import thumbnail
from budgetft.report.story import Sampled
from budgetft.train.folder import Identity, RunFolder
from budgetft.train.record import Sample
from budgetft.units import counted
from budgetft.value import json_lines

MOST = 6
"""Samples on a page."""
MOST_PICTURES = 3
"""Of one sample."""
SHOWN = 600
"""Characters of a text; the rest is in its file."""


def sampled(run: Path | None, predictions: Path | None, data: Path | None) -> tuple[tuple[Sampled, ...], str]:
    """The samples, and a note where some are missing or shown without their pictures.

    ``predictions`` stand before the captions of ``run``; those are of its held-out data, others of ``data``.
    Raises ``UsageError`` where ``predictions`` cannot be read; whatever else is missing becomes the note.
    """
    identity = _identity(run)
    random = identity is not None and identity.weights == "random"
    if predictions is not None:
        rows, note = _predicted(predictions), ""
    elif run is not None:
        rows, note = _last_captions(RunFolder(run).samples)
        data = Path(identity.heldout) if identity and identity.heldout else None
    else:
        return (), ""
    if not rows:
        return (), note
    if random:
        return (), "Samples of random weights are not shown."
    examples, missing = _examples(data, [row.id for row in rows])
    return tuple(_whole(row, examples.get(row.id)) for row in rows), " ".join(filter(None, (note, missing)))


def _identity(run: Path | None) -> Identity | None:
    try:
        return RunFolder(run).read_identity() if run else None
    except UsageError:
        return None


def _predicted(path: Path) -> list[Sampled]:
    """The first rows of a file of predictions."""
    try:
        lines = json_lines(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="budgetft predict --out FILE writes it") from None
    rows = [row for line in lines if (row := _row(line)) is not None]
    if not rows:
        raise UsageError(f"{path} holds no predictions", hint="rows of id and text: budgetft predict --out FILE writes them")
    return rows[:MOST]


def _row(line: str) -> Sampled | None:
    try:
        row: Any = json.loads(line)
        return Sampled(id=str(row["id"]), text=str(row["text"])[:SHOWN], reference="")
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _last_captions(path: Path) -> tuple[list[Sampled], str]:
    """Those after the last step that has any."""
    if not path.is_file():
        return [], ""
    found, damaged = list[Sample](), 0
    for line in json_lines(path.read_text(encoding="utf-8", errors="replace")):
        try:
            found.append(Sample.read_text(line, source=path.name))
        except UsageError:
            damaged += 1
    last = max((sample.step for sample in found), default=0)
    rows = [
        Sampled(id=sample.id, text=sample.text[:SHOWN], reference=sample.reference[:SHOWN])
        for sample in found
        if sample.step == last
    ]
    note = f"After step {last}, of held-out examples." if rows else ""
    return rows[:MOST], note + (f" {counted(damaged, 'line')} of {path.name} cannot be read." if damaged else "")


def _examples(data: Path | None, ids: list[str]) -> tuple[dict[str, Any], str]:
    """Of a dataset folder, by id; none, with the reason, where it cannot be read."""
    if data is None:
        return {}, "Without pictures: the data are not named (--data DIR)."
    try:
        from budgetft.data.examples import read_dataset

        examples = read_dataset(data)
        places = {row["id"]: place for place, row in enumerate(examples.columns("id")) if row["id"] in ids}
        return {name: examples[place] for name, place in places.items()}, ""
    except BudgetftError as error:
        return {}, f"Without pictures: {error.message}."


def _whole(row: Sampled, example: Any) -> Sampled:
    """With the question, the truth and the pictures of its example."""
    if example is None:
        return row
    pictures = tuple(uri for path in example.images[:MOST_PICTURES] if (uri := thumbnail(path)) is not None)
    return Sampled(
        id=row.id,
        text=row.text,
        reference=row.reference or example.answer[:SHOWN],
        prompt=example.prompt[:SHOWN],
        pictures=pictures,
    )
