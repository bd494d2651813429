"""Every outcome ever paid for, in one append-only SQLite file."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from budgetft.errors import BudgetftError, UsageError
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.outcome import Outcome, Stack

SCHEMA_VERSION = 1
_CREATE = """
CREATE TABLE IF NOT EXISTS outcomes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    created TEXT NOT NULL,
    job_key TEXT NOT NULL,
    knobs TEXT NOT NULL,
    stack TEXT NOT NULL,
    job TEXT NOT NULL,
    outcome TEXT NOT NULL
)
"""


class Ledger:
    """Outcomes by job, knobs and software stack; a row is never changed or removed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=30)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise UsageError(f"{path} has ledger schema {version}; this budgetft reads up to {SCHEMA_VERSION}")
            if version < SCHEMA_VERSION:  # to read one leaves its file as it is
                with self._db:
                    self._db.execute(_CREATE)
                    self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except (sqlite3.Error, OSError, UnicodeDecodeError) as error:  # the last where a damaged file's error names its bytes
            raise UsageError(f"{path} cannot be used as a ledger: {error}") from None

    def append(self, job: Job, outcome: Outcome) -> None:
        """Record ``outcome``; it is on disk when this returns. Raises ``BudgetftError`` when it cannot be."""
        row = (
            datetime.now(UTC).isoformat(timespec="seconds"),
            job.fingerprint(),
            outcome.knobs.model_dump_json(),
            _stack_key(outcome.stack),
            job.model_dump_json(),
            outcome.model_dump_json(),
        )
        with self._refusing("written"), self._db:
            self._db.execute("INSERT INTO outcomes (created, job_key, knobs, stack, job, outcome) VALUES (?,?,?,?,?,?)", row)

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        """SQLite's errors (locked, full, read-only, damaged) in our words."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise BudgetftError(
                f"the ledger {self.path} could not be {what}: {error}",
                hint="free some disk or end the other process that holds it; or name another with --trial-database",
            ) from None

    def find(self, job: Job, knobs: Knobs, stack: Stack | None) -> Outcome | None:
        """The newest outcome of exactly this probe on this stack. Crashes and time-outs are not final: they are tried again."""
        query = "SELECT knobs, outcome FROM outcomes WHERE job_key=? AND stack=? ORDER BY number DESC"
        with self._refusing("read"):
            rows = self._db.execute(query, (job.fingerprint(), _stack_key(stack))).fetchall()
        for text, found in rows:
            if Knobs.read_text(text, source=str(self.path)) == knobs:  # older rows name fewer knobs
                outcome = Outcome.read_text(found, source=str(self.path))
                return None if outcome.status in ("crash", "timeout") else outcome
        return None

    def rows(self) -> Iterator[tuple[Job, Outcome]]:
        """Everything, oldest first."""
        with self._refusing("read"):
            found = self._db.execute("SELECT job, outcome FROM outcomes ORDER BY number").fetchall()
        for job, outcome in found:
            yield (
                Job.read_text(job, source=str(self.path)),
                Outcome.read_text(outcome, source=str(self.path)),
            )

    def __len__(self) -> int:
        with self._refusing("read"):
            return int(self._db.execute("SELECT COUNT(*) FROM outcomes").fetchone()[0])

    def close(self) -> None:
        with closing(self._db):
            pass


def outcomes_of(path: Path, job_key: str) -> list[Outcome]:
    """The outcomes of one job in the ledger ``path``, oldest first, without making or changing the file.

    Raises ``UsageError`` when there is none or it cannot be read.
    """
    if not path.is_file():
        raise UsageError(f"there is no ledger at {path}")
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=30)) as db:
            rows = db.execute("SELECT outcome FROM outcomes WHERE job_key=? ORDER BY number", (job_key,)).fetchall()
        return [Outcome.read_text(text, source=str(path)) for (text,) in rows]
    except (sqlite3.Error, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a ledger: {error}") from None


def _stack_key(stack: Stack | None) -> str:
    """The stack as a key of a row, by which older rows are found too."""
    return "" if stack is None else stack.key
