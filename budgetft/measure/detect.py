"""The GPU at hand as a profile: every figure measured here, and each says so."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetft.errors import UsageError
from budgetft.gpu import Gpu
from budgetft.measure.kernels import REPEATS, copy, product
from budgetft.plan import write_text_atomically
from budgetft.units import GIB, MIB
from budgetft.value import Value

if TYPE_CHECKING:
    import torch

COPY_BYTES = GIB
MATMUL_SIZE = 8192
"""Rows of the square matrices: large enough that the rate no longer grows with them."""


class Detected(Value):
    """What was measured on one GPU. Rates are medians of several runs."""

    device_name: str
    driver: str
    torch: str
    memory_bytes: int
    """As NVML has it: what nvidia-smi shows as total."""
    capability: tuple[int, int]
    context_bytes: int
    """What a process holds outside torch's allocator once it has run products and attention."""
    copy_bytes_per_second: float
    """Read and written together, copying within the GPU's memory."""
    matmul_flops: dict[str, float]
    """Per second, by type (fp16, bf16, fp32; TF32 off), of square matrices; fp32 accumulation in the 16-bit types."""
    flash_attention: bool
    efficient_attention: bool


def detect() -> Detected:
    """Measure the first visible CUDA GPU; some seconds, and a gibibyte or two of its memory.

    Call it before anything else of the process uses CUDA: the context is measured as what the process holds. Raises
    ``UsageError`` when there is no GPU.
    """
    import torch

    if not torch.cuda.is_available():
        raise UsageError("no CUDA GPU that torch can use", hint="budgetft doctor says why")
    import pynvml

    from budgetft.meter.cuda import CudaMeter

    meter = CudaMeter()
    properties = torch.cuda.get_device_properties(meter.device)
    native_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    memory_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(meter.handle).total)
    types = {"fp16": torch.float16, "bf16": torch.bfloat16 if native_bf16 else None, "fp32": torch.float32}
    tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
    try:
        size = matmul_size(memory_bytes)
        rates = {name: matmul_flops(meter.device, dtype, size) for name, dtype in types.items() if dtype is not None}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32
    return Detected(
        device_name=properties.name,
        driver=meter.driver,
        torch=torch.__version__,
        memory_bytes=memory_bytes,
        capability=(properties.major, properties.minor),
        copy_bytes_per_second=copy_bytes_per_second(meter.device, min(COPY_BYTES, memory_bytes // 16)),
        matmul_flops=rates,
        flash_attention=runs_attention("FLASH_ATTENTION", meter.device),
        efficient_attention=runs_attention("EFFICIENT_ATTENTION", meter.device),
        context_bytes=meter.non_torch_bytes(),  # last, when the kernels are loaded
    )


def matmul_size(memory_bytes: int) -> int:
    """Rows of square fp32 matrices of which three take at most an eighth of the memory; a multiple of 256."""
    return max(256, min(MATMUL_SIZE, int((memory_bytes / 8 / 3 / 4) ** 0.5) // 256 * 256))


def copy_bytes_per_second(device: "torch.device", size_bytes: int) -> float:
    """The rate of a copy within the device's memory; each byte counts twice, read and written."""
    return 2 * size_bytes / copy(size_bytes, device).seconds


def matmul_flops(device: "torch.device", dtype: "torch.dtype", size: int) -> float:
    """Operations per second (2 n^3 each) of the product of two ``size`` x ``size`` matrices."""
    made = product(size, size, size, device, dtype)
    return made.flops / made.reading.seconds


def runs_attention(kernel: str, device: "torch.device") -> bool:
    """Whether torch's attention runs in fp16 with ``kernel`` alone (a name of ``SDPBackend``), forward and backward."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    query = torch.zeros(1, 2, 64, 128, device=device, dtype=torch.float16, requires_grad=True)
    try:
        with sdpa_kernel(getattr(SDPBackend, kernel)):
            torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()
    except RuntimeError:  # "No available kernel", or no kernel image
        return False
    return True


def profile_of(found: Detected, name: str | None = None) -> Gpu:
    """The profile of a measured GPU. Its rates are what was reached, lower than what a data sheet promises."""
    by = f"measured: torch {found.torch}, driver {found.driver}"
    rates = ", ".join(f"{kind} {rate / 1e12:.1f} TFLOP/s" for kind, rate in found.matmul_flops.items())
    native_bf16 = "bf16" in found.matmul_flops
    return Gpu(
        name=name or slug(found.device_name),
        title=found.device_name,
        device_names=(found.device_name,),
        memory_mib=found.memory_bytes // MIB,
        compute_capability=f"{found.capability[0]}.{found.capability[1]}",
        memory_bandwidth_gb_per_s=round(found.copy_bytes_per_second / 1e9, 1),
        fp16_tflops=round(found.matmul_flops["fp16"] / 1e12, 2),
        native_bf16=native_bf16,
        flash_attention=found.flash_attention,
        efficient_attention=found.efficient_attention,
        context_mib=-(-found.context_bytes // MIB),
        sources={
            "device_names": f"{by}; the driver's name",
            "memory_mib": f"{by}; NVML's total",
            "compute_capability": f"{by}; device properties",
            "memory_bandwidth_gb_per_s": f"{by}; copy within the memory, read and written, median of {REPEATS}",
            "fp16_tflops": f"{by}; square matrices, median of {REPEATS}: {rates}",
            "native_bf16": f"{by}; is_bf16_supported without emulation",
            "flash_attention": f"{by}; the kernel was run, forward and backward",
            "efficient_attention": f"{by}; the kernel was run, forward and backward",
            "context_mib": f"{by}; the process by NVML, less torch's allocator, after products and attention",
        },
    )


def slug(device_name: str) -> str:
    """A profile name: ``NVIDIA GeForce RTX 3090`` is ``geforce-rtx-3090``."""
    words = re.findall(r"[a-z0-9]+", device_name.lower())
    return "-".join(word for word in words if word != "nvidia") or "gpu"


def to_toml(gpu: Gpu) -> str:
    """The profile as its file has it: figures that are known, then the sources."""
    fields = gpu.model_dump(exclude_none=True, exclude={"name", "sources"})
    lines = [f"{key} = {_toml(value)}" for key, value in fields.items()]
    return "\n".join([*lines, "", "[sources]", *(f"{key} = {_toml(text)}" for key, text in gpu.sources.items())]) + "\n"


def _toml(value: Any) -> str:
    """Texts, numbers, truth values and lists of them are written in TOML as in JSON."""
    return json.dumps(list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value)


def write_profile(gpu: Gpu, path: Path) -> None:
    """Write the profile; a file that is there is never replaced."""
    if path.suffix != ".toml":
        raise UsageError(f"{path} must end in .toml")
    if path.exists():
        raise UsageError(f"{path} exists", hint="choose another --out")
    write_text_atomically(path, to_toml(gpu))
