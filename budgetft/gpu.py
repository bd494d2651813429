"""A card: how much memory it has and what it can run. One TOML file each in ``profiles/gpus``."""

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from budgetft.errors import unknown_name
from budgetft.profiles import profiles_folder
from budgetft.units import MIB
from budgetft.value import Value, read_toml


class Gpu(Value):
    """One card. A figure that is not known is ``None``; every known figure has an entry in ``sources``."""

    name: str
    title: str
    device_names: tuple[str, ...] = ()
    """How the driver names the card. Cards of different memory can share a name: ask ``is_card``."""
    memory_mib: int = Field(gt=0)
    """What nvidia-smi reports as total."""
    budget_mib: int | None = Field(default=None, gt=0)
    """The default budget for the whole process, context included."""
    compute_capability: str
    memory_bandwidth_gb_per_s: float | None = Field(default=None, gt=0)
    fp16_tflops: float | None = Field(default=None, gt=0)
    """Dense fp16 matrix rate with fp32 accumulation."""
    fp32_tflops: float | None = Field(default=None, gt=0, exclude_if=lambda rate: rate is None)
    """Dense fp32 rate without tensor cores and TF32: of blocks that would overflow fp16."""
    native_bf16: bool
    flash_attention: bool
    """Whether torch's own flash kernel runs (compute capability 8.0 and up)."""
    efficient_attention: bool
    """Whether torch's memory-efficient kernel runs."""
    context_mib: int | None = Field(default=None, gt=0)
    """CUDA context and loaded kernels of a training process, outside torch's allocator."""
    sources: dict[str, str]

    @field_validator("compute_capability")
    @classmethod
    def _two_numbers(cls, value: str) -> str:
        major, _, minor = value.partition(".")
        if not (major.isdigit() and minor.isdigit()):
            raise ValueError("must look like 7.0")
        return value

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * MIB

    @property
    def budget_bytes(self) -> int:
        """The default budget: what the profile says, else 94 % of the memory, the rest left to driver and display."""
        return (self.budget_mib or self.memory_mib * 94 // 100) * MIB

    @property
    def capability(self) -> tuple[int, int]:
        major, minor = self.compute_capability.split(".")
        return int(major), int(minor)

    def is_card(self, device_name: str, memory_bytes: int) -> bool:
        """Whether the device that the driver names so, with this total memory, is this card.

        True means that probes on it are ``measured``, not ``emulated``. The memory counts because the 8 and the 16 GB
        RTX 4060 Ti share one name; 5 % are left for what driver versions and torch subtract.
        """
        near = abs(memory_bytes - self.memory_bytes) <= self.memory_bytes * 5 // 100
        return device_name in self.device_names and near

    @property
    def base_precision(self) -> Literal["fp16", "bf16"]:
        """The 16-bit type that runs natively."""
        return "bf16" if self.native_bf16 else "fp16"


def gpu_names() -> list[str]:
    """The names of all profiles."""
    return sorted(path.stem for path in (profiles_folder() / "gpus").glob("*.toml"))


def load_gpu(name: str) -> Gpu:
    """The profile called ``name``, or the one in the file ``name`` when it ends in ``.toml``."""
    path = Path(name) if name.endswith(".toml") else profiles_folder() / "gpus" / f"{name}.toml"
    if not name.endswith(".toml") and name not in gpu_names():
        raise unknown_name("GPU", name, gpu_names())
    return Gpu.read({"name": path.stem, **read_toml(path)}, source=str(path))


def gpu_of_device(device_name: str) -> Gpu | None:
    """The bundled card that the driver calls ``device_name``, if there is one."""
    return next((gpu for gpu in map(load_gpu, gpu_names()) if device_name in gpu.device_names), None)
