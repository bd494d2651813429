"""Laws on disk: those that ship with the package, then the user's cache, so that nothing is traced twice."""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.model import Model
from budgetft.plan import config_fingerprint, write_text_atomically
from budgetft.predict.law import LAW_VERSION, Law, Layout
from budgetft.profiles import profiles_folder
from budgetft.value import read_json
from budgetft.workload import Shape


def cache_folder() -> Path:
    """Where studies, ledgers, laws and the sample live unless told otherwise: ``$BUDGETFT_CACHE`` or the user's cache."""
    return Path(os.environ.get("BUDGETFT_CACHE") or Path.home() / ".cache" / "budgetft")


def law_key(model: Model, contract: Contract, knobs: Knobs, shape: Shape, gpu: Gpu, layouts: tuple[Layout, ...]) -> str:
    """SHA-256 of all that a law depends on: what is traced, the kernels of the card, and the software that is traced."""
    newer = knobs.model_dump(include={"optimizer", "offload"})  # absent at their defaults, as in the laws from before them
    facts = {
        "law": LAW_VERSION,
        "model": config_fingerprint(model),
        "contract": contract.model_dump(include={"rank", "targets", "lora_dropout"}),
        "knobs": knobs.model_dump(include={"loss", "vision", "attention", "lora", "pointwise", "base_precision"})
        | {name: value for name, value in newer.items() if value != Knobs.model_fields[name].default},
        "shape": shape.model_dump(exclude={"frames"}),  # slices of a video cost what images do
        "kernels": [gpu.flash_attention, gpu.efficient_attention],
        "layouts": layouts,
        "software": {name: version(name).split("+")[0] for name in ("torch", "transformers", "peft")},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def find_law(key: str) -> Law | None:
    """The law stored under ``key``; a damaged file counts as none."""
    for folder in (profiles_folder() / "laws", cache_folder() / "laws"):
        path = folder / f"{key}.json"
        if path.is_file():
            try:
                return Law.read(read_json(path), source=str(path))
            except UsageError:
                continue
    return None


def keep_law(key: str, law: Law, folder: Path | None = None) -> None:
    """Store ``law`` for next time; a cache that cannot be written is no reason to fail."""
    try:
        write_text_atomically((folder or cache_folder() / "laws") / f"{key}.json", law.model_dump_json() + "\n")
    except UsageError:
        if folder is not None:
            raise
