"""One run in several processes, a card each: every one takes its share of a step's micro-batches, and gradients are summed.

Only the adapter's gradients travel. A step has the contract's effective batch however many processes share it, and the
first process alone writes the run folder. ``accelerate launch`` starts the processes and says in the environment which is
which.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

from budgetft.errors import UsageError
from budgetft.train.folder import RunFolder, claimed

T = TypeVar("T")
SHARDINGS = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
    "tensor parallelism": "ACCELERATE_USE_PARALLELISM_CONFIG",
}
"""What ``accelerate launch`` may ask for, and where it says so."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which of how many processes this is. Every method but :meth:`share` must be called by all of them."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.world == 1

    def share(self, parts: Sequence[T]) -> list[T]:
        """This process's part of ``parts``."""
        return list(parts[self.rank :: self.world])

    def sum(self, value: float, device: torch.device) -> float:
        return self._reduced(value, device, distributed.ReduceOp.SUM)

    def highest(self, value: float, device: torch.device) -> float:
        return self._reduced(value, device, distributed.ReduceOp.MAX)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Put the sum over all processes into every parameter's gradient."""
        if self.alone:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def _reduced(self, value: float, device: torch.device, operation: distributed.ReduceOp.RedOpType) -> float:
        if self.alone:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total, operation)
        return float(total)


def launched_ranks(micro_batches: int) -> Ranks:
    """As the launcher says; raises ``UsageError`` when some would have none of a step's ``micro_batches``, or are to share
    the model, which no plan has traced or probed."""
    for name, variable in SHARDINGS.items():
        if os.environ.get(variable, "").lower() in ("true", "1"):
            raise UsageError(
                f"launched with {name}; a plan is of a step that holds the whole base in every process",
                hint=f"launch without {name}: base and adapter fit the budget of every card, and only gradients travel",
            )
    ranks = Ranks(rank=int(os.environ.get("RANK", 0)), world=int(os.environ.get("WORLD_SIZE", 1)))
    if ranks.world > micro_batches:
        raise UsageError(
            f"launched as {ranks.world} processes; a step of this plan has {micro_batches} micro-batches to share",
            hint="launch fewer processes, or plan again with a larger --effective-batch",
        )
    return ranks


@contextmanager
def claimed_by_first(path: Path, ranks: Ranks, *, resume: bool) -> Iterator[RunFolder]:
    """The run folder, claimed by the first process; the others only read its checkpoints."""
    if not ranks.first:
        yield RunFolder(path)
        return
    with claimed(path, resume=resume) as folder:
        yield folder
