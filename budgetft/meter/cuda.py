"""What a process holds on a CUDA card: torch's allocator, and everything else by NVML."""

import os
from dataclasses import dataclass

import pynvml
import torch

from budgetft.gpu import Gpu

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


class CudaMeter:
    """Create before the first CUDA call of the process: what others hold on the card is read then."""

    def __init__(self, device_index: int = 0) -> None:
        pynvml.nvmlInit()
        self.device = torch.device("cuda", device_index)
        self._used_before: int | None = None
        if not torch.cuda.is_initialized():
            self._used_before = int(pynvml.nvmlDeviceGetMemoryInfo(self._first_visible()).used)
        self.uuid = str(torch.cuda.get_device_properties(self.device).uuid)
        self.handle = self._handle_of(self.uuid)
        self.total_bytes = torch.cuda.get_device_properties(self.device).total_memory
        torch.cuda.set_device(self.device)
        torch.zeros(1, device=self.device)
        self._retries_before = 0

    def _first_visible(self) -> object:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
        if visible.startswith("GPU-"):
            return pynvml.nvmlDeviceGetHandleByUUID(visible)
        return pynvml.nvmlDeviceGetHandleByIndex(int(visible) if visible.isdigit() else 0)

    @staticmethod
    def _handle_of(uuid: str) -> object:
        try:
            return pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        except pynvml.NVMLError:
            return pynvml.nvmlDeviceGetHandleByIndex(0)

    @property
    def driver(self) -> str:
        return str(pynvml.nvmlSystemGetDriverVersion())

    def process_bytes(self) -> int:
        """Bytes this process holds on the card; by NVML's process list, else by what the card's use grew by."""
        try:
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self.handle):
                if process.pid == os.getpid() and process.usedGpuMemory:
                    return int(process.usedGpuMemory)
        except pynvml.NVMLError:
            pass
        used = int(pynvml.nvmlDeviceGetMemoryInfo(self.handle).used)
        return used - (self._used_before or 0)

    def non_torch_bytes(self) -> int:
        """Context, loaded kernels and library workspaces: what the process holds outside torch's allocator."""
        torch.cuda.synchronize()
        return max(0, self.process_bytes() - torch.cuda.memory_reserved())

    def set_cap(self, budget_bytes: int) -> int:
        """Let the allocator have the budget less what the process holds outside it; returns that cap in bytes."""
        cap_bytes = max(budget_bytes - self.non_torch_bytes() - SLACK_BYTES, 2 * 2**20)
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


def restrict_to(gpu: Gpu) -> None:
    """Forbid what ``gpu`` lacks, so that this card chooses kernels as it would. It does not make it as slow."""
    torch.backends.cuda.enable_flash_sdp(gpu.flash_attention)
    torch.backends.cuda.enable_cudnn_sdp(gpu.flash_attention and gpu.capability >= (9, 0))
    torch.backends.cuda.enable_mem_efficient_sdp(gpu.efficient_attention)
    tf32 = gpu.capability >= (8, 0)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
