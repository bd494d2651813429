"""Readers of what is kept in safetensors: a feature cache, a tower's weights, a checkpoint that an adapter is merged into."""

import functools
import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

from mutate import mutate_bytes
from reader import Reader, written

from budgetft.data.features import FeatureCache, FeatureKey, FeatureWriter, create_cache, write_fp32_blocks
from budgetft.model import load_model

KEY = FeatureKey(tower="t", weights="w", min_pixels=784, max_pixels=50176, precision="fp16", width=8)
DIGESTS = [hashlib.sha256(name).hexdigest() for name in (b"a", b"b")]
SIZE = 4


def _ignored(path: Path) -> None:
    """A damaged file of features is told, and its images computed anew."""


def _make_cache(folder: Path) -> None:
    import torch

    create_cache(folder / "cache", KEY, on_damaged=_ignored)
    with FeatureWriter(folder / "cache") as writer:
        for digest in DIGESTS:
            writer.add(digest, torch.ones(6, KEY.width, dtype=torch.float16))
    write_fp32_blocks(folder / "cache", ["blocks.3"])


def _read_cache(folder: Path) -> None:
    cache = FeatureCache(folder / "cache", KEY)
    for digest in DIGESTS:
        if digest in cache:
            assert cache.read(digest).shape[1] == KEY.width
    assert all(isinstance(name, str) for name in cache.fp32_blocks)


def _change_tensors(path: Path, rng: random.Random, names: list[str]) -> None:
    """Other tensors under the names that are looked for, or the bytes of the file damaged."""
    import torch
    from safetensors.torch import load_file, save_file

    if rng.random() < 0.3:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
        return
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    changed = [
        tensor.reshape(-1), tensor.unsqueeze(0), tensor[:0], tensor[:, :1].contiguous(), tensor.int(), tensor.double(),
        torch.full_like(tensor, float("nan")), tensor.bool(), tensor.reshape(-1)[:1], tensor.repeat(2, 1),
    ]  # fmt: skip
    if rng.random() < 0.8:
        tensors[rng.choice([name, name, name, *names, name + "x", "", "/", "../a"])] = rng.choice(changed)
    save_file(tensors, path)


def _damage_cache(folder: Path, rng: random.Random) -> None:
    _change_tensors(next((folder / "cache").glob("*.safetensors")), rng, DIGESTS)


def _make_tower(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    weights = folder / "weights"
    weights.mkdir()
    save_file({"visual.a.weight": torch.ones(SIZE, SIZE)}, weights / "model-1.safetensors")
    save_file({"model.layers.0.weight": torch.ones(SIZE, SIZE)}, weights / "model-2.safetensors")
    placed = {"visual.a.weight": "model-1.safetensors", "model.layers.0.weight": "model-2.safetensors"}
    written(weights, "model.safetensors.index.json", {"metadata": {}, "weight_map": placed})


def _read_tower(folder: Path) -> None:
    from budgetft.step.tower import tower_fingerprint

    assert len(tower_fingerprint(str(folder / "weights"), seed=0)) == 64


@functools.cache
def _small_model() -> Any:
    model = load_model("tiny-qwen2.5-vl")
    text = {**model.text, "vocab_size": 64, "num_hidden_layers": 1}
    vision = {**model.config["vision_config"], "depth": 1, "fullatt_block_indexes": [0]}
    return model.replace(config={**model.config, "text_config": text, "vision_config": vision})


def _make_weights(folder: Path) -> None:
    from transformers import AutoModelForImageTextToText

    from budgetft.step.build import model_config

    model = AutoModelForImageTextToText.from_config(model_config(_small_model()))
    model.save_pretrained(folder / "weights", max_shard_size="150KB")


def _read_weights(folder: Path) -> None:
    import torch

    from budgetft.contract import Contract
    from budgetft.step.build import build_model

    contract = Contract(rank=2, alpha=4, effective_batch=1)
    place: dict[str, Any] = {"weights": str(folder / "weights"), "device": torch.device("cpu")}
    built = build_model(_small_model(), contract, base_precision="fp32", **place)
    assert all(parameter.device.type == "cpu" for parameter in built.parameters())


def _make_merge(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    module, rank = "model.layers.0.self_attn.q_proj", 2
    for name in ("base", "adapter"):
        (folder / name).mkdir()
    weights = {f"{module}.weight": torch.ones(SIZE, SIZE), "model.norm.weight": torch.ones(SIZE)}
    save_file(weights, folder / "base" / "model.safetensors")
    written(folder, "base/config.json", {"model_type": "none"})
    prefix = f"base_model.model.{module}"
    pair = {f"{prefix}.lora_A.weight": torch.ones(rank, SIZE), f"{prefix}.lora_B.weight": torch.ones(SIZE, rank)}
    save_file(pair, folder / "adapter" / "adapter_model.safetensors")
    described: dict[str, Any] = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"]}
    written(folder, "adapter/adapter_config.json", {**described, "lora_dropout": 0.0, "bias": "none"})


def _merge(folder: Path) -> None:
    from safetensors.torch import load_file

    from budgetft.export.merge import merge_adapter

    merge_adapter(folder / "adapter", folder / "base", folder / "out")
    found, base = (load_file(folder / name / "model.safetensors") for name in ("out", "base"))
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in base.items()
    }


def _damage_merge(folder: Path, rng: random.Random) -> None:
    if rng.random() < 0.4:
        path = folder / "adapter" / "adapter_config.json"
        described = json.loads(path.read_text())
        strange: list[Any] = [None, -1, 0, "x", [], {}, 1e308, True, "bottleneck", ["q_proj", 7], 10**30, [[1]]]
        described[rng.choice([*described, "use_dora", "use_rslora", "modules_to_save", "rank_pattern"])] = rng.choice(strange)
        path.write_text(json.dumps(described))
        return
    name = rng.choice(["base/model.safetensors", "adapter/adapter_model.safetensors"])
    if rng.random() < 0.1:
        shutil.copyfile(folder / "base" / "model.safetensors", folder / "base" / "model-2.safetensors")
        return
    _change_tensors_of_any_rank(folder / name, rng)


def _change_tensors_of_any_rank(path: Path, rng: random.Random) -> None:
    try:
        _change_tensors(path, rng, [])
    except IndexError:  # a vector has no second axis to cut
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))


STORED = (
    Reader(
        name="feature cache",
        make=_make_cache,
        read=_read_cache,
        files=("cache/*.json", "cache/*.safetensors"),
        damage=_damage_cache,
    ),
    Reader(name="weights of a tower", make=_make_tower, read=_read_tower, files=("weights/*",)),
    Reader(name="weights", make=_make_weights, read=_read_weights, files=("weights/*",)),
    Reader(
        name="checkpoint to merge",
        make=_make_merge,
        read=_merge,
        files=("base/*", "adapter/*"),
        damage=_damage_merge,
    ),
)
