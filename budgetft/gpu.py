"""A GPU: how much memory it has and what it can run. One TOML file each in ``profiles/gpus``."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from budgetft.errors import UsageError
from budgetft.gpu_size import CAPABILITIES, Size, is_size, parse_gpu_size
from budgetft.gpu_text import Listed, Match, match, nearest_listed, other_makers, typed
from budgetft.profiles import profiles_folder
from budgetft.units import GIB, MIB
from budgetft.value import Value, read_toml

_KERNELS = "PyTorch, aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: the {} kernel is gated at {} to sm_121"
_BF16 = "bf16 tensor cores from sm_80 on: NVIDIA A100 whitepaper; pytorch/pytorch#148322"
_NO_BF16 = "pytorch/pytorch#148322, #129288: before sm_80 bf16 is emulated in fp32"


def _following(data: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the compute capability in ``data`` and is left out there, with ``sources`` of it."""
    numbers = re.fullmatch(r"(\d{1,3})\.(\d{1,3})", str(data.get("compute_capability")))
    capability = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)  # without one, that alone is complained of
    ampere, maxwell = capability >= (8, 0), capability >= (5, 0)
    follows = {
        "native_bf16": (ampere, _BF16 if ampere else _NO_BF16),
        "flash_attention": (ampere, _KERNELS.format("flash", "sm_80")),
        "efficient_attention": (maxwell, _KERNELS.format("memory-efficient", "sm_50")),
    }
    missing = {name: (has, source) for name, (has, source) in follows.items() if name not in data}
    given = data.get("sources", {})
    if not isinstance(given, Mapping):
        return {name: has for name, (has, _) in missing.items()}
    sources = {**{name: source for name, (_, source) in missing.items()}, **given}
    return {**{name: has for name, (has, _) in missing.items()}, "sources": sources}


class Gpu(Value):
    """One GPU. A figure that is not known is ``None``; every known figure of a bundled one has an entry in ``sources``.

    What the compute capability decides (bf16, the two attention kernels) follows from it where it is left out.
    """

    name: str
    title: str
    device_names: tuple[str, ...] = ()
    """How the driver names the GPU. GPUs of different memory can share a name: ask ``is_gpu``."""
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
    """Whether torch's memory-efficient kernel runs (5.0 and up)."""
    context_mib: int | None = Field(default=None, gt=0)
    """CUDA context and loaded kernels of a training process, outside torch's allocator."""
    seldom: bool = Field(default=False, exclude_if=lambda seldom: not seldom)
    """Another GPU of the same name was sold far more often: only its memory tells that this one is meant."""
    sources: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def read(cls, data: Mapping[str, Any], *, source: str) -> Self:
        return super().read({**data, **_following(data)}, source=source)

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

    def is_gpu(self, device_name: str, memory_bytes: int) -> bool:
        """Whether the device that the driver names so, with this total memory, is this GPU.

        True means that probes on it are ``measured``, not ``emulated``. The memory counts because the 8 and the 16 GB
        RTX 4060 Ti share one name; 5 % are left for what driver versions and torch subtract.
        """
        near = abs(memory_bytes - self.memory_bytes) <= self.memory_bytes * 5 // 100
        return device_name in self.device_names and near

    @property
    def base_precision(self) -> Literal["fp16", "bf16"]:
        """The 16-bit type that runs natively."""
        return "bf16" if self.native_bf16 else "fp16"


@cache
def _files() -> dict[str, Path]:
    return {path.stem: path for path in sorted((profiles_folder() / "gpus").glob("*.toml"))}


def gpu_names() -> list[str]:
    """The names of all profiles."""
    return sorted(_files())


@cache
def _profile(name: str) -> Gpu:
    path = _files()[name]
    return Gpu.read({"name": name, **read_toml(path)}, source=str(path))


def all_gpus() -> list[Gpu]:
    """Every profile, by name. Each file is read once in a process."""
    return [_profile(name) for name in gpu_names()]


@cache
def _listed() -> tuple[Listed, ...]:
    """What every profile is called: the beginning of its file, without the sources, which are most of it."""
    found = []
    for name, path in _files().items():
        head = tomllib.loads(path.read_text(encoding="utf-8").partition("\n[sources]")[0])
        called = (name, head["title"].partition(",")[0], *head.get("device_names", ()))
        found.append(Listed(name=name, memory_mib=head["memory_mib"], called=called, seldom=head.get("seldom", False)))
    return tuple(found)


def load_gpu(name: str) -> Gpu:
    """The same as :func:`find_gpu`."""
    return find_gpu(name)


def find_gpu(text: str) -> Gpu:
    """The GPU that ``text`` names.

    A profile's name, what people type for it (``RTX 3060``, ``3060 12gb``, ``4070 laptop``), what nvidia-smi prints, or the
    beginning of only one; a ``.toml`` file of one's own; or any NVIDIA GPU by its memory: ``24GiB``, ``24GiB:sm_86``.
    Raises ``UsageError`` that says what to type instead, for a name that several have, none has, or that is another maker's.
    """
    return look_up(text)[0]


def look_up(text: str) -> tuple[Gpu, str]:
    """:func:`find_gpu`, with what was assumed in words; empty when nothing was."""
    if text.endswith(".toml"):
        return Gpu.read({"name": Path(text).stem, **read_toml(Path(text))}, source=text), ""
    if (folded := text.strip().lower()) in gpu_names():
        return _profile(folded), ""
    if is_size(text) and (size := parse_gpu_size(text)) is not None:
        return _of_size(size)
    listed = _listed()
    meant = match(text, listed, elsewhere=_unlisted())
    if len(meant.found) == 1:
        return _profile(meant.found[0].name), _instead(text, meant)
    if not meant.found and (size := parse_gpu_size(text)) is not None:
        return _of_size(size)
    raise _not_found(text, meant, listed)


def _instead(text: str, meant: Match) -> str:
    """Which one was taken, where there are others of the same name."""
    if not meant.others:
        return ""
    (one,), others = meant.found, " and ".join(f"{other.name} ({other.gigabytes} GB)" for other in meant.others)
    return f"{text.strip()} is taken as {one.name} with {one.gigabytes} GB; there is also {others}"


def _of_size(size: Size) -> tuple[Gpu, str]:
    memory = f"{size.memory_bytes / GIB:.2f} GiB"
    sm = f"sm_{size.compute_capability.replace('.', '')}"
    family = CAPABILITIES[size.compute_capability]
    data = {
        "name": size.name,
        "title": f"an NVIDIA GPU of {memory}, {sm}{' assumed' if size.assumed else ''}",
        "memory_mib": size.memory_bytes // MIB,
        "compute_capability": size.compute_capability,
        "sources": {
            "memory_mib": f"as it was typed: {size.written}",
            "compute_capability": "assumed, as none was typed" if size.assumed else "as it was typed",
        },
    }
    gpu = Gpu.read(data, source=size.written)
    notes = [f"{size.written} is {memory}"] if size.written.lower().endswith("gb") else []
    notes += [f"{sm} ({family}, bf16 and flash attention) is assumed: write {size.written}:sm_75 for another"] * size.assumed
    return gpu, "; ".join([*notes, "its speed is not known, so that speeds are a wide range"])


def _not_found(text: str, meant: Match, listed: Sequence[Listed]) -> UsageError:
    shown, bare = repr(text.strip()[:60]), text.strip()
    memory = f"--gpu {bare}GiB" if bare.isdecimal() and len(bare) <= 3 and 1 <= int(bare) <= 300 else "for example --gpu 24GiB"
    ways = f"`budgetft gpus` lists all; or give the memory of any NVIDIA GPU, {memory}"
    if meant.found:
        return _ambiguous(shown, meant, typed(text).key, ways)
    if meant.of_other_memory:
        sizes = " or ".join(one.gigabytes for one in meant.of_other_memory)
        names = " or ".join(f"--gpu {one.name}" for one in meant.of_other_memory)
        return UsageError(f"{shown}: that GPU has {sizes} GB", hint=names)
    if not bare:
        return UsageError("--gpu names no GPU", hint=ways)
    if makers := other_makers(text):
        return UsageError(
            f"{shown}: {makers} are not supported; budgetft needs an NVIDIA GPU with CUDA",
            hint="plan for an NVIDIA GPU that you can rent or borrow, for example --gpu t4; `budgetft gpus` lists them",
        )
    if (known := _unlisted().get(typed(text).key)) is not None:
        return _without_profile(shown, *known)
    near = nearest_listed(text, listed)
    return UsageError(f"unknown GPU {shown}", hint=f"did you mean {near.name!r}? {ways}" if near else ways)


def _ambiguous(shown: str, meant: Match, key: str, ways: str) -> UsageError:
    found = sorted(meant.found, key=lambda one: (one.memory_mib, one.name))
    names, sizes = [one.name for one in found], [one.gigabytes for one in found]
    if all(key in one.keys for one in found) and len(set(sizes)) == len(sizes):
        return UsageError(f"{shown} is sold with {_or(sizes)} GB", hint=_or([f"--gpu {name}" for name in names]))
    shortest = sorted(names, key=lambda name: (len(name), name))
    few = _or(names) if len(names) <= 8 else f"{len(names)} GPUs, among them {', '.join(sorted(shortest[:8]))}"
    return UsageError(f"{shown} can be {few}", hint=f"type more of it, for example --gpu {shortest[0]}; {ways}")


def _or(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


@cache
def _unlisted() -> dict[str, tuple[float, str]]:
    """GPUs of NVIDIA that have no profile, by key: memory in GB and compute capability."""
    found = read_toml(profiles_folder() / "unlisted_gpus.toml")["gpu"]
    return {typed(name).key: (float(memory), capability) for name, (memory, capability) in found.items()}


def _without_profile(shown: str, gigabytes: float, capability: str) -> UsageError:
    sm = f"sm_{capability.replace('.', '')}"
    if capability not in CAPABILITIES:
        return UsageError(
            f"{shown} is too old ({sm}): no current torch build has kernels for it",
            hint="GTX 10, P100 and all later NVIDIA GPUs work; `budgetft gpus` lists them",
        )
    return UsageError(
        f"{shown} ({CAPABILITIES[capability]}, {sm}) has no profile", hint=f"give its memory: --gpu {gigabytes:g}GiB:{sm}"
    )


def gpu_of_device(device_name: str) -> Gpu | None:
    """The bundled GPU that the driver calls ``device_name``, if there is one; of several of one name, the first."""
    return next((gpu for gpu in all_gpus() if device_name in gpu.device_names), None)


def gpu_at_hand(device_name: str, memory_bytes: int) -> Gpu | None:
    """The bundled GPU that the driver names so, with this total memory."""
    return next((gpu for gpu in all_gpus() if gpu.is_gpu(device_name, memory_bytes)), None)
