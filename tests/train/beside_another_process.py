"""Another process beside a run on the CPU, that leaves it room for so many examples at a time and comes and goes by step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

PLANNED = 4
"""Examples in a micro-batch for which the cap has room."""


@dataclass
class Beside:
    """What a run did beside the other process."""

    step: int = 0
    """In progress; 0 in the pre-flight."""
    failed: list[int] = field(default_factory=list)
    """The step of each try that failed."""

    def failures(self, step: int) -> int:
        return self.failed.count(step)


@contextmanager
def beside(room: Callable[[int], int]) -> Iterator[Beside]:
    """Runs inside have room for ``room(step)`` examples of a micro-batch of ``PLANNED``."""
    from budgetft.train.loop import Training
    from budgetft.train.memory import CpuMemory
    from budgetft.train.recover import Recovery

    state, run, micro = Beside(), Recovery.run, Training._micro

    def run_step(recovery: Recovery, number: int, *given: Any, **named: Any) -> Any:
        state.step = number
        return run(recovery, number, *given, **named)

    def run_micro(training: Training, one: Any, total: float) -> torch.Tensor:
        if len(one.indices) > (room(state.step) if state.step else PLANNED):
            state.failed.append(state.step)
            raise torch.OutOfMemoryError("no room beside the other process")
        return micro(training, one, total)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recovery, "run", run_step)
        patch.setattr(Training, "_micro", run_micro)
        patch.setattr(CpuMemory, "room_bytes", lambda self: self.cap_bytes * room(state.step) // PLANNED)
        patch.setattr(CpuMemory, "crowded", lambda self: self.room_bytes() < self.cap_bytes)
        yield state
