"""What a process holds on a CUDA GPU: torch's allocator, and everything else by NVML."""

import os
from contextlib import suppress
from dataclasses import dataclass

import pynvml
import torch

from budgetft.errors import BudgetftError
from budgetft.gpu import Gpu
from budgetft.host_gpus import HostGpu, gpu_with, list_gpus, visible_gpus, with_slices
from budgetft.meter.outside import Outside

SLACK_BYTES = 32 * 2**20
"""Left free below the budget for kernels that are loaded later than the measurement of the context."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Bytes since the last reset; ``process_bytes`` is now, the others are peaks."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    process_bytes: int
    non_torch_bytes: int
    alloc_retries: int
    ooms: int


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process on the GPU; ``memory_bytes`` is None when the driver does not say."""

    pid: int
    name: str
    memory_bytes: int | None


class CudaMeter:
    """Create before the first CUDA call of the process: what others hold on the GPU is read then."""

    def __init__(self, device_index: int = 0) -> None:
        self.device = torch.device("cuda", device_index)
        gpus = list_gpus()
        before = {} if torch.cuda.is_initialized() else {one.uuid: _use_of(one) for one in with_slices(gpus)}
        gpu = gpu_with(gpus, str(torch.cuda.get_device_properties(self.device).uuid))
        gpu = gpu or next(iter(visible_gpus(gpus, os.environ)[device_index:]), None)
        if gpu is None:
            raise BudgetftError("torch finds a CUDA GPU that NVML does not know", hint="nvidia-smi must list the GPU")
        self.handle = gpu.handle
        self._used_before, self._pids_before = before.get(gpu.uuid, (None, None))
        self.total_bytes = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_device(self.device)
        torch.zeros(1, device=self.device)
        self._retries_before = 0
        self.own_pids = self._find_own_pids()
        self._outside_bytes = self._context_bytes = self.non_torch_bytes()
        self._outside = self._count_from_here()

    def _find_own_pids(self) -> set[int]:
        """This process as NVML numbers it: inside a container that can be another number than its own.

        Of two that start at once in one container, each takes both for its own: neither can read its number outside.
        """
        pids = {process.pid for process in _processes(self.handle)}
        if os.getpid() in pids or self._pids_before is None:
            return {os.getpid()}
        return pids - self._pids_before

    def other_processes(self) -> list[Process]:
        """Everyone else on the GPU, by NVML's process lists."""
        return [process for process in _processes(self.handle) if process.pid not in self.own_pids]

    def free_bytes(self) -> int:
        """What nobody holds on the GPU."""
        return int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).free)

    @property
    def driver(self) -> str:
        return str(pynvml.nvmlSystemGetDriverVersion())

    def process_bytes(self) -> int:
        """Bytes this process holds on the GPU: by NVML's process list, else the allocator's, what lay outside it when the cap
        was set, and what has come to it since; see :class:`Outside` for what others who come and go do to that."""
        listed = self._listed_bytes()
        if listed is not None:
            return listed
        reserved = torch.cuda.memory_reserved()
        return reserved + self._outside_bytes + self._outside.see(self._used_bytes() - reserved)

    def _listed_bytes(self) -> int | None:
        """By NVML's process list; None where the driver keeps none, as under WSL."""
        with suppress(pynvml.NVMLError):
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle):
                if {process.pid} == self.own_pids and process.usedGpuMemory:
                    return int(process.usedGpuMemory)
        return None

    def non_torch_bytes(self) -> int:
        """Context, loaded kernels and library workspaces: what the process holds outside torch's allocator, measured now.

        Where NVML lists no processes, what the GPU's use has grown by since the meter was made.
        """
        torch.cuda.synchronize()
        held = self._listed_bytes()
        if held is None:
            held = self._used_bytes() - (self._used_before or 0)
        return max(0, held - torch.cuda.memory_reserved())

    def _used_bytes(self) -> int:
        """What all hold on the GPU."""
        return int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used)

    def _count_from_here(self) -> Outside:
        return Outside(self._used_bytes() - torch.cuda.memory_reserved(), context_bytes=self._context_bytes)

    def set_cap(self, budget_bytes: int) -> int:
        """Let the allocator have the budget less what the process holds outside it; returns that cap in bytes."""
        self._outside_bytes = self.non_torch_bytes()
        self._outside = self._count_from_here()
        cap_bytes = max(budget_bytes - self._outside_bytes - SLACK_BYTES, 2 * 2**20)
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap_bytes / self.total_bytes), self.device)
        return cap_bytes

    def reset(self) -> None:
        """Forget cached blocks and peaks."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self._retries_before = torch.cuda.memory_stats().get("num_alloc_retries", 0)

    def read(self) -> Reading:
        torch.cuda.synchronize()
        stats = torch.cuda.memory_stats()
        reserved_now, process_bytes = torch.cuda.memory_reserved(), self.process_bytes()
        return Reading(
            allocated_peak_bytes=stats["allocated_bytes.all.peak"],
            reserved_peak_bytes=stats["reserved_bytes.all.peak"],
            process_bytes=process_bytes,
            non_torch_bytes=max(0, process_bytes - reserved_now),
            alloc_retries=stats.get("num_alloc_retries", 0) - self._retries_before,
            ooms=stats.get("num_ooms", 0),
        )


def _use_of(gpu: HostGpu) -> tuple[int, set[int]]:
    """Bytes in use, and by whom."""
    used = int(pynvml.nvmlDeviceGetMemoryInfo(gpu.handle).used)
    return used, {process.pid for process in _processes(gpu.handle)}


def _processes(handle: object) -> list[Process]:
    found: dict[int, Process] = {}
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        with suppress(pynvml.NVMLError):
            for one in ask(handle):
                held = None if one.usedGpuMemory is None else int(one.usedGpuMemory)
                found[one.pid] = Process(pid=int(one.pid), name=_name(int(one.pid)), memory_bytes=held)
    return list(found.values())


def _name(pid: int) -> str:
    try:
        name = pynvml.nvmlSystemGetProcessName(pid)
    except pynvml.NVMLError:
        return "name unknown"
    return os.path.basename((name.decode(errors="replace") if isinstance(name, bytes) else str(name)).split(" ")[0])


def restrict_to(gpu: Gpu) -> None:
    """Forbid what ``gpu`` lacks, so that this GPU chooses kernels as it would; what it has stays as it is.

    It does not make this GPU as slow.
    """
    torch.backends.cuda.enable_flash_sdp(gpu.flash_attention)
    torch.backends.cuda.enable_cudnn_sdp(gpu.flash_attention and gpu.capability >= (9, 0))
    torch.backends.cuda.enable_mem_efficient_sdp(gpu.efficient_attention)
    if gpu.capability < (8, 0):
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
