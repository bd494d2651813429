"""What all processes of a run have alike before its first step, and how they end together where they do not.

Every function here must be called by all of them. Whatever one of them finds is told to all before any goes on, so that none
waits for one that has ended.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from budgetft.errors import BudgetftError, refused_by_system
from budgetft.step.optimizer import own_states
from budgetft.step.step import Step
from budgetft.train.ranks import Ranks
from budgetft.value import Value

T = TypeVar("T")


def in_all(run: Callable[[], T], ranks: Ranks, device: torch.device) -> T:
    """``run()`` in every process; where it fails in one, all end with what the first of those says."""
    done, problem = _tried(run)
    found = ranks.gathered([] if problem is None else [(ranks.rank, *problem)], device)
    if found or done is None:
        rank, message, hint = found[0]
        where = "" if ranks.alone or not rank else f"process {rank} of {ranks.world}: "
        raise BudgetftError(where + message, hint=hint)
    return done[0]


def of_first(run: Callable[[], T], ranks: Ranks, device: torch.device) -> T:
    """``run()`` in the first process alone, told to all; where it fails there, all end with what it says."""
    found = in_all(lambda: [run()] if ranks.first else [], ranks, device)
    return ranks.gathered(found, device)[0]


def _tried(run: Callable[[], T]) -> tuple[tuple[T] | None, tuple[str, str | None] | None]:
    """What ``run`` returned, or what it said when it failed."""
    try:
        return (run(),), None
    except BudgetftError as error:
        return None, (error.message, error.hint)
    except OSError as error:
        refused = refused_by_system(error)
        return None, (refused.message, refused.hint)
    except torch.OutOfMemoryError as error:
        return None, (f"out of memory: {(str(error).splitlines() or [''])[0][:200]}", "plan again with a larger budget")


class Fingerprint(Value):
    """Checksums of what a process begins with."""

    adapter: str
    optimizer: str
    scaler: str
    seed: int

    @classmethod
    def of(cls, step: Step) -> "Fingerprint":
        states = [own_states(step.optimizer, parameter) for parameter in step.parameters]
        return cls(
            adapter=_checksum((str(place), one) for place, one in enumerate(step.parameters)),
            optimizer=_checksum((f"{place}/{key}", state[key]) for place, state in enumerate(states) for key in sorted(state)),
            scaler=hashlib.sha256(json.dumps(step.scaler.state_dict(), sort_keys=True).encode()).hexdigest(),
            seed=step.contract.seed,
        )


def _checksum(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Of the names, types, shapes and bytes of ``tensors``."""
    found = hashlib.sha256()
    for name, tensor in tensors:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


NAMES = {"adapter": "adapter", "optimizer": "optimizer's state", "scaler": "gradient scaler", "seed": "seed"}


def differences(prints: Sequence[Fingerprint]) -> list[str]:
    """In words, which processes begin with something else than the first, and with what."""
    told = []
    for rank, one in enumerate(prints):
        parts = [name for field, name in NAMES.items() if getattr(one, field) != getattr(prints[0], field)]
        told += [f"process {rank} has another {' and another '.join(parts)} than process 0"] if parts else []
    return told


def check_same(step: Step, ranks: Ranks) -> None:
    """Raises ``BudgetftError``, in all processes, when they would not begin with the same adapter, optimizer and seed."""
    if ranks.alone:
        return
    told = differences(ranks.gathered([Fingerprint.of(step)], step.device))
    if told:
        raise BudgetftError(
            f"the processes do not begin alike: {'; '.join(told)}. No step was made, and what was saved is as it was",
            hint="start all of them with the same files and the same versions; budgetft doctor lists the versions",
        )
