"""When a run's checkpoints are written, and from which it goes on. What is in them never depends on when that was."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from budgetft.step.step import Step
from budgetft.train.agree import in_all, of_first
from budgetft.train.checkpoint import State, newest_checkpoint, restore_checkpoint, same_checkpoint, write_checkpoint
from budgetft.train.log import Log, Unwritten
from budgetft.train.memory import Memory
from budgetft.train.ranks import Ranks

SAVE_SHARE = 50.0
"""Times the seconds that a save took pass before the next: saving takes at most about 2 % of a run's time."""
LEAST_SECONDS = 5.0
"""Between two saves, and before the first: however fast the disk is now, others may share it."""


class Pace:
    """How often to save: every so many steps, or (``every`` None) as often as :data:`SAVE_SHARE` lets it."""

    def __init__(self, every: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._every = every
        self._clock = clock
        self._last = clock()
        self._seconds = 0.0

    def due(self, finished: int) -> bool:
        """Whether to save now that step ``finished`` is."""
        if self._every is not None:
            return finished % self._every == 0
        return self._clock() - self._last >= max(LEAST_SECONDS, SAVE_SHARE * self._seconds)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """The block of a save; how long it took decides when the next is due."""
        began = self._clock()
        yield
        self._last = self._clock()
        self._seconds = self._last - began


class Checkpoints:
    """Those of a run in ``folder``; of several processes the first alone writes and removes them, and it decides alone."""

    def __init__(self, folder: Path, step: Step, pace: Pace, *, plan_fingerprint: str, ranks: Ranks) -> None:
        self._folder = folder
        self._step = step
        self._pace = pace
        self._plan_fingerprint = plan_fingerprint
        self._ranks = ranks
        self.saved = 0
        """The step of the newest one. Where none is written here: as the first process leaves it when the run ends."""

    def restore(self, memory: Memory, on_note: Callable[[str], None]) -> int:
        """Finished steps of the newest whole one, loaded; 0 when the run had not come to one.

        All processes go on from the one that the first finds. Raises ``BudgetftError``, in all of them when one cannot.
        """
        device = self._step.device
        found = of_first(lambda: newest_checkpoint(self._folder, on_note), self._ranks, device)
        if found is None:
            return 0
        path, state = found
        in_all(lambda: self._load(path, state, memory), self._ranks, device)
        self.saved = state.step
        return state.step

    def _load(self, path: Path, state: State, memory: Memory) -> None:
        here = path if self._ranks.first else same_checkpoint(self._folder, state)
        restore_checkpoint(here, state, self._step)
        memory.count(
            tensor
            for states in self._step.optimizer.state.values()
            for tensor in states.values()
            if isinstance(tensor, torch.Tensor)
        )

    def save_if_due(self, finished: int, steps: int, log: Log | Unwritten) -> None:
        """Save step ``finished`` of ``steps`` if it is the last or the time has come."""
        if self._ranks.first and (finished == steps or self._pace.due(finished)):
            self.save(finished, log)

    def save(self, finished: int, log: Log | Unwritten) -> None:
        """Save step ``finished``, whose parameters and states these are, unless it is already. Raises ``BudgetftError``."""
        if finished <= self.saved:
            return
        if self._ranks.first:
            with self._pace.saving():
                log.sync()
                write_checkpoint(self._folder, self._step, finished_steps=finished, plan_fingerprint=self._plan_fingerprint)
        self.saved = finished
