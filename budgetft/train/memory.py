"""The run's memory: capped at the plan's budget, and read after every step. One class for a GPU, one for the CPU."""

import gc
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch

from budgetft.allocator import NAME, OLDER_NAME, own
from budgetft.errors import UsageError
from budgetft.host_gpus import takes_expandable_segments
from budgetft.knobs import Allocator
from budgetft.meter.live import LiveBytes
from budgetft.outcome import Estimate, Evidence, Stack, processor
from budgetft.plan import Target
from budgetft.train.readings import Held, OtherProcess

Device = Literal["auto", "cpu", "cuda"]
MOST_OF_THE_CAP = 0.99
"""A plan that takes so much leaves the allocator nothing to pile up in."""
LEAST_OF_THE_CAP = 0.001
"""What torch is told of a plan that takes less: it refuses a threshold of 0, and CUDA then does not start."""


class Memory(Protocol):
    """A device whose memory is capped and read."""

    device: torch.device
    evidence: Evidence
    note: str
    cap_bytes: int
    stack: Stack

    def set_cap(self) -> None:
        """Cap the allocator at the budget less what the process holds outside it by now."""
        ...

    def count(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were made outside ``working``; raises ``torch.OutOfMemoryError`` above the cap."""
        ...

    def working(self) -> AbstractContextManager[object]:
        """The block in which tensors are made that count."""
        ...

    def forget_peaks(self) -> None: ...

    def release(self) -> None:
        """Give back what the allocator caches, so that blocks of other sizes can be had; peaks stay."""
        ...

    def other_processes(self) -> tuple[OtherProcess, ...]:
        """Other processes on the device now."""
        ...

    def room_bytes(self) -> int:
        """What the run could hold now: the cap, or less where others hold the device's memory."""
        ...

    def crowded(self) -> bool:
        """Whether the device has less left than the cap still allows: others hold it."""
        ...

    def read(self) -> Held: ...


class CpuMemory:
    """Live tensor bytes of a run on the CPU, with the budget as their cap."""

    def __init__(self, target: Target) -> None:
        self.device = torch.device("cpu")
        self.evidence: Evidence = "predicted"
        self.note = "ran on the CPU: bytes are those of live tensors, and no GPU was used"
        self.cap_bytes = target.budget_bytes
        self.stack = Stack.here(processor(), None)
        self._live = LiveBytes(cap_bytes=target.budget_bytes)

    def set_cap(self) -> None:
        pass  # nothing is held beside the tensors

    def count(self, tensors: Iterable[torch.Tensor]) -> None:
        self._live.count(tensors)

    def working(self) -> AbstractContextManager[object]:
        return self._live

    def forget_peaks(self) -> None:
        self._live.reset_peak()

    def release(self) -> None:
        pass  # nothing is cached

    def other_processes(self) -> tuple[OtherProcess, ...]:
        return ()

    def room_bytes(self) -> int:
        return self.cap_bytes

    def crowded(self) -> bool:
        return False

    def read(self) -> Held:
        live, peak = self._live.live_bytes, self._live.peak_bytes
        return Held(
            allocated_bytes=live,
            allocated_peak_bytes=peak,
            reserved_bytes=None,
            reserved_peak_bytes=None,
            process_bytes=live,
            process_peak_bytes=peak,
            alloc_retries=0,
            ooms=self._live.ooms,
        )


class CudaMemory:
    """A GPU with torch's allocator capped. Create before anything else touches CUDA."""

    def __init__(self, target: Target, lacking: str = "") -> None:
        from budgetft.meter.cuda import CudaMeter, restrict_to

        self._budget_bytes = target.budget_bytes
        self._meter = CudaMeter(int(os.environ.get("LOCAL_RANK", 0)))
        self.device = self._meter.device
        gpu = torch.cuda.get_device_name(self.device)
        planned = target.profile.is_gpu(gpu, self._meter.total_bytes)
        if not planned:
            restrict_to(target.profile)
        self.evidence: Evidence = "measured" if planned else "emulated"
        limited = "" if planned else f", restricted to what {target.profile.title} can do"
        self.note = f"ran on {gpu}{limited}{lacking}"
        self.stack = Stack.here(gpu, self._meter.driver)
        self.cap_bytes = 0
        self.set_cap()

    def set_cap(self) -> None:
        self.cap_bytes = self._meter.set_cap(self._budget_bytes)

    def count(self, tensors: Iterable[torch.Tensor]) -> None:
        pass  # the allocator counts

    def working(self) -> AbstractContextManager[object]:
        return nullcontext()

    def forget_peaks(self) -> None:
        self._meter.reset()

    def release(self) -> None:
        torch.cuda.empty_cache()

    def other_processes(self) -> tuple[OtherProcess, ...]:
        return tuple(OtherProcess(**vars(process)) for process in self._meter.other_processes())

    def room_bytes(self) -> int:
        return min(self.cap_bytes, self._meter.free_bytes() + torch.cuda.memory_reserved(self.device))

    def crowded(self) -> bool:
        return self.room_bytes() < self.cap_bytes

    def read(self) -> Held:
        reading = self._meter.read()
        return Held(
            allocated_bytes=torch.cuda.memory_allocated(self.device),
            allocated_peak_bytes=reading.allocated_peak_bytes,
            reserved_bytes=torch.cuda.memory_reserved(self.device),
            reserved_peak_bytes=reading.reserved_peak_bytes,
            process_bytes=reading.process_bytes,
            process_peak_bytes=max(reading.process_bytes, reading.non_torch_bytes + reading.reserved_peak_bytes),
            alloc_retries=reading.alloc_retries,
            ooms=reading.ooms,
        )


def open_memory(
    target: Target,
    device: Device,
    allocator: Allocator,
    *,
    planned: Estimate | None = None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Memory:
    """The memory of the device to train on, capped at the target's budget; ``auto`` takes a GPU where there is one.

    Without expandable segments the cached blocks of batches of varied sizes pile up to the cap: with ``planned``, torch gives
    those that it has not used for longest back to the GPU where it would hold more than was planned.

    The user's own settings of the allocator are kept where the plan decides nothing else. Raises ``UsageError`` for ``cuda``
    without a GPU, and for settings that torch or a plan cannot do with.
    """
    available = device != "cpu" and torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UsageError(
            "--device cuda: torch finds no CUDA GPU here",
            hint="see budgetft doctor, or use --device cpu to try the machinery",
        )
    if not available:
        return CpuMemory(target)
    lacks = allocator == "expandable" and not takes_expandable_segments()
    expandable = allocator == "expandable" and not lacks
    share = 1.0 if expandable or planned is None else held_share(planned, target.budget_bytes)
    for note in _choose_allocator(expandable, share):
        on_note(note)
    return CudaMemory(target, "; this platform has no expandable segments: the default allocator" if lacks else "")


def free_memory() -> None:
    """Give back what nothing refers to any more but itself, on a GPU to the GPU."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def held_share(planned: Estimate, budget_bytes: int) -> float:
    """What the allocator was planned to reserve, as a share of what the cap lets it."""
    outside_bytes = planned.process_peak_bytes - planned.reserved_peak_bytes
    return planned.reserved_peak_bytes / max(1, budget_bytes - outside_bytes)


def _choose_allocator(expandable: bool, share: float) -> tuple[str, ...]:
    """Settle the allocator's kind before CUDA starts; torch reads it from the environment. Returns what to tell the user."""
    old = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 9)
    decided = {"expandable_segments": str(expandable)}
    if share < MOST_OF_THE_CAP:
        decided["garbage_collection_threshold"] = f"{max(share, LEAST_OF_THE_CAP):.3f}"
    return own.replace(os.environ, OLDER_NAME if old else NAME, decided)
