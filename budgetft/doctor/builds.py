"""Which torch build carries the kernels of a GPU: chosen by compute capability, never by the driver's CUDA version."""

import re
from collections.abc import Iterable

from pydantic import Field

from budgetft.errors import BudgetftError
from budgetft.profiles import profiles_folder
from budgetft.value import Value, read_toml

Capability = tuple[int, int]


class Build(Value):
    """A torch wheel with its torchvision."""

    torch: str
    torchvision: str
    cuda: str
    index: str | None = None
    """The wheel index; None is PyPI."""
    architectures: tuple[str, ...] = Field(min_length=1)
    minimum_driver: str
    source: str

    @property
    def requirements(self) -> tuple[str, str]:
        """The pins; a build from an index of its own is named with its CUDA variant, so that no other can stand in."""
        local = "" if self.index is None else f"+cu{self.cuda.replace('.', '')}"
        return f"torch=={self.torch}{local}", f"torchvision=={self.torchvision}{local}"

    @property
    def name(self) -> str:
        return f"torch {self.torch} with CUDA {self.cuda}"

    @property
    def install_line(self) -> str:
        index = "" if self.index is None else f" --index-url {self.index}"
        return f"pip install {' '.join(self.requirements)}{index}"


def load_builds() -> list[Build]:
    """The known builds, best first."""
    path = profiles_folder() / "torch_builds.toml"
    rows = read_toml(path)["build"]
    return [Build.read(row, source=str(path)) for row in rows]


def carries(architectures: Iterable[str], capability: Capability) -> bool:
    """Whether a build for ``architectures`` (torch's names: ``sm_80``, ``compute_90``) has code for ``capability``.

    Machine code runs on later minor versions of its major one; ``compute_`` entries are compiled for any later GPU
    (CUDA C++ Programming Guide, binary and PTX compatibility). ``sm_90a`` runs on 9.0 alone.
    """
    major, minor = capability
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name)
        if match is None:
            continue
        has = (int(match[2]), int(match[3]))
        if match[4]:
            fits = has == capability
        elif match[1] == "compute":
            fits = has <= capability
        else:
            fits = has[0] == major and has[1] <= minor
        if fits:
            return True
    return False


def choose_build(capability: Capability, driver: str | None = None) -> Build:
    """The first build for ``capability`` that ``driver`` (any, when None) can load; ``BudgetftError`` when there is none."""
    able = [build for build in load_builds() if carries(build.architectures, capability)]
    name = f"{capability[0]}.{capability[1]}"
    if not able:
        raise BudgetftError(f"no torch build that transformers accepts has kernels for compute capability {name}")
    for build in able:
        if driver is None or numbers(driver) >= numbers(build.minimum_driver):
            return build
    oldest = min(able, key=lambda build: numbers(build.minimum_driver))
    raise BudgetftError(
        f"driver {driver} is older than any build for compute capability {name} needs ({oldest.minimum_driver})",
        hint=f"have the driver updated to {able[0].minimum_driver} or newer",
    )


def other_builds(capability: Capability, best: Build) -> list[Build]:
    """The other builds with kernels for ``capability``, the next best first."""
    return [build for build in load_builds() if build != best and carries(build.architectures, capability)]


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to be compared: ``525.60.13`` is (525, 60, 13)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
