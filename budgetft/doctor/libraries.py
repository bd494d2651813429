"""CUDA libraries that are not torch's own: on the library path, in memory, or installed for several CUDA versions."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budgetft.doctor.finding import Finding

_CUDA = ("libcudnn", "libnccl", "libcublas", "libcudart", "libnvrtc")


def check_library_path(environment: Mapping[str, str]) -> list[Finding]:
    """Folders of LD_LIBRARY_PATH that hold CUDA libraries.

    A warning: builds of torch linked with RUNPATH take them before their own, those with RPATH (2.14.1) do not. What a
    process really loaded is for ``check_mapped``.
    """
    folders = [folder for folder in environment.get("LD_LIBRARY_PATH", "").split(":") if folder]
    findings, clean = [], [folder for folder in folders if not _cuda_libraries(folder)]
    for folder in folders:
        names = _cuda_libraries(folder)
        if names:
            fix = f"export LD_LIBRARY_PATH={':'.join(clean)}" if clean else "unset LD_LIBRARY_PATH"
            text = f"LD_LIBRARY_PATH holds {folder} with {', '.join(names)}: they can displace torch's own"
            findings.append(Finding(kind="libraries", level="warning", text=text, fix=fix))
    preload = environment.get("LD_PRELOAD", "").strip()
    if preload:
        text = f"LD_PRELOAD puts {preload} into every process"
        findings.append(Finding(kind="libraries", level="warning", text=text, fix="unset LD_PRELOAD"))
    return findings


def check_modules(environment: Mapping[str, str]) -> list[Finding]:
    """Environment modules of a cluster that bring CUDA, its libraries or another Python into every process."""
    loaded = [name for name in environment.get("LOADEDMODULES", "").split(":") if name]
    named = [name for name in loaded if re.search(r"cuda|cudnn|nccl|python|conda|torch", name, flags=re.IGNORECASE)]
    if not named:
        return []
    text = f"loaded modules bring software of their own: {', '.join(named)}"
    return [Finding(kind="libraries", level="warning", text=text, fix=f"module unload {' '.join(named)}")]


def _cuda_libraries(folder: str) -> list[str]:
    try:
        names = {path.name.split(".so")[0] for path in Path(folder).iterdir() if ".so" in path.name}
    except OSError:  # a folder that is not there does no harm
        return []
    return sorted(name for name in names if name.startswith(_CUDA))


def check_mapped(mapped: Sequence[str], site: Sequence[str]) -> list[Finding]:
    """CUDA libraries in the memory of a process that imported torch, but not from this environment."""
    # libcuda.so is the driver's and belongs to the system.
    foreign = [
        path
        for path in mapped
        if Path(path).name.startswith(_CUDA) and not any(Path(path).is_relative_to(folder) for folder in site)
    ]
    if not foreign:
        return [Finding(kind="libraries", level="ok", text=f"{len(mapped)} CUDA libraries in use, all of this environment")]
    text = f"torch runs with libraries of another installation: {', '.join(foreign)}"
    return [Finding(kind="libraries", level="problem", text=text, fix="unset LD_LIBRARY_PATH LD_PRELOAD")]


def check_cuda_packages(copies: Mapping[str, Any], torch_cuda: str | None) -> list[Finding]:
    """CUDA packages of another major version than torch's, side by side with its own: ``nvidia-nccl-cu12`` beside cu13."""
    if torch_cuda is None:
        return []
    own = torch_cuda.split(".")[0]
    strange = sorted(name for name in copies if (match := re.search(r"^nvidia-.*-cu(\d+)$", name)) and match[1] != own)
    if not strange:
        return []
    # Both unpack into the same folders under nvidia/, so removing one damages the other.
    text = f"packages of another CUDA than torch's {torch_cuda} are installed: {', '.join(strange)}"
    fix = f"pip uninstall -y {' '.join(strange)} && pip install --force-reinstall torch"
    return [Finding(kind="libraries", level="warning", text=text, fix=fix)]
