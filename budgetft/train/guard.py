"""What ends a run early, told so that the user can act: out of memory, a signal."""

import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Self

from budgetft.errors import BudgetftError
from budgetft.outcome import Phase
from budgetft.units import format_gib

_MAX_IDS = 8


def out_of_memory(
    error: Exception | str, *, phase: Phase, where: str, ids: Sequence[str], cap_bytes: int, budget_bytes: int, hint: str
) -> BudgetftError:
    """The error for a ``torch.OutOfMemoryError``, or for what it said: phase, place, examples, cap."""
    shown = ", ".join(ids[:_MAX_IDS]) + (f" and {len(ids) - _MAX_IDS} more" if len(ids) > _MAX_IDS else "")
    reason = (str(error).splitlines() or ["memory ran out"])[0][:200]
    return BudgetftError(
        f"out of memory in phase {phase!r} of {where}"
        + (f" (examples {shown})" if shown else "")
        + f": the cap is {format_gib(cap_bytes)} ({cap_bytes} bytes)"
        + f" of the budget {format_gib(budget_bytes)}; {reason}",
        hint=hint,
    )


class Interrupted(BudgetftError):
    """A signal ended the run; the exit code is the shell's own for it."""

    def __init__(self, message: str, *, signum: int, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = 128 + signum


def interrupted(finished: int, steps: int, signum: int, *, hint: str) -> Interrupted:
    """The end of a run by a signal, after ``finished`` of its steps."""
    where = f"after step {finished} of {steps}; that step is saved" if finished else "before the end of step 1"
    return Interrupted(f"interrupted {where}", signum=signum, hint=hint)


class StopSignal:
    """Ctrl-C or SIGTERM as a request, seen between micro-batches; a second one ends the process as it always does.

    In a thread other than the main one no handler can be set, and none is.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()
