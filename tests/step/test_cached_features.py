"""Caching computes each image once, goes on after a kill, and gives what the step computes."""

import math
import os
import signal
import subprocess
import sys

import pytest
import torch
from patience import until
from rounding import UNITS, distance, sum_error

from budgetft.contract import Contract
from budgetft.data.collate import collate, encode
from budgetft.data.features import FeatureCache, find_pictures
from budgetft.data.processor import load_processor
from budgetft.data.synthetic.sample import write_sample
from budgetft.errors import BudgetftError
from budgetft.model import load_model
from budgetft.step import vision
from budgetft.step.attention import implementation
from budgetft.step.build import DTYPES, model_config
from budgetft.step.features import Tower, cache_features, feature_key
from budgetft.step.tower import joined_features, load_tower

CPU = torch.device("cpu")
CONTRACT = Contract()


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("sample") / "data", count=12)


def cached(sample, folder, model, precision="fp32", **options):
    pictures = find_pictures(sample, model, CONTRACT)
    facts = {"model": model, "contract": CONTRACT, "precision": precision, "weights": None, "device": CPU}
    done = cache_features(pictures, folder, **facts, **options)
    return done, FeatureCache(folder, feature_key(model, CONTRACT, precision, None)), pictures


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["tiny-qwen2.5-vl", "tiny-qwen2-vl", "tiny-qwen3-vl"])
def test_cached_features_are_those_of_the_step_within_rounding(sample, tmp_path, name, precision):
    model = load_model(name)
    done, cache, pictures = cached(sample, tmp_path, model, precision)
    assert done.images == done.computed == len(cache) == len({each.digest for each in pictures})
    digests = {each.block: each.digest for each in pictures}
    dtype = DTYPES[precision]
    visual = load_tower(model_config(model), None, dtype=dtype, device=CPU, seed=CONTRACT.seed)
    visual.config._attn_implementation = implementation("efficient")
    vision.freeze(visual, lambda phase: None)
    processor = load_processor(model)
    for example in sample[:4]:
        batch = collate([encode(example, processor, model, CONTRACT)], 0)
        groups = vision.group_images(batch.image_grid_thw.numpy(), visual.config)
        with torch.autocast("cpu", dtype=dtype, enabled=precision != "fp32"):
            expected = joined_features(visual(batch.pixel_values.type(dtype), groups=groups))
        found = torch.cat([cache.read(digests[path,]) for path in example.images])
        assert found.dtype == expected.dtype == dtype
        # Another grouping of the images is another order of sums of at most 128 terms, a dozen in each of four blocks.
        bound = sum_error(128) * 12 * 4 if precision == "fp32" else math.sqrt(12 * 4) * UNITS[precision]
        assert distance(found, expected) <= bound


def test_nothing_is_computed_twice(sample, tmp_path):
    model = load_model("tiny-qwen2.5-vl")
    started: list[tuple[int, int, int]] = []
    first, _, pictures = cached(sample[:4], tmp_path, model, on_start=lambda *told: started.append(told))
    more, _, everything = cached(sample, tmp_path, model, on_start=lambda *told: started.append(told))
    again, cache, _ = cached(sample, tmp_path, model)
    few, all_images = len({p.digest for p in pictures}), len({p.digest for p in everything})
    assert (first.computed, more.computed, again.computed) == (few, all_images - few, 0)
    assert started[1][:2] == (all_images, all_images - few)
    assert len(cache) == all_images


def test_a_damaged_file_is_computed_again_and_said(sample, tmp_path):
    model = load_model("tiny-qwen2.5-vl")
    first, _, _ = cached(sample, tmp_path, model)
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:1000])
    notes: list[str] = []
    again, cache, _ = cached(sample, tmp_path, model, on_note=notes.append)
    assert again.computed == first.computed == len(cache)
    assert any(shard.name in note for note in notes)


def test_what_does_not_fit_the_disk_is_refused_before_the_tower_is_loaded(sample, tmp_path, monkeypatch):
    model = load_model("tiny-qwen2.5-vl")
    monkeypatch.setattr("budgetft.data.features.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
    monkeypatch.setattr("budgetft.step.features.load_tower", lambda *args, **options: pytest.fail("the tower was loaded"))
    with pytest.raises(BudgetftError, match="free"):
        cached(sample, tmp_path, model)


def test_the_key_follows_model_weights_pixels_and_precision():
    model = load_model("tiny-qwen2.5-vl")
    key = feature_key(model, CONTRACT, "fp32", None)
    assert key == feature_key(model, CONTRACT, "fp32", None)
    others = [
        feature_key(load_model("tiny-qwen2-vl"), CONTRACT, "fp32", None),
        feature_key(model.replace(image_mean=(0.5, 0.5, 0.5)), CONTRACT, "fp32", None),
        feature_key(model, CONTRACT.replace(seed=1), "fp32", None),
        feature_key(model, CONTRACT.replace(max_pixels=100_352), "fp32", None),
        feature_key(model, CONTRACT, "bf16", None),
    ]
    assert len({other.model_dump_json() for other in [key, *others]}) == 6


def test_a_killed_run_loses_only_what_was_not_yet_written_and_the_next_one_finishes(warm_children, sample, tmp_path):
    script = (
        "import itertools, signal\n"
        "from budgetft.data import features\n"
        "features.SHARD_BYTES = 1\n"  # every image its own file
        "from budgetft.step.features import Tower\n"
        "compute, calls = Tower.features, itertools.count()\n"
        "Tower.features = lambda *args: compute(*args) if next(calls) < 1 else signal.pause()\n"  # only a kill ends it
        "from budgetft.cli import run\nrun()\n"
    )
    command = [sys.executable, "-c", script, "data", "cache", str(sample.folder)]
    command += ["--model", "tiny-qwen2.5-vl", "--weights", "random", "--out", str(tmp_path / "cache"), "--device", "cpu"]
    with subprocess.Popen(command, env={**os.environ}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: list(tmp_path.glob("cache/*.safetensors")) or process.poll() is not None, "the first features")
        finally:
            process.send_signal(signal.SIGKILL)
    model = load_model("tiny-qwen2.5-vl")
    kept = len(FeatureCache(tmp_path / "cache", feature_key(model, CONTRACT, "fp32", None)))
    done, cache, _ = cached(sample, tmp_path / "cache", model)
    assert 0 < kept < done.images
    assert done.computed == done.images - kept
    assert len(cache) == done.images


def test_the_tower_gives_each_image_its_own_features():
    model = load_model("tiny-qwen2.5-vl")
    tower = Tower(model, CONTRACT, precision="fp32", weights=None, device=CPU)
    import numpy as np

    grid = np.array([[1, 4, 4], [1, 4, 6]])
    patches = torch.randn(16 + 24, 1176)
    first, second = tower.features(patches, grid)
    assert (first.shape, second.shape) == ((4, 64), (6, 64))
    (alone,) = tower.features(patches[16:], grid[1:])
    assert distance(alone, second) <= sum_error(128) * 12 * 4
