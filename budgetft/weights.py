"""The base weights of a model: where they lie, and what they are, so that a later step can tell whether they are the same.

A hub id may name a revision after an ``@``: ``Qwen/Qwen2.5-VL-3B-Instruct@66285546d2b8``.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import Field

from budgetft.errors import UsageError
from budgetft.units import MIB
from budgetft.value import Value, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEADER_BYTES = 100_000_000
"""Longest header that safetensors itself accepts."""
WHOLE_BYTES = 256 * MIB
"""Checkpoints up to this size are read whole for their fingerprint."""
SAMPLES, SAMPLE_BYTES = 4, 16 * 1024
"""Of each tensor of a larger one: so many blocks of so many bytes, evenly from its first to its last byte."""
COMMIT = re.compile(r"[0-9a-f]{40}")
MERGED_FILE = "merged.json"
"""In a merged checkpoint: what it was made of."""
NOT_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot")
"""Never fetched: the same weights in formats that are not read, or other things."""


class BaseWeights(Value):
    """What base weights are. Those of one ``fingerprint`` hold the same numbers, wherever they lie."""

    name: str
    """The folder or hub id that was given, without a revision."""
    revision: str | None = Field(default=None, exclude_if=lambda revision: revision is None)
    """The hub's commit."""
    fingerprint: str | None = Field(default=None, exclude_if=lambda fingerprint: fingerprint is None)
    """SHA-256 of every tensor's name, type, shape and values, those of large ones sampled; None before they are here."""

    def describe(self) -> str:
        """In words, for a refusal that names two of them."""
        at = f"@{self.revision[:12]}" if self.revision else ""
        return f"{self.name + at!r}" + (f" (fingerprint {self.fingerprint[:12]})" if self.fingerprint else "")

    def is_other(self, found: "BaseWeights") -> bool:
        """Whether ``found`` is known to be something else: by content, else by the hub's commit."""
        if self.fingerprint and found.fingerprint:
            return self.fingerprint != found.fingerprint
        known = self.revision and found.revision and self.name == found.name
        return bool(known) and self.revision != found.revision


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Base weights on this machine."""

    folder: Path
    base: BaseWeights


def split_revision(name: str) -> tuple[str, str | None]:
    """A hub id and the revision after its ``@``; folders have none."""
    if not is_hub_id(name) or "@" not in name:
        return name, None
    bare, _, revision = name.partition("@")
    return bare, revision or None


def is_hub_id(name: str) -> bool:
    """Whether ``name`` can only be a hub id: it is no folder here, and does not look like one."""
    return "/" in name and not name.startswith((".", "/", "~")) and not os.path.isdir(name)


def with_revision(name: str, revision: str | None) -> str:
    """``name`` at ``revision``. Raises ``UsageError`` where ``name`` is no hub id, or has another revision already."""
    if revision is None:
        return name
    bare, own = split_revision(name)
    if not is_hub_id(name):
        raise UsageError(f"--revision {revision} is of a hub id, and {name!r} is none", hint="leave --revision out")
    if own not in (None, revision):
        raise UsageError(f"--revision {revision}: {name!r} names another", hint="give one of them")
    if not re.fullmatch(r"[\w./-]+", revision):
        raise UsageError(f"--revision {revision!r} is no name of a branch, a tag or a commit")
    return f"{bare}@{revision}"


def checkpoint_folder(weights: str) -> Path:
    """The folder with the checkpoint ``weights``: a folder already, or a hub id's files, fetched when they are not here.

    Raises ``UsageError`` when there are none.
    """
    if os.path.isdir(weights):
        return Path(weights)
    if not is_hub_id(weights):
        raise UsageError(f"{weights} is not a folder with a checkpoint", hint="give --weights FOLDER or a hub id")
    return fetched(weights, ignore=NOT_WEIGHTS)


def fetched(weights: str, *, only: tuple[str, ...] | None = None, ignore: tuple[str, ...] | None = None) -> Path:
    """The hub's files of ``weights``, a hub id, at its revision. Raises ``UsageError`` when they cannot be had."""
    from huggingface_hub import snapshot_download

    name, revision = split_revision(weights)
    patterns: dict[str, Any] = {"allow_patterns": only and list(only), "ignore_patterns": ignore and list(ignore)}
    try:
        return Path(snapshot_download(name, revision=revision, **patterns))
    except Exception as error:  # the hub's client raises many kinds, for a missing network too
        raise UsageError(
            f"cannot fetch {weights!r}: {type(error).__name__}", hint="give --weights FOLDER with the checkpoint"
        ) from None


def commit_of(folder: Path) -> str | None:
    """The hub's commit that a folder of its cache is of; None for any other folder."""
    return folder.name if COMMIT.fullmatch(folder.name) and folder.parent.name == "snapshots" else None


def open_checkpoint(weights: str) -> Checkpoint:
    """``weights``, a folder or hub id, on this machine, with its fingerprint. Raises ``UsageError`` when it is not whole."""
    return _opened(weights, checkpoint_folder(weights))


def _opened(weights: str, folder: Path) -> Checkpoint:
    name = split_revision(weights)[0]
    base = BaseWeights(name=name, revision=commit_of(folder), fingerprint=fingerprint(folder))
    return Checkpoint(folder=folder, base=base)


def base_here(weights: str | None) -> Checkpoint | None:
    """The same where the weights are on this machine already; None where nothing is, or nothing was named."""
    if weights is None:
        return None
    if os.path.isdir(weights):
        return open_checkpoint(weights) if weight_files(Path(weights)) else None
    try:
        folder = _cached(weights)
        return None if folder is None or not weight_files(folder) else _opened(weights, folder)
    except UsageError:
        return None


def _cached(weights: str) -> Path | None:
    name, revision = split_revision(weights)
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    if not (Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{name.replace('/', '--')}").is_dir():
        return None  # told without the hub's client, which takes half a second to load
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception:  # not here
        return None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, as transformers would choose them: one file, those of the index, or all."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(index.values())) if isinstance(index, dict) else []
        outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
        if outside or not names:
            raise UsageError(f"{folder / INDEX} is no index of safetensors files beside it")
        return [folder / name for name in names]
    return sorted(folder.glob("*.safetensors"))


def fingerprint(folder: Path) -> str:
    """SHA-256 of the tensors of the checkpoint in ``folder``: how they are dealt to files does not matter.

    A tensor counts with its name, type and shape, and with its bytes: all of them in a checkpoint of up to ``WHOLE_BYTES``,
    else ``SAMPLES`` blocks. A change of fewer bytes than lie between two blocks can go unseen; other weights cannot.
    Raises ``UsageError`` for a file that is missing, cut or not to be read.
    """
    files = weight_files(folder)
    if not files:
        raise UsageError(f"{folder} holds no *.safetensors", hint="give a folder that holds config.json and *.safetensors")
    try:
        whole = sum(path.stat().st_size for path in files) <= WHOLE_BYTES
        found = [line for path in files for line in _tensors(path, whole)]
    except OSError as error:
        raise UsageError(f"cannot read the weights in {folder}: {error.strerror}") from None
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()


def _tensors(path: Path, whole: bool) -> list[str]:
    """A line for each tensor of a file."""
    lines = []
    with path.open("rb") as file:
        start, described = read_header(path, file)
        size = path.stat().st_size
        for name, told in described.items():
            first, end = (start + offset for offset in told["data_offsets"])
            if end > size:
                raise UsageError(f"{path} is cut off: {name} ends at byte {end}, the file at {size}")
            digest = _digest(file, first, end, whole)
            lines.append(json.dumps([name, told["dtype"], told["shape"], digest]))
    return lines


def file_sha256(path: Path) -> str:
    """SHA-256 of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_header(path: Path, file: IO[bytes]) -> tuple[int, dict[str, Any]]:
    """(where the data start, what the header says of each tensor). Raises ``UsageError``."""
    try:
        size = int.from_bytes(file.read(8), "little")
        if not 0 < size <= HEADER_BYTES:
            raise ValueError("its header has no sensible length")
        described = {name: told for name, told in json.loads(file.read(size)).items() if name != "__metadata__"}
        for told in described.values():
            first, end = told["data_offsets"]
            if not (isinstance(told["dtype"], str) and isinstance(told["shape"], list) and 0 <= first <= end):
                raise ValueError("an entry of its header makes no sense")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a whole safetensors file: {str(error)[:200]}") from None
    return 8 + size, described


def _digest(file: IO[bytes], first: int, end: int, whole: bool) -> str:
    digest, size = hashlib.sha256(), end - first
    if whole or size <= SAMPLES * SAMPLE_BYTES:
        places = [(first, size)]
    else:
        step = (size - SAMPLE_BYTES) / (SAMPLES - 1)
        places = [(first + round(step * number), SAMPLE_BYTES) for number in range(SAMPLES)]
    for place, length in places:
        file.seek(place)
        while length > 0:
            piece = file.read(min(length, 16 * MIB))
            if not piece:
                break
            digest.update(piece)
            length -= len(piece)
    return digest.hexdigest()


def refuse_other(
    expected: BaseWeights | None, found: BaseWeights | None, what: str, *, hint: str, folder: Path | None = None
) -> None:
    """Raise ``UsageError``, which names both, when ``found`` is not what ``what`` says it is of: ``expected``.

    ``folder``: where the found ones lie, so that a merged checkpoint is called one.
    """
    if expected is None or found is None or not expected.is_other(found):
        return
    merged = folder is not None and (folder / MERGED_FILE).is_file()
    note = ", a checkpoint that an adapter was merged into already" if merged else ""
    raise UsageError(f"{what} {expected.describe()}; the weights given are {found.describe()}{note}", hint=hint)
