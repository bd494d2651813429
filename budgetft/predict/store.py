"""Memory models on disk: those that ship with the package, then the user's cache, so that nothing is traced twice."""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from budgetft.cache import cache_folder
from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.model import Model
from budgetft.plan import config_fingerprint, write_text_atomically
from budgetft.predict.memory_model import MEMORY_MODEL_VERSION, Layout, MemoryModel
from budgetft.predict.recording import Recording, read_recording, write_recording
from budgetft.profiles import profiles_folder
from budgetft.value import read_json
from budgetft.workload import Shape

Stored = TypeVar("Stored", MemoryModel, Recording)


def memory_model_key(
    model: Model, contract: Contract, knobs: Knobs, shape: Shape, gpu: Gpu, layouts: tuple[Layout, ...]
) -> str:
    """SHA-256 of all that a memory model depends on but the software: what is traced, and the kernels of the GPU."""
    # Absent at their defaults, and with the first name of a memory model, as in the keys of what ships.
    newer = knobs.model_dump(include={"optimizer", "offload", "loss_chunk", "vision_group", "fp32_blocks"})
    facts = {
        "law": MEMORY_MODEL_VERSION,
        "model": config_fingerprint(model),
        "contract": _adapters(contract) | {"rank": contract.rank},
        "knobs": knobs.model_dump(include={"loss", "vision", "attention", "lora", "pointwise", "base_precision"})
        | {name: value for name, value in newer.items() if value != Knobs.model_fields[name].default},
        "shape": shape.model_dump(exclude={"frames"}),  # slices of a video cost what images do
        "kernels": [gpu.flash_attention, gpu.efficient_attention],
        "layouts": layouts,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def recording_key(model: Model, contract: Contract, knobs: Knobs, gpu: Gpu) -> str:
    """SHA-256 of all that a recording depends on but the software: no rank, no shape, no sizes of chunks and groups."""
    facts = {
        "law": MEMORY_MODEL_VERSION,
        "model": config_fingerprint(model),
        "contract": _adapters(contract),
        "knobs": knobs.model_dump(include={"loss", "vision", "attention", "lora", "pointwise", "base_precision", "offload"}),
        "kernels": [gpu.flash_attention, gpu.efficient_attention],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _adapters(contract: Contract) -> dict[str, Any]:
    """What a trace depends on of how adapters are made, but for the rank: which are dropped does not count, nor how many."""
    facts = contract.model_dump(include={"targets", "lora_dropout", "use_dora"})
    return facts | ({"lora_dropout": "any, in one kernel"} if contract.lora_dropout else {})


def software() -> str:
    """What is traced here, as it stands in a memory model's file name: ``torch-2.14.1_transformers-5.23.0_peft-0.21.2``."""
    return _named(version)


@cache
def _named(version_of: Callable[[str], str]) -> str:
    return "_".join(f"{name}-{version_of(name).split('+')[0]}" for name in ("torch", "transformers", "peft"))


def find_memory_model(key: str) -> MemoryModel | None:
    """The memory model stored under ``key`` for this software; a damaged file counts as none."""
    return next(filter(None, (_read(folder / f"{key}_{software()}.json") for folder in _folders())), None)


def find_foreign_memory_model(key: str) -> tuple[MemoryModel, str] | None:
    """A memory model stored under ``key`` for other software, the newest, and that software in words."""
    return _newest(key, ".json", _read)


def find_recording(key: str) -> Recording | None:
    """The recording stored under ``key`` for this software; a damaged file counts as none."""
    return next(filter(None, (read_recording(folder / f"{key}_{software()}.json.gz") for folder in _folders())), None)


def has_recording(key: str) -> bool:
    """Whether there is a recording under ``key``, of this software or another; it is not read."""
    return any(any(folder.glob(f"{key}_*.json.gz")) for folder in _folders())


def find_foreign_recording(key: str) -> tuple[Recording, str] | None:
    """As :func:`find_foreign_memory_model`."""
    return _newest(key, ".json.gz", read_recording)


def _newest(key: str, ending: str, read: Callable[[Path], Stored | None]) -> tuple[Stored, str] | None:
    paths = [path for folder in _folders() for path in folder.glob(f"{key}_*{ending}")]
    for path in sorted(paths, key=_release, reverse=True):
        if (found := read(path)) is not None:
            words = path.name.removeprefix(f"{key}_").removesuffix(ending)
            return found, words.replace("-", " ").replace("_", ", ")
    return None


def _folders() -> tuple[Path, ...]:
    """What ships, then what was traced here; the last is where versions before 0.2 kept theirs."""
    return profiles_folder() / "memory_models", cache_folder() / "memory_models", cache_folder() / "laws"


def _release(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name.partition("_")[2])]


def _read(path: Path) -> MemoryModel | None:
    try:
        return MemoryModel.read(read_json(path), source=str(path)) if path.is_file() else None
    except UsageError:
        return None


def keep_memory_model(key: str, memory_model: MemoryModel, folder: Path | None = None) -> None:
    """Store ``memory_model``, traced here, for next time; a cache that cannot be written is no reason to fail."""
    try:
        write_text_atomically(
            (folder or cache_folder() / "memory_models") / f"{key}_{software()}.json", memory_model.model_dump_json() + "\n"
        )
    except UsageError:
        if folder is not None:
            raise


def keep_recording(key: str, recording: Recording) -> None:
    """As :func:`keep_memory_model`."""
    folder = cache_folder() / "memory_models"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_recording(recording, folder / f"{key}_{software()}.json.gz")
