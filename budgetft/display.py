"""Room for a display: a GPU that also draws a desktop lends it memory, which no plan may count on."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from budgetft.gpu import Gpu
from budgetft.host_gpus import HostGpu, first_visible, gpu_here
from budgetft.units import MIB, format_gib

DESKTOP_BYTES = 1024 * MIB
"""Desktops on Linux hold 500 to 900 MiB in seven public logs of nvidia-smi. ComfyUI leaves them 400 MiB
(comfy/model_management.py, EXTRA_RESERVED_VRAM)."""
WINDOWS_BYTES = 1536 * MIB
"""Under WSL the Windows desktop is on the same GPU: 1,588 to 1,709 MiB were in use at rest in three public logs of Windows
machines. ComfyUI leaves half as much more there as on Linux (600 MiB)."""


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """What of a GPU's memory stays the display's, and why: in bytes, and in words."""

    memory_bytes: int
    why: str

    def describe(self) -> str:
        """For people."""
        return f"{format_gib(self.memory_bytes)} of the GPU are kept for the display ({self.why}); --no-display takes them"


def is_wsl(release: str | None = None) -> bool:
    """Whether this Linux runs under Windows: its kernel's release says microsoft (Microsoft's WSL2-Linux-Kernel)."""
    return "microsoft" in (platform.release() if release is None else release).lower()


def display_reserve(gpu: Gpu, asked: bool | None, environment: Mapping[str, str] | None = None) -> Reserve | None:
    """The room that the default budget of ``gpu`` keeps for a display; None when there is none.

    ``asked`` is the user's word, for a GPU that may be elsewhere. Where it is None, it is the driver's of the GPU at hand
    (nvmlDeviceGetDisplayActive), if that is the one planned for; under WSL that GPU draws the Windows desktop.
    """
    if asked is False:
        return None
    environment = os.environ if environment is None else environment
    host_gpu, found = first_visible(environment), gpu_here(environment)
    here = host_gpu is not None and found is not None and gpu.is_gpu(host_gpu.name, found.memory_bytes)
    if here and is_wsl():
        return Reserve(memory_bytes=WINDOWS_BYTES, why="WSL: Windows draws its desktop with this GPU")
    if asked:
        return Reserve(memory_bytes=DESKTOP_BYTES, why="--display")
    if here and host_gpu is not None and drives_display(host_gpu):
        return Reserve(memory_bytes=DESKTOP_BYTES, why="a display runs on this GPU")
    return None


def drives_display(host_gpu: HostGpu) -> bool:
    """Whether a display is active on ``gpu``, as its driver says; False where it does not say, as for a MIG slice."""
    import pynvml

    with suppress(pynvml.NVMLError):
        return bool(pynvml.nvmlDeviceGetDisplayActive(host_gpu.handle))
    return False
