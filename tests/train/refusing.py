"""A byte meter that refuses chosen allocations, as a GPU without a byte left does: at any step, phase and depth."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from budgetft.meter.live import LiveBytes


@dataclass
class Refusals:
    """``wanted``: (step, phase, which allocation of that phase in a try of the step), each refused once."""

    wanted: list[tuple[int, str, int]] = field(default_factory=list)
    refused: list[tuple[int, str, int]] = field(default_factory=list)
    counts: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Allocations by step and phase, in the last try of the step."""
    step: int = 0
    phase: str = "load"

    def begin(self, number: int) -> None:
        self.step = number
        for key in [key for key in self.counts if key[0] == number]:
            del self.counts[key]

    def enter(self, phase: str) -> None:
        self.phase = phase

    def see(self) -> None:
        """Raise where a refusal is wanted."""
        place = self.step, self.phase
        self.counts[place] += 1
        here = (*place, self.counts[place])
        if here in self.wanted:
            self.wanted.remove(here)
            self.refused.append(here)
            raise torch.OutOfMemoryError(f"refused allocation {here[2]} of {self.phase} in step {self.step}")


@contextmanager
def refusing(*wanted: tuple[int, str, int]) -> Iterator[Refusals]:
    """Runs on the CPU inside this block have ``wanted`` allocations refused."""
    from budgetft.train import memory, opening, rng

    state = Refusals(wanted=list(wanted))
    seed_step = rng.seed_step

    class Meter(LiveBytes):
        def _add(self, tensor: torch.Tensor) -> None:
            if tensor.untyped_storage()._cdata not in self._refs and tensor.device.type != "meta":
                state.see()
            super()._add(tensor)

    class Told(opening.Step):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.on_phase = state.enter

    def begin(seed: int, number: int, rank: int) -> None:
        state.begin(number)
        seed_step(seed, number, rank)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "LiveBytes", Meter)
        patch.setattr(opening, "Step", Told)
        patch.setattr(rng, "seed_step", begin)
        yield state
