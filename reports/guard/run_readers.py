"""Readers of what a run and the caches leave: adapter, checkpoints, records, features, and weights to load and to merge."""

import functools
import hashlib
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import SPINE
from harness.small import TINY
from reader import Reader, mutate_bytes, written

from budgetft.data.features import FeatureCache, FeatureKey, FeatureWriter, create_cache, write_fp32_blocks
from budgetft.errors import UsageError
from budgetft.model import load_model
from budgetft.value import read_json

KEY = FeatureKey(tower="t", weights="w", min_pixels=784, max_pixels=50176, precision="fp16", width=8)
DIGESTS = [hashlib.sha256(name).hexdigest() for name in (b"a", b"b")]
SIZE = 4


@functools.cache
def _tiny_step() -> Any:
    import torch

    from budgetft.contract import Contract
    from budgetft.knobs import Knobs
    from budgetft.step.build import build_model
    from budgetft.step.step import Step

    torch.set_num_threads(1)
    contract = Contract(rank=2, alpha=4, effective_batch=1)
    knobs = Knobs(micro_batch=1, grad_accum=1, checkpointed_layers=0, base_precision="fp32")
    device = torch.device("cpu")
    peft_model = build_model(load_model(TINY), contract, base_precision="fp32", device=device)
    step = Step(peft_model, contract, knobs, device=device)
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    step.optimizer.step()
    return step


def _make_checkpoint(folder: Path) -> None:
    from budgetft.train.checkpoint import write_checkpoint

    write_checkpoint(folder, _tiny_step(), finished_steps=3, plan_fingerprint="f")


def _read_checkpoint(folder: Path) -> None:
    from budgetft.train.checkpoint import newest_checkpoint, restore_checkpoint

    found = newest_checkpoint(folder, lambda note: None)
    if found is not None:
        restore_checkpoint(*found, _tiny_step())


def _damage_checkpoint(folder: Path, rng: random.Random) -> None:
    """Damage a file and write its new hash into the state, as someone with bad intentions would."""
    from safetensors.torch import load_file, save_file

    checkpoint = folder / "step-3"
    state = json.loads((checkpoint / "state.json").read_text())
    name = rng.choice(["optimizer.safetensors", "adapter/adapter_model.safetensors"])
    path = checkpoint / name
    if rng.random() < 0.5:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    else:
        tensors = load_file(path)
        key = rng.choice(list(tensors))
        tensor = tensors.pop(key)
        if rng.random() < 0.8:
            changed = [tensor.reshape(-1)[:1], tensor.int(), tensor.flatten(), tensor.unsqueeze(0), tensor.double()]
            tensors[rng.choice([key, key + "x", "x", "/", ""])] = rng.choice(changed)
        save_file(tensors, path)
    if path.is_file():
        state["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if rng.random() < 0.3:
        state["sha256"]["../../outside"] = "0"
    (checkpoint / "state.json").write_text(json.dumps(state))


def _make_adapter(folder: Path) -> None:
    from budgetft.train.checkpoint import write_adapter

    write_adapter(_tiny_step(), folder / "adapter")


def _read_adapter(folder: Path) -> None:
    from budgetft.evaluate.source import _load_adapter, adapter_fingerprint

    adapter_fingerprint(folder / "adapter")
    _load_adapter(_tiny_step().peft_model, folder / "adapter")


def _damage_adapter(folder: Path, rng: random.Random) -> None:
    state = folder / "step-3" / "adapter"
    state.parent.mkdir()
    shutil.move(folder / "adapter", state)
    shutil.copyfile(state / "adapter_model.safetensors", folder / "step-3" / "optimizer.safetensors")
    (folder / "step-3" / "state.json").write_text('{"sha256": {}}')
    _damage_checkpoint(folder, rng)
    shutil.move(state, folder / "adapter")


def _make_run(folder: Path) -> None:
    for source, name in (
        ("plan-448.json", "plan.json"),
        ("log-real.jsonl", "log.jsonl"),
        ("summary-real.json", "summary.json"),
    ):
        shutil.copyfile(SPINE.with_name(source), folder / name)
    written(folder, "run.json", {"plan_fingerprint": "f", "data_fingerprint": "d", "weights": "random", "steps": 3})
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"")


def _read_run_folder(folder: Path) -> None:
    from budgetft.evaluate.source import source_of_run
    from budgetft.report.gather import _read_run
    from budgetft.train.log import Log
    from budgetft.train.record import Summary

    source_of_run(folder)
    told = _read_run(folder)  # before the log is cut: what the report says of it
    assert told[1] is not None or told[2]
    Log(folder / "log.jsonl", finished_steps=3).close()
    Summary.read(read_json(folder / "summary.json"), source="summary.json")


def _make_notes(folder: Path) -> None:
    segment = {"labels": ["1"], "caption_pedestrian": "He waits.", "caption_vehicle": "It turns."}
    times = {"start_time": "0.5", "end_time": "2.5"}
    written(folder, "captions.json", {"id": 1, "overhead_videos": ["a.mp4"], "event_phase": [{**segment, **times}]})
    asked = {"question": "What?", "a": "Red", "b": "Blue", "correct": "a"}
    phase = {"labels": ["1"], **times, "conversations": [asked]}
    written(folder, "questions.json", [{"id": 1, "overhead_videos": ["a.mp4"], "event_phase": [phase]}])
    written(folder, "hidden.json", [{"id": 1, "videos": ["a.mp4"], "conversations": [{"id": "q", **asked}]}])
    box = {"image_id": 3, "bbox": [1.0, 2.0, 30.0, 40.0], "phase_number": "1"}
    written(folder, "boxes.json", {"annotations": [box, {**box, "image_id": 4}]})
    written(folder, "shots.json", {"version": 1, "shots": {"0": ["a.jpg", 0.5, [0.5]]}})


def _read_notes(folder: Path) -> None:
    from budgetft.data.media.shots import _read_record
    from budgetft.data.wts.notes import Notes, read_boxes, read_captions, read_questions, read_test_questions

    notes = Notes()
    read_captions(folder / "captions.json", notes, captions=True)
    read_questions(folder / "questions.json", notes)
    read_test_questions(folder / "hidden.json", notes)
    read_boxes(folder / "boxes.json", notes)
    _read_record(folder / "shots.json", {"version": 1}, folder)  # one that cannot be read is made anew
    if notes.problems:
        raise UsageError("; ".join(notes.problems))


def _make_stage_record(folder: Path) -> None:
    from budgetft.workflow.record import Record, write_record

    prints = {"a.json": "f" * 64}
    options = {"gpu": ("v100-16g",)}
    record = Record(command=("plan",), options=options, inputs=prints, outputs=prints, finished=True, seconds=1.5, version="1")
    write_record(folder / "stage.json", record)


def _read_stage_record(folder: Path) -> None:
    from budgetft.workflow.record import read_record

    if read_record(folder / "stage.json") is None:  # the stage is then done again
        raise UsageError("no record")


def _make_workflow(folder: Path) -> None:
    from importlib.resources import files

    (folder / "workflow.toml").write_bytes((files("budgetft.workflow") / "demo.toml").read_bytes())


def _read_workflow(folder: Path) -> None:
    from budgetft.cli.workflow import command_options
    from budgetft.workflow.file import read_workflow

    for task in read_workflow(folder / "workflow.toml", functools.cache(command_options)()).tasks:
        assert all(isinstance(text, str) for text in task.argv)


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


RUNS = (
    Reader("run folder", _make_run, _read_run_folder, "*.json*"),
    Reader("checkpoint", _make_checkpoint, _read_checkpoint, "step-3/state.json step-3/**/*.safetensors", _damage_checkpoint),
    Reader("adapter folder", _make_adapter, _read_adapter, "adapter/*.safetensors adapter/*.json", _damage_adapter),
    Reader("workflow", _make_workflow, _read_workflow),
    Reader("stage's record", _make_stage_record, _read_stage_record),
    Reader("traffic notes", _make_notes, _read_notes),
    Reader("feature cache", _make_cache, _read_cache, "cache/*.json cache/*.safetensors", _damage_cache),
    Reader("weights of a tower", _make_tower, _read_tower, "weights/*"),
    Reader("weights", _make_weights, _read_weights, "weights/*"),
    Reader("checkpoint to merge", _make_merge, _merge, "base/* adapter/*", _damage_merge),
)
