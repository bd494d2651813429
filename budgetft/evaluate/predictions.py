"""``predictions.jsonl``: one generated text a line, with what is needed to reduce, score and submit it."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from budgetft.data.examples import Example
from budgetft.data.problems import problem_report
from budgetft.errors import BudgetftError, UsageError
from budgetft.value import Value

_COPIED = ("scenario", "phase", "actor", "view", "frame_rank", "source_id")


class Prediction(Value):
    """What was generated for one example; what the example does not say is None and not written."""

    id: str
    text: str
    seconds: float | None = None
    """Of its batch, divided by the examples in it."""
    scenario: str | None = None
    phase: str | None = None
    actor: str | None = None
    view: str | None = None
    frame_rank: int | None = None
    """Of the example's frame among those of its source."""
    source_id: str | None = None


def predicted(example: Example, text: str, seconds: float | None = None) -> Prediction:
    """The prediction ``text`` for ``example``, with the fields that the example has."""
    return Prediction(id=example.id, text=text, seconds=seconds, **{name: getattr(example, name) for name in _COPIED})


def read_predictions(path: Path) -> list[Prediction]:
    """Every row of ``path`` in order, repeated ids included; a last line that is torn is left out.

    Raises one ``UsageError`` for all damaged lines. It says where they are, never what was generated.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    whole, last = content[: content.rfind(b"\n") + 1], content[content.rfind(b"\n") + 1 :]
    return _rows(content if _is_row(last) else whole, path)


def _is_row(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rows(content: bytes, path: Path) -> list[Prediction]:
    rows, problems = [], []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
            if not isinstance(data, dict):
                raise UsageError(f"a JSON {type(data).__name__}, not an object")
            if not isinstance(data.get("text", ""), str):
                raise UsageError(f"text: a JSON {type(data['text']).__name__}, not a text")
            if not _is_unicode(data.get("text", "")):
                raise UsageError("text: holds half of a character")
            rows.append(Prediction.read(data, source="row"))
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: not JSON: {error}")
        except UsageError as error:
            problems.append(f"line {number}: {error.message}")
    if problems:
        raise problem_report(str(path), problems, hint="predictions are rows of id and text: budgetft predict writes them")
    return rows


class PredictionFile:
    """A predictions file open for appending: ``rows`` is what it held when it was opened."""

    def __init__(self, rows: list[Prediction], file: Any) -> None:
        self.rows = rows
        self._file = file

    def append(self, rows: Sequence[Prediction]) -> None:
        """Write ``rows`` in one go and force them to the disk. Raises ``BudgetftError`` when it refuses."""
        lines = (row.model_dump_json(exclude_none=True) + "\n" for row in rows)
        try:
            self._file.write("".join(lines).encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise BudgetftError(
                f"cannot write {self._file.name}: {error.strerror}",
                hint="the rows before are kept: free some disk and give the same command again",
            ) from None


@contextmanager
def closing_quietly(file: Any) -> Iterator[None]:
    """Close ``file`` at the end; what its buffer could not write was told before."""
    try:
        yield
    finally:
        with suppress(OSError):
            file.close()


@contextmanager
def appending(path: Path) -> Iterator[PredictionFile]:
    """Open ``path`` for this process alone and drop a torn last line; it is made when it is missing.

    Raises ``UsageError`` when another process has it, when a whole line is damaged, or the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    with closing_quietly(file):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{path} is being written by another process", hint="wait for it, or choose another --out"
            ) from None
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        rows = _rows(whole, path)
        file.truncate(len(whole))
        yield PredictionFile(rows, file)
