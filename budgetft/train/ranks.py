"""One run in several processes, a GPU each: every one takes its share of a step's micro-batches, and gradients are summed.

Only the adapter's gradients travel, and the frozen layers where they are shared out. A step has the contract's effective
batch however many processes share it, and the first process alone writes the run folder. ``accelerate launch`` starts the
processes and says in the environment which is which.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed

from budgetft.errors import UsageError
from budgetft.host_gpus import launch_command
from budgetft.step.shared import all_gather
from budgetft.train.folder import RunFolder, claimed

T = TypeVar("T")
SHARED = "ACCELERATE_USE_FSDP"
"""Where ``accelerate launch --use_fsdp`` says so."""
SHARDINGS = {
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
    "tensor parallelism": "ACCELERATE_USE_PARALLELISM_CONFIG",
}
"""What else ``accelerate launch`` may ask for, and where it says so."""


@cache
def _cell(device: torch.device) -> torch.Tensor:
    """A number on its way through the processes. Made once: a process out of memory must be able to say so."""
    return torch.zeros((), dtype=torch.float64, device=device)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Which of how many processes this is. Every method but :meth:`share` must be called by all of them."""

    rank: int = 0
    world: int = 1
    shared: bool = False
    """Each keeps a part of every frozen decoder layer, in place of all."""

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

    def connect(self, device: torch.device) -> None:
        """Open what the collectives of a run need, so that the memory it takes is held from here on."""
        distributed.all_reduce(_cell(device).fill_(0))
        own = torch.zeros(1, dtype=torch.uint8, device=device)
        all_gather(own.new_zeros(self.world), own)

    def each(self, value: float, device: torch.device) -> tuple[float, ...]:
        """The value of every process, in their order."""
        return tuple(self.sum(value if rank == self.rank else 0, device) for rank in range(self.world))

    def first_of(self, problem: T | None, device: torch.device) -> T | None:
        """The first process's problem that has one, told to all; None when none has."""
        return next(iter(self.gathered([] if problem is None else [problem], device)), None)

    def gathered(self, found: Sequence[T], device: torch.device) -> list[T]:
        """Those of every process, in their order, told to all."""
        if self.alone or not self.highest(bool(found), device):
            return list(found)
        lists: list[Sequence[T]] = [()] * self.world
        distributed.all_gather_object(lists, list(found))
        return [one for each in lists for one in each]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Put the sum over all processes into every parameter's gradient; each must have one."""
        for gradient in (parameter.grad for parameter in parameters if not self.alone):
            assert gradient is not None
            distributed.all_reduce(gradient)

    def _reduced(self, value: float, device: torch.device, operation: distributed.ReduceOp.RedOpType) -> float:
        if self.alone:
            return value
        total = _cell(device).fill_(value)
        distributed.all_reduce(total, operation)
        return float(total)


def launched_ranks(micro_batches: int, *, sharing_gpus: int = 1) -> Ranks:
    """As the launcher says; raises ``UsageError`` when some would have none of a step's ``micro_batches``, when the model is to
    be cut in a way that this step is not made for, or when each of ``sharing_gpus`` was to have its part and has more."""
    for name, variable in SHARDINGS.items():
        if _is_set(variable):
            raise UsageError(
                f"launched with {name}, which would do the step in its own way; a plan is of this one",
                hint=f"launch without {name}; --use_fsdp shares the frozen layers out between the GPUs",
            )
    world = int(os.environ.get("WORLD_SIZE", 1))
    ranks = Ranks(rank=int(os.environ.get("RANK", 0)), world=world, shared=world > 1 and _is_set(SHARED))
    if ranks.world > micro_batches:
        raise UsageError(
            f"launched as {ranks.world} processes; a step of this plan has {micro_batches} micro-batches to share",
            hint="launch fewer processes, or plan again with a larger --effective-batch",
        )
    if sharing_gpus > 1 and (ranks.world < sharing_gpus or not ranks.shared):
        found = f"{ranks.world} process" + ("es" if ranks.world > 1 else "")
        found += ", each with the whole model" if ranks.world > 1 and not ranks.shared else ""
        start = launch_command(sharing_gpus, share=True)
        raise UsageError(
            f"launched as {found}; this plan is for {sharing_gpus} GPUs that share the frozen layers out",
            hint=f"{start} -m budgetft train ...; or budgetft launch, which writes a job script",
        )
    return ranks


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")


@contextmanager
def claimed_by_first(path: Path, ranks: Ranks, *, resume: bool) -> Iterator[RunFolder]:
    """The run folder, claimed by the first process; the others only read its checkpoints."""
    if not ranks.first:
        yield RunFolder(path)
        return
    with claimed(path, resume=resume) as folder:
        yield folder
