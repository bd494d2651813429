"""One error base for everything a user can cause or cure.

Library code raises these; only ``budgetft.cli.main`` turns them into lines on stderr and an exit code.
"""

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


class NothingFits(BudgetftError):
    """No setting stays under the budget; the message names the binding floor."""

    exit_code = 3


def nearest(word: str, allowed: Iterable[str]) -> str | None:
    """The allowed word most like ``word``, the first by name of equals; None when nothing is near."""
    lowered = {name.lower(): name for name in allowed}
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
    return UsageError(f"unknown {kind} {word!r}; known: {', '.join(names)}", hint=hint)
