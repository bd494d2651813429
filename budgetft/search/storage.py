"""Where studies are kept: one worker's SQLite file, or a journal or a database server that several workers share."""

import logging
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import uniform
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from budgetft.errors import BudgetftError, UsageError
from budgetft.lock import exclusive

DRIVERS = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Packages of modules, where their names differ."""
JOURNAL, SQLITE = "journal://", "sqlite:///"


def is_shared(storage: str | BaseStorage) -> bool:
    """Whether several workers may plan in one study of ``storage`` at a time: all but SQLite and memory."""
    return isinstance(storage, str) and not storage.startswith("sqlite")


def open_storage(url: str | BaseStorage) -> BaseStorage:
    """The storage at ``url``: ``journal://PATH`` or a URL of SQLAlchemy. Raises ``UsageError`` when it cannot be used."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        if isinstance(url, BaseStorage):
            return url
        if url.startswith(JOURNAL):
            return JournalStorage(_Journal(Path(url.removeprefix(JOURNAL)).absolute()))
        return _open_database(url)
    except Exception as error:
        raise unusable(url, error) from None


def _open_database(url: str) -> RDBStorage:
    """Of workers that start together in a new database one makes the tables; the others fail at that, and find them made."""
    from sqlalchemy.exc import DBAPIError

    for pause in (0.3, 0.6, 1.2) if is_shared(url) else ():
        try:
            return RDBStorage(url)
        except DBAPIError:
            time.sleep(pause * uniform(0.5, 1))
    return RDBStorage(url)


def unusable(url: str | BaseStorage, error: Exception) -> UsageError:
    """SQLAlchemy, SQLite and Optuna raise their own kinds for a storage that is damaged or cannot be reached."""
    hint = None
    if isinstance(error, ImportError):
        module = str(error.name or getattr(error.__context__, "name", None))  # Optuna raises one of its own
        hint = f"install the driver that the URL names: pip install {DRIVERS.get(module, module)}"
    if isinstance(error, FileNotFoundError):
        hint = "make its folder first; a path after journal:// that begins with / is absolute"
    return UsageError(f"cannot use {shown(url)!r} as the study's storage: {type(error).__name__}: {error}", hint=hint)


def shown(url: str | BaseStorage) -> str:
    """``url`` without the password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(str(url))
    except ArgumentError:
        return str(url)
    return str(url) if parsed.password is None else parsed.render_as_string(hide_password=True)


@contextmanager
def held_study(name: str, storage: str) -> Iterator[None]:
    """Keep other processes from planning in the study ``name`` of a SQLite file during the block.

    A storage that is shared is not held: there the workers claim their probes. Raises ``UsageError`` when the study is
    held, and ``BudgetftError`` when its storage fails (full disk, locked).
    """
    from sqlalchemy.exc import SQLAlchemyError

    path = storage.removeprefix(SQLITE)
    with ExitStack() as stack:
        if path != storage and not path.startswith(":"):
            lock = Path(path).with_name(f".{Path(path).name}.{name}.lock")
            stack.enter_context(exclusive(lock, taken=lambda holder: _in_use(name, holder)))
        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise BudgetftError(
                f"the study's storage {shown(storage)} failed: {reason}",
                hint="finished probes are in the ledger: once the storage can be reached and has room, plan again",
            ) from None


def _in_use(name: str, holder: str) -> UsageError:
    return UsageError(
        f"another process ({holder}) is planning this very job (study {name})",
        hint="wait for it: planning again then takes its probes over; or give all workers a --storage that they can share:"
        " journal://FILE",
    )


class _Journal(JournalFileBackend):
    """Optuna's journal, whose failures are a storage's, and which a writer that died in the middle of a line does not spoil."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=_MendingLock(path))

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        try:
            yield from super().read_logs(log_number_from)
        except (OSError, ValueError) as error:
            raise StorageInternalError(f"{type(error).__name__} while it was read") from error

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except (OSError, RuntimeError) as error:
            raise StorageInternalError(f"{type(error).__name__} while it was written") from error


class _MendingLock(JournalFileSymlinkLock):
    """Cuts off an unfinished last line before the holder appends: joined to it, the next record would be lost, and all after.

    The link points at the file by its absolute path: Optuna tells a dead holder by the file's time, through the link.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def acquire(self) -> bool:
        super().acquire()
        try:
            _cut_unfinished_line(self._path)
        except BaseException:
            self.release()
            raise
        return True


def _cut_unfinished_line(path: Path, block: int = 4096) -> None:
    with path.open("rb+") as file:
        end = size = file.seek(0, 2)
        while end:
            start = max(0, end - block)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            end = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if end != size:
            file.truncate(end)
