"""One error base for everything a user can cause or cure.

Library code raises these; only ``budgetft.cli.main`` turns them into lines on stderr and an exit code.
"""

import os
import re
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches


class BudgetftError(Exception):
    """Something failed: ``message`` says what, with the value and the limit; ``hint`` is the next thing to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BudgetftError):
    """The request itself is wrong: an unknown name, a malformed file, a value out of range."""

    exit_code = 2


class WrongValue(UsageError, ValueError):
    """Fields of a value are wrong. It is a ``ValueError`` too, as Python programs and pydantic expect of a wrong argument."""


class NothingFits(BudgetftError):
    """No setting stays under the budget; the message names what binds."""

    exit_code = 3


def refused_by_system(error: OSError) -> BudgetftError:
    """What the system said, in one line, with the path it said it of: a place that cannot be written, a full disk."""
    said = error.strerror or str(error) or type(error).__name__
    path = error.filename2 if isinstance(error.filename2, str | bytes) else error.filename
    if not isinstance(path, str | bytes):
        return BudgetftError(said)
    return BudgetftError(f"cannot use {os.fsdecode(path)}: {said}", hint="choose another place, or make room for it there")


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word most like ``word``, the first by name of equals; None when nothing is near."""
    lowered = {name.lower(): name for name in allowed}
    plain = re.sub(r"[^a-z0-9]", "", word.lower())
    within = [name for name in lowered if len(plain) > 2 and plain in re.sub(r"[^a-z0-9]", "", name)]
    if within:
        return lowered[min(within, key=lambda name: (len(name), name))]
    found = get_close_matches(word.lower(), list(lowered), n=len(lowered) or 1, cutoff=0.5)
    if not found:
        return None

    def likeness(name: str) -> float:
        return SequenceMatcher(a=name, b=word.lower()).ratio()

    best = max(map(likeness, found))
    return lowered[min(name for name in found if likeness(name) == best)]


def unknown_name(kind: str, word: str, allowed: Iterable[str]) -> UsageError:
    """The error for a name that is not one of ``allowed``, with the nearest match as its hint."""
    names = sorted(allowed)
    near = nearest(word, names)
    hint = f"did you mean {near!r}?" if near else None
    return UsageError(f"unknown {kind} {word[:80]!r}; known: {', '.join(names)}", hint=hint)
