"""Vision features on disk: what the frozen tower makes of each image, computed once and found by the image's content.

A cache folder holds ``cache.json``, which says what its features depend on besides the images, and safetensors files with
one tensor per image, named by the SHA-256 of the image file, or per temporal slice of a video, by that of its frames' own.
Such a file appears when it is whole, so a killed run leaves nothing that could be taken for finished.

Shapes: v visual tokens of an image, f numbers of a token (:attr:`budgetft.model.Model.feature_width`).
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from budgetft.contract import Contract
from budgetft.data.examples import Example
from budgetft.data.media.images import image_header, resized_image_size
from budgetft.data.media.limits import limits_of
from budgetft.data.problems import problem_report
from budgetft.data.shapes import counts
from budgetft.data.visuals import Block, blocks_of
from budgetft.errors import BudgetftError, UsageError
from budgetft.knobs import Precision
from budgetft.model import Model
from budgetft.plan import write_text_atomically
from budgetft.units import format_gib
from budgetft.value import Value, read_json

if TYPE_CHECKING:
    import torch

KEY_FILE = "cache.json"
FP32_BLOCKS_FILE = "fp32_blocks.json"
"""Names of the tower's blocks that computed in fp32 because they overflow fp16; no file: none."""
_FORMERLY = "islands.json"  # before 0.2
SHARD_BYTES = 256 * 2**20
"""Features are written when they come to so much: all that a kill can lose."""
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
_DTYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
_CONTENT_NAME = re.compile(r"[0-9a-f]{24}")
_SHOWN = "shown 1"
"""Said with the content of a file that earlier versions showed otherwise: what they kept of it is not used."""
_WORKERS = 8


class FeatureKey(Value):
    """All that features depend on besides the image."""

    version: Literal[1] = 1
    tower: str
    """Fingerprint of the vision tower's configuration and of how pixels are normalised."""
    weights: str
    """Fingerprint of the tower's weights."""
    min_pixels: int
    max_pixels: int
    precision: Precision
    width: int

    def differences(self, other: "FeatureKey") -> list[str]:
        """In what ``self``, found, is not what ``other`` wants."""
        told = {"tower": "it is of another vision tower", "weights": "it is of other weights"}
        return [
            told.get(name) or f"its {name} is {getattr(self, name)}, not {getattr(other, name)}"
            for name in type(self).model_fields
            if getattr(self, name) != getattr(other, name)
        ]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image of a dataset, or one temporal slice of a video, and its size as the model sees it."""

    block: Block
    """Its files."""
    digest: str
    """SHA-256 of the file; where earlier versions showed it otherwise, of that and a mark; of several files, that of their
    digests in hexadecimal, one after another."""
    width: int
    height: int
    tokens: int | None = None
    """Visual tokens, where they do not follow from the size."""

    def visual_tokens(self, pixel_step: int) -> int:
        """Rows of its features."""
        if self.tokens is not None:
            return self.tokens
        return (self.width // pixel_step) * (self.height // pixel_step)


def find_pictures(examples: Iterable[Example], model: Model, contract: Contract) -> list[Picture]:
    """Every image and slice that ``examples`` name, once, in their order; each file is read and hashed.

    Raises one ``UsageError`` for all that cannot be read, or that were changed since their dataset was written.
    """
    blocks = list(dict.fromkeys(block for example in examples for block in blocks_of(example, model)))
    paths = list(dict.fromkeys(path for block in blocks for path in block))

    def find(path: str) -> Picture | UsageError:
        try:
            return _picture(path, model, contract)
        except UsageError as error:
            return error

    with ThreadPoolExecutor(_WORKERS) as pool:
        found = dict(zip(paths, pool.map(find, paths), strict=True))
    problems = [each.message for each in found.values() if isinstance(each, UsageError)]
    if problems:
        raise problem_report("cannot use the images", problems, hint="write the dataset again")
    files = {path: each for path, each in found.items() if isinstance(each, Picture)}
    return [_joined(block, [files[path] for path in block]) for block in blocks]


def _joined(block: Block, frames: list[Picture]) -> Picture:
    if len(frames) == 1:
        return frames[0]
    digest = hashlib.sha256("".join(frame.digest for frame in frames).encode()).hexdigest()
    return replace(frames[0], block=block, digest=digest)


def _picture(path: str, model: Model, contract: Contract) -> Picture:
    try:
        with Path(path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read image {path}: {error.strerror}") from None
    stem = Path(path).name.split(".")[0]
    if _CONTENT_NAME.fullmatch(stem) and not digest.startswith(stem):
        raise UsageError(f"image {path} was changed since the dataset was written")
    header = image_header(path)
    if not header.as_ever:
        digest = hashlib.sha256(f"{digest} {_SHOWN}".encode()).hexdigest()
    width, height = resized_image_size(path, (header.width, header.height), model, contract)
    tokens = None if model.packed else (counts([(width, height)], model)[0] or (0,))[0]
    own = limits_of(path).name
    if own:  # resized in its own way
        digest = hashlib.sha256(f"{digest}{own}".encode()).hexdigest()
    return Picture(block=(path,), digest=digest, width=width, height=height, tokens=tokens)


def feature_bytes(pictures: Iterable[Picture], model: Model, precision: Precision) -> int:
    """Bytes on disk of the features of ``pictures``, equal images once."""
    tokens = {each.digest: each.visual_tokens(model.pixel_step) for each in pictures}
    return sum(tokens.values()) * model.feature_width * BYTES[precision]


def check_free_space(folder: Path, wanted_bytes: int) -> None:
    """Raise ``BudgetftError`` when the disk of ``folder`` has less than ``wanted_bytes`` free."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if wanted_bytes > free:
        raise BudgetftError(
            f"the features take {format_gib(wanted_bytes)}; the disk of {folder} has {format_gib(free)} free",
            hint="choose a folder on another disk, lower --max-pixels, or plan without cached vision",
        )


class FeatureCache:
    """The features in a folder. ``folder`` must hold those of ``key``.

    Raises ``UsageError`` when there is no cache, when it is of something else (each difference is named), and when a file
    is damaged, unless ``on_damaged`` is given: it is told, and the file's images count as not there.
    """

    def __init__(
        self, folder: Path, key: FeatureKey, *, on_damaged: Callable[[Path], None] | None = None, ignore: Sequence[str] = ()
    ) -> None:
        self.folder = folder
        self.key = key
        if not (folder / KEY_FILE).is_file():
            raise UsageError(f"{folder} holds no feature cache", hint="make one: budgetft data cache")
        found = FeatureKey.read(read_json(folder / KEY_FILE), source=str(folder / KEY_FILE))
        wanted = key.replace(**{name: getattr(found, name) for name in ignore})
        if found != wanted:
            raise UsageError(
                f"the feature cache {folder} cannot be used: " + "; ".join(found.differences(wanted)),
                hint="choose another folder; a cache is of one model, one --max-pixels and one precision",
            )
        self._files: dict[str, Any] = {}
        self._sound: set[str] = set()  # looked through once: every epoch reads them again
        for path in sorted(folder.glob("*.safetensors")):
            try:
                self._files |= _open_shard(path, found)
            except ValueError as error:
                if on_damaged is None:
                    raise UsageError(
                        f"{path} is damaged: {error}", hint="budgetft data cache computes what it held again"
                    ) from None
                on_damaged(path)

    def __contains__(self, digest: str) -> bool:
        return digest in self._files

    def __len__(self) -> int:
        return len(self._files)

    def read(self, digest: str) -> "torch.Tensor":
        """(v, f) features of the image file with this SHA-256, a copy. Raises ``KeyError``, and ``BudgetftError`` when they
        are not finite."""
        features = self._files[digest].get_tensor(digest)
        if digest not in self._sound and not features.isfinite().all():
            raise BudgetftError(
                f"the feature cache {self.folder} holds features of image {digest} that are not finite",
                hint="delete the folder: they are computed anew, blocks that overflow fp16 in fp32",
            )
        self._sound.add(digest)
        return features

    @property
    def fp32_blocks(self) -> tuple[str, ...]:
        """The tower's blocks that computed in fp32, as the tower names them."""
        return read_fp32_blocks(self.folder)


def read_fp32_blocks(folder: Path) -> tuple[str, ...]:
    """The names in the cache's ``FP32_BLOCKS_FILE``. Raises ``UsageError`` when it holds something else."""
    path = next(
        (path for name in (FP32_BLOCKS_FILE, _FORMERLY) if (path := folder / name).is_file()), folder / FP32_BLOCKS_FILE
    )
    if not path.is_file():
        return ()
    names = read_json(path).get("blocks")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{path} is damaged: blocks must be a list of names", hint="delete the cache's folder")
    return tuple(names)


def write_fp32_blocks(folder: Path, names: Iterable[str]) -> None:
    """Whole or not at all."""
    write_text_atomically(folder / FP32_BLOCKS_FILE, json.dumps({"blocks": sorted(names)}) + "\n")


def _open_shard(path: Path, key: FeatureKey) -> dict[str, Any]:
    """The open file by the digests in it. Raises ``ValueError`` when it is not a whole file of such features."""
    from safetensors import SafetensorError, safe_open

    try:
        file: Any = safe_open(path, framework="pt")
        for digest in file.keys():  # noqa: SIM118
            part = file.get_slice(digest)
            if part.get_dtype() != _DTYPES[key.precision] or len(part.get_shape()) != 2 or part.get_shape()[1] != key.width:
                raise ValueError(f"{digest} is {part.get_dtype()} {part.get_shape()}")
        return dict.fromkeys(file.keys(), file)
    except (OSError, SafetensorError) as error:
        raise ValueError(str(error).splitlines()[0]) from None


def create_cache(folder: Path, key: FeatureKey, *, on_damaged: Callable[[Path], None]) -> FeatureCache:
    """The cache in ``folder``, made when there is none; errors as of :class:`FeatureCache`."""
    if not (folder / KEY_FILE).is_file():
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder} is not a folder")
        if folder.is_dir() and any(not name.startswith(".") for name in os.listdir(folder)):
            raise UsageError(f"{folder} is not empty and holds no feature cache", hint="choose another folder")
        write_text_atomically(folder / KEY_FILE, key.model_dump_json(indent=2) + "\n")
    return FeatureCache(folder, key, on_damaged=on_damaged)


class FeatureWriter:
    """Adds features to a cache folder, many to a file; leaving the block writes what is left. One writes at a time."""

    def __init__(self, folder: Path, *, shard_bytes: int | None = None) -> None:
        self.folder = folder
        self.written = 0
        """Images whose features are on disk."""
        self._shard_bytes = SHARD_BYTES if shard_bytes is None else shard_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._failed = False

    def add(self, digest: str, features: "torch.Tensor") -> None:
        """Keep (v, f) ``features``, on the host, under the image's SHA-256. Raises ``BudgetftError`` when the disk refuses."""
        self._pending[digest] = features.clone()  # of the images computed together, each on its own
        self._pending_bytes += features.numel() * features.element_size()
        if self._pending_bytes >= self._shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what was added: beside its name, forced to the disk, then renamed."""
        if not self._pending:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        name = uuid.uuid4().hex
        part = self.folder / f".{name}.part"
        try:
            save_file(self._pending, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.rename(self.folder / f"{name}.safetensors")
        except (OSError, SafetensorError) as error:
            self._failed = True
            with suppress(OSError):
                part.unlink()
            raise self._refused(error) from None
        self.written += len(self._pending)
        self._pending, self._pending_bytes = {}, 0

    def _refused(self, error: Exception) -> BudgetftError:
        full = getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        return BudgetftError(
            f"cannot write features to {self.folder}: {reason}; the features of {self.written} images were written",
            hint="make room and run it again: what is there is kept",
        )

    def __enter__(self) -> Self:
        self._lock = (self.folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise UsageError(
                f"another process is writing to the feature cache {self.folder}", hint="wait for it to end"
            ) from None
        for part in (*self.folder.glob(".*.part"), *self.folder.glob(".tmp*")):  # ours and safetensors', of a killed run
            part.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self._failed:
                self.flush()
        finally:
            self._lock.close()  # and so given up
