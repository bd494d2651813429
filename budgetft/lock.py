"""One process at a time: exclusive locks on files, which the kernel drops with the process that holds them."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from budgetft.errors import BudgetftError, UsageError


@contextmanager
def exclusive(path: Path, *, taken: Callable[[str], BudgetftError]) -> Iterator[None]:
    """Hold the lock file ``path`` during the block, and remove it afterwards.

    Raises what ``taken`` makes of the holder's process number, and ``UsageError`` when the file cannot be made.
    """
    handle = _lock(path, taken)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path, taken: Callable[[str], BudgetftError]) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise taken(holder) from None
        # The holder before us may have removed the name between our open and our lock.
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
            return handle
        os.close(handle)
