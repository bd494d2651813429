"""The machine around the GPU: memory, shared memory, page locking, and the disk of the caches."""

import resource
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile

from budgetft.cache import folder_bytes, left_behind
from budgetft.doctor.finding import Finding
from budgetft.units import GIB, MIB, format_gib

RAM_BYTES, SHARED_BYTES, DISK_BYTES = 12 * GIB, 256 * MIB, 10 * GIB
"""Below these a run of a 3-billion-parameter model is at risk: its weights pass through host memory once."""


def check_memory(meminfo: Path = Path("/proc/meminfo"), limits: tuple[Path, ...] | None = None) -> list[Finding]:
    """Available memory, and the limit of the control group (a container or a batch job), whichever is less."""
    available = _available_bytes(meminfo)
    if available is None:
        return []
    limit = min((found for path in limits or _CONTROL_GROUP if (found := _number(path)) is not None), default=None)
    where = "" if limit is None or limit > available else " (limit of this job or container)"
    usable = available if limit is None else min(limit, available)
    text = f"host memory: {format_gib(usable)} usable{where}"
    if usable >= RAM_BYTES:
        return [Finding(kind="host", level="ok", text=text)]
    text += f"; loading a 3-billion-parameter model wants {format_gib(RAM_BYTES)}: the system may kill the run (signal 9)"
    return [Finding(kind="host", level="warning", text=text, fix="ask the scheduler for more memory (srun --mem=32G)")]


_CONTROL_GROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def check_shared_memory(folder: Path = Path("/dev/shm"), free_bytes: int | None = None) -> list[Finding]:
    """Space in ``folder`` (asked unless given): data loader workers hand batches over there."""
    try:
        free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    except OSError:
        return [Finding(kind="host", level="warning", text=f"{folder} is missing", fix="run data loading without workers")]
    if free >= SHARED_BYTES:
        return []
    text = (
        f"{folder} has {free / MIB:.0f} MiB free of the {SHARED_BYTES / MIB:.0f} MiB that loader workers may need: bus errors"
    )
    return [Finding(kind="host", level="problem", text=text, fix="start the container with --shm-size=2g (or --ipc=host)")]


def check_locking(limit_bytes: int | None = None) -> list[Finding]:
    """How much memory may be page-locked for fast copies to the GPU."""
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] if limit_bytes is None else limit_bytes
    if limit == resource.RLIM_INFINITY or limit >= 64 * MIB:
        return []
    text = f"only {limit / 1024:.0f} KiB may be page-locked: offloading to host memory can be refused"
    return [Finding(kind="host", level="note", text=text, fix="ulimit -l unlimited, if the machine allows it")]


def check_caches(folders: Mapping[str, Path]) -> list[Finding]:
    """Whether each cache (variable that moves it -> folder) can be written and has room."""
    findings = []
    for variable, folder in folders.items():
        place = next((each for each in (folder, *folder.parents) if each.exists()), Path("/"))
        problem = _write_problem(place)
        if problem is not None:
            text = f"{folder} cannot be written: {problem}"
            findings.append(Finding(kind="host", level="problem", text=text, fix=f"export {variable}=/a/folder/you/can/write"))
        elif (free := shutil.disk_usage(place).free) < DISK_BYTES:
            text = f"{folder} has {format_gib(free)} of disk left; a 3-billion-parameter model takes 7 GiB"
            findings.append(Finding(kind="host", level="warning", text=text, fix=f"export {variable}=/a/folder/with/room"))
    return findings or [Finding(kind="host", level="ok", text="caches can be written and have room")]


def show_cache(folder: Path, environment: Mapping[str, str]) -> list[Finding]:
    """Where budgetft keeps its own files, and what they take; a note where they are not where XDG_CACHE_HOME wants them."""
    taken = f"{format_gib(folder_bytes(folder))}" if folder.is_dir() else "nothing yet"
    told = [Finding(kind="host", level="ok", text=f"cache: {folder}, {taken} (BUDGETFT_CACHE moves it)")]
    if places := left_behind(environment):
        old, new = (shlex.quote(str(place)) for place in places)
        text = "measurements from before XDG_CACHE_HOME was looked at are in that folder, so it stays in use"
        told.append(Finding(kind="host", level="note", text=text, fix=f"mkdir -p {new} && mv {old}/* {new}/"))
    return told


def cache_folders(environment: Mapping[str, str], budgetft_cache: Path) -> dict[str, Path]:
    """The caches of budgetft, of the hub and of torch's compiled kernels, as the variables move them."""
    home = Path(environment.get("HOME") or Path.home())
    caches = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(environment.get("HF_HOME") or caches / "huggingface")
    return {
        "BUDGETFT_CACHE": budgetft_cache,
        "HF_HOME": hub,
        "TRITON_CACHE_DIR": Path(environment.get("TRITON_CACHE_DIR") or home / ".triton"),
    }


def _available_bytes(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    found = next((line.split() for line in lines if line.startswith("MemAvailable:")), None)
    return int(found[1]) * 1024 if found else None


def _write_problem(folder: Path) -> str | None:
    """Why no file can be made in ``folder``: tried, because permissions do not tell of read-only file systems and quotas."""
    try:
        with TemporaryFile(dir=folder) as file:
            file.write(b"budgetft doctor")
    except OSError as error:
        return error.strerror
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
