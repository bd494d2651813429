"""A folder put in place of another, so that a process that is killed meanwhile loses neither of them.

The old one is set aside under the new one's name with ``-old`` behind it, the new one takes its place, and the old one is
deleted. Between the first two both lie hidden beside the place, which is empty; what uses the place next fills it again.
"""

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from budgetft.errors import UsageError
from budgetft.lock import exclusive

_OLD = "-old"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also when two threads write the same. Raises ``OSError``."""
    partial = f"{path.parent}/.{path.name}.{threading.get_ident()}"
    with open(partial, "wb", buffering=0) as file:
        file.write(content)
    os.replace(partial, path)


def hidden_beside(out: Path) -> Path:
    """Where a new folder for ``out`` is made; nothing is there yet."""
    return out.parent / f".{out.name}.partial-{uuid4().hex[:12]}"


def move_into_place(new: Path, out: Path) -> None:
    """Rename ``new``, which is whole, to ``out``; a folder that is there is kept until then."""
    if not out.exists():
        new.rename(out)
        return
    with _alone(out):
        old = new.with_name(new.name + _OLD)
        out.rename(old)
        try:
            new.rename(out)
        except BaseException:
            old.rename(out)
            raise
        for each in _set_aside(out):  # those of killed processes too
            shutil.rmtree(each)


def recover(out: Path, *, is_whole: Callable[[Path], bool]) -> None:
    """Fill ``out`` again where a process was killed before it did: with its new folder if that is whole, else with the old one.

    Raises ``UsageError`` when another process is at it. Does nothing where there is nothing to recover.
    """
    if os.path.lexists(out) or not _set_aside(out):
        return
    with _alone(out):
        # An old one without its new one was only to be deleted, and may be so in part.
        for old in sorted(_set_aside(out), key=lambda old: not _new_of(old).is_dir()):
            new = _new_of(old)
            if os.path.lexists(out):
                return
            if new.is_dir() and is_whole(new):
                new.rename(out)
                shutil.rmtree(old)
            elif new.is_dir() or is_whole(old):
                old.rename(out)
                shutil.rmtree(new, ignore_errors=True)


def _new_of(old: Path) -> Path:
    return old.with_name(old.name.removesuffix(_OLD))


def _set_aside(out: Path) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(out.name)}\.partial-[0-9a-f]{{12}}{_OLD}")
    found: list[Path] = []
    with suppress(OSError):  # no such folder, or one that may not be listed
        found += [path for path in out.parent.iterdir() if pattern.fullmatch(path.name)]
    return sorted(found)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    def taken(holder: str) -> UsageError:
        return UsageError(f"{out} is being replaced by another process ({holder})", hint="try again in a moment")

    with exclusive(out.parent / f".{out.name}.lock", taken=taken):
        yield
