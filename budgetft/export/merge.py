"""An adapter merged into its base checkpoint, tensor by tensor: never more than one weight in memory.

Files, names, shapes and types stay those of the base checkpoint, so whatever loads the base (transformers, vLLM) loads the
result. Bytes that no adapter touches are copied; a touched weight becomes what peft's own merge makes of it.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from budgetft.errors import BudgetftError, UsageError
from budgetft.train.folder import ADAPTER_WEIGHTS, GIVEN_FILE, RunFolder, write_folder
from budgetft.train.provenance import Provenance, adapter_sha256
from budgetft.units import MIB, format_gib
from budgetft.value import Value, read_json
from budgetft.weights import (
    HEADER_BYTES,
    MERGED_FILE,
    NOT_WEIGHTS,
    BaseWeights,
    checkpoint_folder,
    commit_of,
    fingerprint,
    refuse_other,
    split_revision,
    with_revision,
)

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 16 * MIB
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(?:([AB])\.weight|(magnitude_vector))")
WEIGHT_FILES = (".safetensors", *(pattern.removeprefix("*") for pattern in NOT_WEIGHTS))


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What was written."""

    folder: Path
    files: int
    """With weights."""
    merged: int
    """Weights that the adapter changed."""
    copied: int
    """Tensors that stayed."""
    weight_bytes: int


class MergedFrom(Value):
    """``merged.json`` of a merged checkpoint."""

    base: BaseWeights
    adapter_sha256: str
    plan_fingerprint: str | None = None
    data_fingerprint: str | None = None


def merge_adapter(
    adapter: Path,
    folder: Path,
    out: Path,
    *,
    base: BaseWeights | None = None,
    name: str | None = None,
    on_file: Callable[[str], None] = lambda name: None,
) -> Merged:
    """Write to the new folder ``out`` the checkpoint in ``folder`` with the LoRA adapter in ``adapter`` merged into it.

    ``name``: of the checkpoint, where it is not the folder's; ``base``: what the adapter was trained on, where that is known.

    Raises ``UsageError`` when a folder is not what it should be, when an adapter weight has no counterpart in the
    base, or when ``out`` exists or has no room.
    """
    pairs = _read_adapter(adapter)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError(f"{folder} holds no *.safetensors", hint="give --weights FOLDER with the base model's checkpoint")
    if out.exists():
        raise UsageError(f"{out} exists already", hint="choose another --out")
    headers = {path: _read_header(path) for path in files}
    origin = _origin(adapter, folder, base, name or str(folder))
    targets = _match(pairs, [tensor for header in headers.values() for tensor in header.tensors], folder)
    _check_room(out, files)

    def fill(made: Path) -> None:
        _copy_descriptions(folder, made)
        if (adapter / GIVEN_FILE).is_file():
            shutil.copyfile(adapter / GIVEN_FILE, made / GIVEN_FILE)
        for path in files:
            on_file(path.name)
            _write_file(path, headers[path], made / path.name, targets, adapter)
        (made / MERGED_FILE).write_text(origin.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")

    write_folder(out, fill)
    total = sum(len(header.tensors) for header in headers.values())
    return Merged(
        folder=out,
        files=len(files),
        merged=len(targets),
        copied=total - len(targets),
        weight_bytes=sum(path.stat().st_size for path in files),
    )


def _origin(adapter: Path, folder: Path, base: BaseWeights | None, name: str) -> MergedFrom:
    """What the merged checkpoint is made of. Raises ``UsageError`` when the adapter is of another base, or in it already."""
    found = BaseWeights(name=split_revision(name)[0], revision=commit_of(folder), fingerprint=fingerprint(folder))
    known, sha256 = Provenance.read_from(adapter), adapter_sha256(adapter)
    marker = folder / MERGED_FILE
    if marker.is_file() and MergedFrom.read(read_json(marker), source=str(marker)).adapter_sha256 == sha256:
        raise UsageError(f"{folder} is the merged model of this very adapter: it is in there already")
    hint = "give the weights that it was trained on; an adapter only fits those"
    refuse_other(base, found, f"the adapter in {adapter} was trained on", hint=hint, folder=folder)
    return MergedFrom(
        base=found,
        adapter_sha256=sha256,
        plan_fingerprint=known and known.plan_fingerprint,
        data_fingerprint=known and known.data_fingerprint,
    )


def merge_run(
    run: Path, out: Path, *, weights: str | None = None, on_file: Callable[[str], None] = lambda name: None
) -> Merged:
    """Merge the adapter of the run folder, or adapter folder, ``run``; ``weights`` default to what it was started from.

    Raises ``UsageError`` when they are other weights than those, and as :func:`merge_adapter`.
    """
    if (run / MERGED_FILE).is_file():
        raise UsageError(f"{run} is a merged model already, not a run or an adapter: it is loaded as its base is")
    chosen = weights or base_of_run(run)
    if chosen == "random":
        raise UsageError("the run was started from random weights: its adapter means nothing to any checkpoint")
    if chosen is None:
        raise UsageError(
            f"{run} does not say what it was trained on: there is no base checkpoint to merge into",
            hint="give --weights FOLDER or a hub id",
        )
    folder = RunFolder(run)
    adapter = folder.adapter if folder.holds_run else run
    if folder.holds_run and not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UsageError(
            f"the run in {run} has no adapter: it has not come to its end",
            hint=f"finish it: budgetft train --plan {folder.plan} --out {run} --resume",
        )
    return merge_adapter(adapter, checkpoint_folder(chosen), out, base=_base_of(folder, adapter), name=chosen, on_file=on_file)


def base_of_run(run: Path) -> str | None:
    """The weights that the run or adapter in ``run`` is of, as they are given again; None where it does not say."""
    folder = RunFolder(run)
    if folder.holds_run:
        return folder.read_identity().given_weights
    known = Provenance.read_from(run)
    if known is None:
        return None
    return "random" if known.base is None else with_revision(known.base.name, known.base.revision)


def _base_of(folder: RunFolder, adapter: Path) -> BaseWeights | None:
    known = Provenance.read_from(adapter)
    if known is not None:
        return known.base
    return folder.read_identity().base if folder.holds_run else None


@dataclass(frozen=True, kw_only=True)
class _Header:
    """Where a safetensors file keeps each tensor: (dtype, shape, first byte, byte after the last), from the file's start."""

    bytes: int
    tensors: dict[str, tuple[str, tuple[int, ...], int, int]]


def _read_header(path: Path) -> _Header:
    """The header, checked by safetensors' own reader first."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            names = set(opened.keys())
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            described = json.loads(file.read(min(size, HEADER_BYTES)))
        start = 8 + size
        tensors = {
            name: (told["dtype"], tuple(told["shape"]), start + told["data_offsets"][0], start + told["data_offsets"][1])
            for name, told in described.items()
            if name in names
        }
    except Exception as error:  # safetensors' own error has no common base with the others
        raise UsageError(f"{path} is not a whole safetensors file: {str(error)[:200]}") from None
    return _Header(bytes=start, tensors=dict(sorted(tensors.items(), key=lambda item: item[1][2])))


def _read_adapter(adapter: Path) -> dict[str, str]:
    """The modules that the adapter changes: path in the model -> prefix of its tensors' names."""
    from safetensors import safe_open

    path = adapter / ADAPTER_WEIGHTS
    config = read_json(adapter / ADAPTER_CONFIG)
    if config.get("peft_type") != "LORA":
        raise UsageError(f"{adapter} holds a {config.get('peft_type')} adapter; only LORA can be merged")
    try:
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
    except Exception as error:
        raise UsageError(f"{path} is not a whole safetensors file: {str(error)[:200]}") from None
    found: dict[str, set[str]] = {}
    for name in names:
        match = ADAPTER_KEY.fullmatch(name)
        if match is None:
            raise UsageError(f"{path} holds {name!r}, which is more than a plain LoRA of linear layers")
        found.setdefault(match[1], set()).add(match[2] or match[3])
    halves = [module for module, parts in found.items() if not parts >= {"A", "B"}]
    if halves or not found:
        raise UsageError(f"{path} holds no pair of LoRA matrices" + (f" for {halves[0]}" if halves else ""))
    dora = bool(config.get("use_dora"))
    odd = [module for module, parts in found.items() if ("magnitude_vector" in parts) != dora]
    if odd:
        told = "has no magnitudes" if dora else "has magnitudes, which only a DoRA adapter has,"
        raise UsageError(f"{path} {told} for {odd[0]}, and {ADAPTER_CONFIG} says use_dora {str(dora).lower()}")
    return {module: f"base_model.model.{module}" for module in found}


def _match(pairs: dict[str, str], names: list[str], base: Path) -> dict[str, str]:
    """Weight of the base -> prefix in the adapter. Checkpoints nest the language model at different depths."""
    language = {name: name[at:] for name in names if "visual." not in name and (at := name.find("layers.")) >= 0}
    by_tail: dict[str, list[str]] = {}
    for name, tail in language.items():
        by_tail.setdefault(tail, []).append(name)
    targets, lost = {}, []
    for module, prefix in pairs.items():
        weight = f"{module}.weight"
        found = [weight] if weight in names else by_tail.get(weight[max(0, weight.find("layers.")) :], [])
        if len(found) == 1:
            targets[found[0]] = prefix
        else:
            lost.append(module)
    if lost:
        raise UsageError(
            f"{len(lost)} of the adapter's {len(pairs)} modules have no weight of their own in {base}, for example {lost[0]}",
            hint="merge into the checkpoint that the run was started from",
        )
    return targets


def _check_room(out: Path, files: list[Path]) -> None:
    """Raise before gigabytes are written in vain."""
    here = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
    need, free = sum(path.stat().st_size for path in files), shutil.disk_usage(here).free
    if need > free:
        raise UsageError(f"the merged checkpoint takes {format_gib(need)}; {here} has {format_gib(free)} free")


def _copy_descriptions(base: Path, folder: Path) -> None:
    """Config, tokenizer, processor, chat template, licence, index: every file that holds no weights."""
    for path in sorted(base.iterdir()):
        if path.is_file() and not path.name.startswith(".") and not path.name.endswith(WEIGHT_FILES):
            shutil.copyfile(path, folder / path.name)


def _write_file(path: Path, header: _Header, target: Path, targets: dict[str, str], adapter: Path) -> None:
    with path.open("rb") as source, target.open("wb") as sink:
        done = 0
        for name, (dtype, shape, first, end) in header.tensors.items():
            if name not in targets:
                continue
            _copy(source, sink, first - done)
            weight = _tensor(source.read(end - first), dtype, shape, name)
            sink.write(_bytes_of(merged_weight(weight, targets[name], adapter)))
            done = end
        _copy(source, sink, path.stat().st_size - done)


def _copy(source: IO[bytes], sink: IO[bytes], size: int) -> None:
    while size:
        piece = source.read(min(size, CHUNK_BYTES))
        if not piece:
            raise BudgetftError("the base checkpoint ended early: it was changed while it was read")
        sink.write(piece)
        size -= len(piece)


def _tensor(data: bytes, dtype: str, shape: tuple[int, ...], name: str) -> "torch.Tensor":
    import torch

    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    if dtype not in types or len(shape) != 2 or not data:
        raise UsageError(f"{name} is {dtype} {shape}: only unquantised linear weights can be merged into")
    return torch.frombuffer(bytearray(data), dtype=types[dtype]).reshape(shape)


def _bytes_of(tensor: "torch.Tensor") -> memoryview:
    import torch

    return tensor.contiguous().view(torch.uint8).numpy().data.cast("B")


def merged_weight(weight: "torch.Tensor", prefix: str, adapter: Path) -> "torch.Tensor":
    """``weight`` (out, in) as peft merges it, by peft itself on a single linear layer."""
    down, up, magnitude = _adapter_tensors(adapter, prefix)
    if (up.shape[0], down.shape[1]) != tuple(weight.shape):
        raise UsageError(f"{prefix} is for a weight of {up.shape[0]} x {down.shape[1]}; the base has {tuple(weight.shape)}")
    try:
        return _merged_by_peft(weight, down, up, magnitude, adapter)
    except MemoryError:
        raise
    except Exception as error:  # peft takes what the config says as it is, and fails where it uses it
        told = f"{type(error).__name__}: {str(error)[:200]}"
        raise UsageError(f"{adapter / ADAPTER_CONFIG} is of no adapter that peft can merge: {told}") from None


def _merged_by_peft(
    weight: "torch.Tensor", down: "torch.Tensor", up: "torch.Tensor", magnitude: "torch.Tensor | None", adapter: Path
) -> "torch.Tensor":
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    config: Any = LoraConfig.from_pretrained(str(adapter))
    config.target_modules, config.inference_mode, config.r = {"linear"}, True, down.shape[0]
    config.init_lora_weights = False
    holder: Any = inject_adapter_in_model(config, torch.nn.ModuleDict({"linear": linear}))
    layer = holder["linear"]
    layer.lora_A["default"].weight.data = down
    layer.lora_B["default"].weight.data = up
    if magnitude is not None:
        layer.lora_magnitude_vector["default"].weight.data = magnitude
    layer.merge()
    return layer.get_base_layer().weight.data


def _adapter_tensors(adapter: Path, prefix: str) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]":
    """The two matrices of one module, (rank, in) and (out, rank), and DoRA's magnitudes (out), where it has them."""
    from safetensors import safe_open

    path = adapter / ADAPTER_WEIGHTS
    with safe_open(path, framework="pt") as opened:
        down, up = (opened.get_tensor(f"{prefix}.lora_{half}.weight") for half in "AB")
        lengths = f"{prefix}.lora_magnitude_vector"
        magnitude = opened.get_tensor(lengths) if lengths in set(opened.keys()) else None
    if down.dim() != 2 or up.dim() != 2 or down.shape[0] != up.shape[1] or not down.shape[0]:
        raise UsageError(f"{path}: {prefix} is {tuple(up.shape)} times {tuple(down.shape)}, no product of LoRA matrices")
    if magnitude is not None and magnitude.shape != up.shape[:1]:
        raise UsageError(f"{path}: {prefix} has magnitudes of {tuple(magnitude.shape)} for {up.shape[0]} rows")
    held = [tensor for tensor in (down, up, magnitude) if tensor is not None]
    if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in held):
        raise UsageError(f"{path}: {prefix} holds what are no finite numbers")
    return down, up, magnitude
