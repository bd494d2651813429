"""A run, its adapter and what is made of it are of the weights that it began with, and of no others."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from runs import losses_of

from budgetft.errors import BudgetftError, UsageError
from budgetft.evaluate.source import source_of_run
from budgetft.export.merge import merge_run
from budgetft.model import load_model
from budgetft.plan import refer, write_plan
from budgetft.step.build import model_config
from budgetft.train.checkpoint import newest_checkpoint
from budgetft.train.provenance import Provenance
from budgetft.weights import open_checkpoint

MODEL = "tiny-qwen2.5-vl"


def save_weights(folder: Path, seed: int) -> Path:
    """The tiny model with the random weights of ``seed``."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    base = AutoModelForImageTextToText.from_config(model_config(load_model(MODEL)), dtype=torch.float32)
    base.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return save_weights(folder / "one", 1), save_weights(folder / "two", 2)


@pytest.fixture
def weights(bases, tmp_path) -> Path:
    """A folder of weights that a test may damage."""
    return Path(shutil.copytree(bases[0], tmp_path / "weights"))


def swap(weights, bases):
    shutil.copyfile(bases[1] / "model.safetensors", weights / "model.safetensors")


def cut(weights, bases):
    path = weights / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4096])


def lose(weights, bases):
    (weights / "model.safetensors").unlink()


def make_unreadable(weights, bases):
    """A folder in the file's place: no permission stops the user that tests may run as."""
    (weights / "model.safetensors").unlink()
    (weights / "model.safetensors").mkdir()


DAMAGES = (swap, cut, lose, make_unreadable)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_with_its_own_weights_or_not_at_all(make_plan, train, weights, bases, damage, tmp_path):
    plan = make_plan()
    train(plan, steps=2, weights=str(weights), save_every=1)
    (tmp_path / "run" / "summary.json").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    damage(weights, bases)
    with pytest.raises(UsageError) as caught:
        train(plan, steps=2, resume=True, weights=None)
    assert "\n" not in caught.value.message
    if damage is swap:
        assert caught.value.message.count("fingerprint") == 2
    assert {path: path.read_bytes() for path in before} == before
    shutil.copyfile(bases[0] / "model.safetensors", restored(weights))
    assert train(plan, steps=2, resume=True, weights=None).steps == 2


def restored(weights: Path) -> Path:
    path = weights / "model.safetensors"
    if path.is_dir():
        path.rmdir()
    return path


def test_the_same_weights_elsewhere_are_the_same(make_plan, train, weights, tmp_path):
    plan = make_plan()
    train(plan, steps=2, weights=str(weights), save_every=1)
    (tmp_path / "run" / "summary.json").unlink()
    weights.rename(tmp_path / "moved")
    assert train(plan, steps=2, resume=True, weights=str(tmp_path / "moved")).steps == 2


def test_a_run_from_before_the_base_was_kept_still_goes_on(make_plan, train, weights, tmp_path):
    plan = make_plan()
    train(plan, steps=2, weights=str(weights), save_every=1)
    (tmp_path / "run" / "summary.json").unlink()
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "base"}))
    assert train(plan, steps=2, resume=True, weights=None).steps == 2


def test_a_plan_is_of_the_weights_that_it_was_made_for(make_plan, train, weights, bases):
    plan = make_plan()
    model = load_model(MODEL)
    own = plan.replace(model=refer(model, open_checkpoint(str(weights)).base))
    with pytest.raises(UsageError) as caught:
        train(own, steps=1, weights=str(bases[1]))
    assert str(weights) in caught.value.message
    assert str(bases[1]) in caught.value.message
    assert train(own, steps=1, weights=str(weights)).steps == 1


@pytest.fixture
def run(make_plan, train, weights, tmp_path) -> Path:
    train(make_plan(), steps=2, weights=str(weights), save_every=1)
    return tmp_path / "run"


def test_the_adapter_says_what_it_is_of_and_how_it_came_to_be(run, weights):
    base = open_checkpoint(str(weights)).base
    found = Provenance.read_from(run / "adapter")
    assert (found.base, found.steps, found.contract.rank) == (base, 2, 4)
    assert found.last_loss == losses_of(run)[-1]
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(weights)
    gpu = (run / "adapter" / "README.md").read_text()
    identity = json.loads((run / "run.json").read_text())
    hashes = (base.fingerprint, identity["plan_fingerprint"], identity["data_fingerprint"])
    for told in (str(weights), "rank 4", *(f"`{whole[:12]}`" for whole in hashes)):
        assert told in gpu


def test_only_its_own_base_takes_an_adapter_and_only_once(run, weights, bases, tmp_path):
    for source in (run, run / "adapter"):
        with pytest.raises(UsageError) as caught:
            merge_run(source, tmp_path / "merged", weights=str(bases[1]))
        assert str(bases[1]) in caught.value.message
        assert str(weights) in caught.value.message
        assert not (tmp_path / "merged").exists()
    merge_run(run / "adapter", tmp_path / "merged")
    with pytest.raises(UsageError, match="merged model already"):
        merge_run(tmp_path / "merged", tmp_path / "twice")
    with pytest.raises(UsageError, match="in there already"):
        merge_run(run, tmp_path / "twice", weights=str(tmp_path / "merged"))
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_neither_captions_nor_a_merge_are_made_with_other_weights(run, weights, bases, damage, tmp_path):
    damage(weights, bases)
    for use in (lambda: source_of_run(run), lambda: merge_run(run, tmp_path / "merged")):
        with pytest.raises(BudgetftError) as caught:
            use()
        assert "\n" not in caught.value.message
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_was_copied_half_is_told_from_a_whole_one(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    tensors = copy / "adapter" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-64] + bytes(64))
    with pytest.raises(UsageError, match="is not the adapter that"):
        merge_run(copy, tmp_path / "merged")


def test_a_run_folder_copied_while_it_ran_goes_on_from_what_is_whole_in_it(run, make_plan, train, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "adapter")
    newest = sorted((copy / "checkpoints").iterdir())[-1]
    (newest / "optimizer.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="has not come to its end"):
        merge_run(copy, tmp_path / "merged")
    notes: list[str] = []
    assert train(make_plan(), steps=2, out=copy, resume=True, weights=None, on_note=notes.append).steps == 2
    assert any("damaged" in note for note in notes)
    assert newest_checkpoint(copy / "checkpoints", notes.append) is not None
    assert losses_of(copy) == losses_of(run)


def test_a_plan_file_keeps_the_base(make_plan, weights, tmp_path):
    from budgetft.plan import read_plan

    plan = make_plan()
    own = plan.replace(model=refer(load_model(MODEL), open_checkpoint(str(weights)).base))
    write_plan(own, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == own
    assert '"base"' not in plan.model_dump_json()


def test_trackers_get_plain_values_of_a_plan_with_blocks_in_fp32(make_plan):
    from budgetft.train.job import settle
    from budgetft.train.opening import start_trackers

    given = {}

    class Accelerator:
        log_with = ("any",)

        def init_trackers(self, name, config):
            given.update(config)

    plan = make_plan(knobs={"fp32_blocks": ("model.language_model.layers.0.mlp", "model.language_model.layers.1.mlp")})
    start_trackers(Accelerator(), settle(plan, data=None, weights="random", steps=1))
    assert given["fp32_blocks"].count(",") == 1
    assert all(isinstance(value, bool | int | float | str) for value in given.values())
