"""``log.jsonl`` of a run: one record a line, appended after every step; a last line of what a step that is not done met."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from budgetft.errors import BudgetftError, UsageError
from budgetft.plan import write_text_atomically
from budgetft.train.record import Fallback, Record, Unfinished
from budgetft.value import json_lines


class Log:
    """Open for appending; ``records`` holds every line of the run so far, in order.

    ``unfinished`` is what the next step met in an earlier process that ended in it: it belongs into that step's record.
    """

    def __init__(self, path: Path, *, finished_steps: int) -> None:
        """Keep the first ``finished_steps`` records of ``path`` and drop what follows, atomically.

        Raises ``BudgetftError`` when one of those is missing or damaged.
        """
        self.path = path
        lines = read_lines(path)
        self.records = _kept(path, lines, finished_steps)
        self.unfinished = _unfinished(lines[finished_steps:], finished_steps + 1)
        write_text_atomically(path, "".join(record.model_dump_json() + "\n" for record in self.records))
        self._file = path.open("a", encoding="utf-8")

    def append(self, record: Record) -> None:
        """Write the record as a whole line that another process can read at once. Raises ``BudgetftError``."""
        self._write(record)
        self.records.append(record)

    def end(self, unfinished: Unfinished) -> None:
        """Write the last line of a run that ends in a step. Raises ``BudgetftError``."""
        self._write(unfinished)

    def _write(self, line: Record | Unfinished) -> None:
        try:
            self._file.write(line.model_dump_json() + "\n")
            self._file.flush()
        except OSError as error:
            raise BudgetftError(
                f"cannot write {self.path}: {error.strerror}", hint="free some disk and go on with --resume"
            ) from None

    def sync(self) -> None:
        """Force the lines to the disk: a checkpoint may never be newer than the log."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # what could not be written was told already
            self._file.close()


class Unwritten:
    """The log of a process that writes none."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.unfinished: tuple[Fallback, ...] = ()

    def append(self, record: Record) -> None:
        self.records.append(record)

    def end(self, unfinished: Unfinished) -> None: ...

    def sync(self) -> None: ...

    def close(self) -> None: ...


def read_lines(path: Path) -> list[str]:
    """The lines of a log; none when there is none."""
    return json_lines(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else []


def _unfinished(lines: Sequence[str], step: int) -> tuple[Fallback, ...]:
    """What the last of ``lines`` says of ``step``; nothing where it is a record, torn, or of another step."""
    try:
        found = Unfinished.read_text(lines[-1] if lines else "", source="the last line")
    except UsageError:
        return ()
    return found.fallbacks if found.unfinished_step == step else ()


def _kept(path: Path, lines: Sequence[str], finished_steps: int) -> list[Record]:
    records = []
    for number, line in enumerate(lines[:finished_steps], start=1):
        try:
            records.append(Record.read_text(line, source=f"line {number}"))
        except UsageError as error:
            raise BudgetftError(f"{path}: line {number} cannot be read: {error}") from None
    steps = [record.step for record in records]
    if steps != list(range(1, finished_steps + 1)):
        raise BudgetftError(
            f"{path} holds {len(records)} of the {finished_steps} steps that the checkpoint has seen",
            hint="put the log back, or start again in another folder",
        )
    return records
