"""Training on cached features: the frozen run, without the tower; and a cache that is wrong in any way is refused."""

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from patience import HANG_SECONDS
from rounding import UNITS, farthest
from runs import losses_of

from budgetft.data.features import KEY_FILE
from budgetft.errors import BudgetftError, UsageError
from budgetft.model import load_model
from budgetft.outcome import in_former_names
from budgetft.plan import Features, read_plan
from budgetft.step.build import model_config
from budgetft.train.job import plan_fingerprint

CACHED = {"vision": "cached"}
pytestmark = pytest.mark.usefixtures("warm_children")  # a run fills its cache in a process of its own


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A saved tiny checkpoint with nothing but config and weights."""
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    AutoModelForImageTextToText.from_config(model_config(load_model("tiny-qwen2.5-vl")), dtype=torch.float32).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture
def cached_plan(make_plan, tmp_path):
    return make_plan(knobs=CACHED).replace(features=Features(folder=str(tmp_path / "features")))


def test_a_run_on_cached_features_has_the_losses_of_the_run_with_the_frozen_tower(
    make_plan, cached_plan, train, same_run, weights, tmp_path
):
    slowly = {"learning_rate": 1e-4}  # as the bound's run
    train(make_plan(**slowly), steps=4, weights=weights, out=tmp_path / "frozen")
    cached_plan = make_plan(knobs=CACHED, **slowly).replace(features=cached_plan.features)
    notes: list[str] = []
    train(cached_plan, steps=4, weights=weights, out=tmp_path / "cached", on_note=notes.append)
    assert any("computing the features of 10 of 10 images" in note for note in notes)
    assert same_run.in_fp32().losses(tmp_path / "cached", tmp_path / "frozen")
    assert same_run.in_fp32().adapters(tmp_path / "cached", tmp_path / "frozen")
    again: list[str] = []
    train(cached_plan, steps=2, weights=weights, out=tmp_path / "again", on_note=again.append)
    assert not any("computing" in note for note in again)


def test_the_tower_takes_no_memory_in_a_run_on_cached_features(make_plan, cached_plan, train, weights, tmp_path):
    from transformers import AutoModelForImageTextToText

    frozen = train(make_plan(), steps=1, weights=weights, out=tmp_path / "frozen")
    cached = train(cached_plan, steps=1, weights=weights, out=tmp_path / "cached")
    whole = AutoModelForImageTextToText.from_pretrained(weights)
    tower = sum(p.numel() * 4 for p in whole.model.visual.parameters())
    assert frozen.process_peak_bytes - cached.process_peak_bytes >= tower


def test_a_cache_of_other_weights_pixels_or_precision_is_refused_with_the_reason(
    make_plan, cached_plan, train, weights, tmp_path
):
    train(cached_plan, steps=1, weights=weights, out=tmp_path / "first")
    folder = tmp_path / "features"
    with pytest.raises(UsageError, match="other weights"):
        train(cached_plan, steps=1, weights="random", out=tmp_path / "a")
    other = make_plan(knobs=CACHED, max_pixels=100_352).replace(features=cached_plan.features)
    with pytest.raises(UsageError, match="its max_pixels is 200704, not 100352"):
        train(other, steps=1, weights=weights, out=tmp_path / "b")
    key = json.loads((folder / KEY_FILE).read_text())
    (folder / KEY_FILE).write_text(json.dumps(key | {"precision": "fp16"}))
    with pytest.raises(UsageError, match="its precision is fp16, not fp32"):
        train(cached_plan, steps=1, weights=weights, out=tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_a_truncated_cache_file_is_refused_by_name(cached_plan, train, weights, tmp_path):
    train(cached_plan, steps=1, weights=weights, out=tmp_path / "first")
    (shard,) = (tmp_path / "features").glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UsageError, match=f"{shard.name} is damaged"):
        train(cached_plan, steps=1, weights=weights, out=tmp_path / "second")


def test_an_image_that_was_changed_since_is_refused_by_name(make_plan, train, weights, tmp_path):
    from drawn import draw_examples
    from PIL import Image

    examples = draw_examples(tmp_path / "data", 4)
    plan = make_plan(knobs=CACHED, data=examples.folder).replace(features=Features(folder=str(tmp_path / "features")))
    train(plan, steps=1, weights=weights, out=tmp_path / "first")
    changed = Path(examples[0].images[0])
    Image.new("RGB", (84, 84), "pink").save(changed)
    with pytest.raises(UsageError, match=f"{changed.name} was changed"):
        train(plan, steps=1, weights=weights, out=tmp_path / "second")


def test_a_plan_and_a_cache_that_do_not_belong_together_are_refused(make_plan, train, tmp_path):
    with pytest.raises(UsageError, match="names no cache"):
        train(make_plan(knobs=CACHED), steps=1)
    with pytest.raises(UsageError, match="plans with cached vision"):
        train(make_plan(), steps=1, cache=tmp_path / "features")


def test_a_failing_computation_ends_the_run_before_it_began(make_plan, train, tmp_path, capfd):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("precious")
    with pytest.raises(BudgetftError, match="exit code 2"):
        train(make_plan(knobs=CACHED), steps=1, cache=taken)
    assert "is not empty" in capfd.readouterr().err
    assert sorted(path.name for path in taken.iterdir()) == ["thesis.txt"]
    assert not (tmp_path / "run").exists()


def test_a_plan_from_before_there_were_features_reads_and_has_the_fingerprint_it_had():
    path = Path(__file__).parents[2] / "reports" / "spine" / "plan-real.json"
    assert "features" not in json.loads(path.read_text())
    plan = read_plan(path)
    assert plan.features is None
    text = plan.model_dump_json()
    assert text.count('"features":null,') == 1
    assert plan_fingerprint(plan) == hashlib.sha256(in_former_names(text).replace('"features":null,', "").encode()).hexdigest()
    # As a run folder of then has it: fields that were added since must not show at their defaults.
    assert plan_fingerprint(plan) == "a135f4d1dfb6ba3249297d7e183ea93d29c4acde8f67b76e81cdcd0aaeebe70d"


def test_four_bit_weights_train_on_features_in_the_type_that_they_compute_in(make_plan, train, tmp_path):
    plan = make_plan(knobs={**CACHED, "base_precision": "nf4"}, allow_nf4=True)
    plan = plan.replace(features=Features(folder=str(tmp_path / "features")))
    summary = train(plan, steps=2)
    assert summary.skipped_steps == 0
    assert json.loads((tmp_path / "features" / KEY_FILE).read_text())["precision"] == "fp16"


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory) -> str:
    """A checkpoint whose vision tower has an MLP that overflows fp16."""
    from transformers import AutoModelForImageTextToText

    folder = tmp_path_factory.mktemp("overflowing")
    torch.manual_seed(5)
    base = AutoModelForImageTextToText.from_config(model_config(load_model("tiny-qwen2.5-vl")), dtype=torch.float32)
    block = base.get_submodule(OVERFLOWS)
    for linear, factor in (("gate_proj", 1e3), ("up_proj", 1e3), ("down_proj", 1e-6)):
        getattr(block, linear).weight.data.mul_(factor)
    base.save_pretrained(folder)
    return str(folder)


OVERFLOWS = "model.visual.blocks.2.mlp"


def test_a_tower_that_overflows_fp16_is_cached_with_that_block_in_fp32(make_plan, train, overflowing, tmp_path):
    half = {"base_precision": "fp16"}
    frozen = train(make_plan(knobs=half), steps=2, weights=overflowing, out=tmp_path / "frozen")
    plan = make_plan(knobs={**CACHED, **half}).replace(features=Features(folder=str(tmp_path / "features")))
    cached = train(plan, steps=2, weights=overflowing, out=tmp_path / "cached")
    assert frozen.fp32_blocks == cached.fp32_blocks == (OVERFLOWS,)  # what predicts with the adapter makes them again
    assert cached.skipped_steps == 0
    # A feature's rounding to fp16 moves a loss by some units of fp16; the cache groups the images otherwise than the step.
    assert farthest(losses_of(tmp_path / "cached"), losses_of(tmp_path / "frozen")) < 4 * UNITS["fp16"]
    again = train(plan, steps=1, weights=overflowing, out=tmp_path / "again")
    assert again.fp32_blocks == (OVERFLOWS,)


def test_features_that_are_not_finite_are_refused_by_name(cached_plan, train, weights, tmp_path):
    from safetensors.torch import load_file, save_file

    train(cached_plan, steps=1, weights=weights, out=tmp_path / "first")
    (shard,) = (tmp_path / "features").glob("*.safetensors")
    tensors = load_file(shard)
    for tensor in tensors.values():
        tensor[0, 0] = float("inf")
    save_file(tensors, shard)
    with pytest.raises(BudgetftError, match=r"features of image .* that are not finite"):
        train(cached_plan, steps=1, weights=weights, out=tmp_path / "second")


def test_of_several_processes_one_fills_the_cache_and_the_others_wait_for_it(cached_plan, monkeypatch):
    from threading import Thread

    import transformers

    from budgetft.train import features
    from budgetft.train.job import settle

    monkeypatch.setattr(features, "WAIT_SECONDS", 0.05)
    job = settle(cached_plan, data=None, weights="random", steps=1)
    notes, found = [], {}
    assert transformers.AutoConfig  # imported before the threads: two that import it first at once, find it half made

    def fetch(name: str, fills: bool) -> None:
        found[name] = features.planned_features(job, None, device="cpu", on_note=lambda text: notes.append(name), fills=fills)

    waiting = Thread(target=fetch, args=("second", False))
    waiting.start()
    fetch("first", True)
    waiting.join(HANG_SECONDS)
    assert not waiting.is_alive(), "it waits for ever"
    assert notes == ["first"]
    assert len(found["first"].cache) == len(found["second"].cache) == 10


def test_a_resumed_run_goes_on_with_the_cache_that_it_was_given(make_plan, train, weights, tmp_path):
    from budgetft.train.guard import Interrupted

    def interrupt(record):
        os.kill(os.getpid(), signal.SIGINT)

    plan, notes = make_plan(knobs=CACHED), []
    with pytest.raises(Interrupted):
        train(plan, steps=2, weights=weights, cache=tmp_path / "given", on_progress=interrupt)
    train(plan, resume=True, weights=None, on_note=notes.append)
    assert not any("computing" in note for note in notes)
