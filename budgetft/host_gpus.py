"""Which of a host's GPUs a process uses: NVML counts them along the PCI bus, CUDA the fastest first unless told otherwise."""

import ctypes
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from budgetft.gpu import Gpu, gpu_at_hand
from budgetft.units import MIB


@dataclass(frozen=True, kw_only=True)
class HostGpu:
    """A GPU as NVML has it, or a MIG slice of one."""

    uuid: str
    name: str
    speed: float
    """Cores times the highest clock, for comparing GPUs of a host; 0 when the driver does not say."""
    handle: Any = None
    capability: tuple[int, int] | None = None
    slices: tuple["HostGpu", ...] = ()
    """With MIG on: a process sees only these, and CUDA gives it one."""


def launch_command(processes: int, *, share: bool) -> str:
    """How as many processes are started, one for each GPU; what they run follows."""
    kind = "--use_fsdp --fsdp_version 2" if share else "--multi_gpu"
    fixed = "--num_machines 1 --mixed_precision no --dynamo_backend no"
    return f"accelerate launch --num_processes {processes} {fixed} {kind}"


def in_cuda_order(gpus: Sequence[HostGpu], environment: Mapping[str, str]) -> list[HostGpu]:
    """``gpus`` (along the bus) as CUDA numbers them before CUDA_VISIBLE_DEVICES.

    Without CUDA_DEVICE_ORDER=PCI_BUS_ID the fastest is the first; the order of the others is not documented, nor how speed is
    judged, so that among GPUs of different kinds this is a guess: ask torch for the uuid once it has started CUDA.
    """
    if environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({gpu.name for gpu in gpus}) < 2:
        return list(gpus)
    fastest = max(gpus, key=lambda gpu: gpu.speed)
    return [fastest, *(gpu for gpu in gpus if gpu is not fastest)]


def visible_gpus(gpus: Sequence[HostGpu], environment: Mapping[str, str]) -> list[HostGpu]:
    """Those of ``gpus`` (along the bus) that CUDA gives a process, in the order in which it numbers them.

    CUDA_VISIBLE_DEVICES has numbers or the beginnings of uuids; the first that is no GPU hides the rest, and a repeated one
    hides all (CUDA C++ Programming Guide, environment variables).
    """
    ordered, named = in_cuda_order(gpus, environment), environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return [_usable(gpu) for gpu in ordered]
    found: list[HostGpu] = []
    for word in named.split(","):
        gpu = _named(word.strip(), ordered)
        if gpu is None:
            break
        if gpu in found:
            return []
        found.append(gpu)
    return found


def _named(word: str, ordered: Sequence[HostGpu]) -> HostGpu | None:
    if word.startswith(("GPU-", "MIG-")):
        matching = [one for one in with_slices(ordered) if one.uuid.startswith(word)]
        return _usable(matching[0]) if len(matching) == 1 else None
    number = re.match(r"\+?\d+", word)
    within = number is not None and int(number[0]) < len(ordered)
    return _usable(ordered[int(number[0])]) if number is not None and within else None


def _usable(gpu: HostGpu) -> HostGpu:
    return gpu.slices[0] if gpu.slices else gpu


def gpu_with(gpus: Sequence[HostGpu], uuid: str) -> HostGpu | None:
    """The GPU or slice that torch calls ``uuid``, which it may give without the kind before it."""
    return next((one for one in with_slices(gpus) if uuid.endswith(one.uuid.removeprefix("GPU-").removeprefix("MIG-"))), None)


def with_slices(gpus: Sequence[HostGpu]) -> list[HostGpu]:
    return [one for gpu in gpus for one in (gpu, *gpu.slices)]


def list_gpus() -> list[HostGpu]:
    """All GPUs of the host along the bus; none without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _gpu(handle: Any) -> HostGpu:
    import pynvml

    speed = 0.0
    with suppress(pynvml.NVMLError):
        speed = float(pynvml.nvmlDeviceGetNumGpuCores(handle) * pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM))
    capability = None
    with suppress(pynvml.NVMLError):
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        capability = (int(major), int(minor))
    uuid, name = _text(pynvml.nvmlDeviceGetUUID(handle)), _text(pynvml.nvmlDeviceGetName(handle))
    return HostGpu(uuid=uuid, name=name, speed=speed, handle=handle, capability=capability, slices=tuple(_slices(handle)))


def _slices(handle: Any) -> Iterator[HostGpu]:
    import pynvml

    with suppress(pynvml.NVMLError):  # most GPUs have no MIG
        if pynvml.nvmlDeviceGetMigMode(handle)[0]:
            for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with suppress(pynvml.NVMLError):  # fewer slices than there could be
                    yield _gpu(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def first_visible(environment: Mapping[str, str]) -> HostGpu | None:
    """The GPU that a process with ``environment`` takes as its first, as far as can be told without starting CUDA."""
    return next(iter(visible_gpus(list_gpus(), environment)), None)


def takes_expandable_segments() -> bool:
    """Whether torch's allocator can map its segments page by page: on Linux, where the driver does so for the first GPU.

    Asks the driver (CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, CUDA driver API), without starting a context.
    """
    if platform.system() != "Linux":
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    device, supported = ctypes.c_int(), ctypes.c_int()
    failed = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0)
    return not failed and not driver.cuDeviceGetAttribute(ctypes.byref(supported), 102, device) and bool(supported.value)


def driver_version() -> str:
    """Of the NVIDIA driver, which must be there."""
    import pynvml

    return _text(pynvml.nvmlSystemGetDriverVersion())


def memory_of(gpu: HostGpu) -> int:
    """Bytes in all, by NVML."""
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(gpu.handle).total)


def pinned(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to a child's ``environment`` so that its first GPU is the one that ``first_visible`` names."""
    gpus = list_gpus()
    visible = visible_gpus(gpus, environment)
    return {"CUDA_VISIBLE_DEVICES": visible[0].uuid} if visible and len(gpus) > 1 else {}


def gpu_here(environment: Mapping[str, str]) -> Gpu | None:
    """The first GPU of a process with ``environment``: its profile, else what its driver says; None without one."""
    import pynvml

    gpu = first_visible(environment)
    with suppress(pynvml.NVMLError):  # memory that it shares with the CPU has no total of its own
        if gpu is not None:
            memory_bytes = memory_of(gpu)
            return gpu_at_hand(gpu.name, memory_bytes) or unlisted_gpu(gpu, memory_bytes)
    return None


def unlisted_gpu(gpu: HostGpu, memory_bytes: int) -> Gpu | None:
    """A profile of ``gpu`` from what its driver says: no rates, which are its class's until they are measured.

    None where the driver does not say its compute capability.
    """
    if gpu.capability is None:
        return None
    ampere = gpu.capability >= (8, 0)
    return Gpu(
        name=re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-"),
        title=gpu.name,
        device_names=(gpu.name,),
        memory_mib=memory_bytes // MIB,
        compute_capability="{}.{}".format(*gpu.capability),
        native_bf16=ampere,
        flash_attention=ampere,
        efficient_attention=True,
        sources=dict.fromkeys(("device_names", "memory_mib", "compute_capability"), "the driver"),
    )
