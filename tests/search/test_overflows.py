"""A plan in fp16 of weights that are at hand knows which blocks overflow, before anything is tried."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
from drawn import draw_examples
from overflowing import save_overflowing
from runs import train_plan

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from budgetft.contract import Contract
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_workload
from budgetft.errors import UsageError
from budgetft.gpu import load_gpu
from budgetft.measure.job import planned_job
from budgetft.model import load_model
from budgetft.precision import Precision, Stream
from budgetft.profiles import profiles_folder
from budgetft.search.overflows import HEAVIEST, Search, heaviest, planned_precision, spread
from budgetft.search.run import PlanRequest, make_plan, precision_of
from budgetft.search.space import settings, stock_settings
from budgetft.train.folder import RunFolder
from budgetft.units import GIB
from budgetft.value import read_json
from budgetft.weights import open_checkpoint
from budgetft.workload import Shape

MODEL = "tiny-qwen2.5-vl"
BLOCKS = ("model.language_model.layers.1.mlp", "model.visual.blocks.2.mlp")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = save_overflowing(MODEL, tmp_path_factory.mktemp("w") / "w", BLOCKS, factor=1000.0)
    for path in (profiles_folder() / "models" / MODEL).iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return draw_examples(tmp_path_factory.mktemp("data") / "d", 6)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Where memory models are kept: traced once for all tests here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def request_of(weights, data, cache):
    told = []

    def make(gpu="v100-16g", **changes):
        model, contract = load_model(str(weights)), Contract(rank=4, effective_batch=4)
        workload = measure_workload(data, load_processor(model), model, contract)
        fields = {
            "gpu": load_gpu(gpu), "budget_bytes": GIB, "model": model, "contract": contract, "data": str(data.folder),
            "workload_under": lambda contract: workload, "probe": "never", "on_event": lambda event: told.append(event.text),
        }  # fmt: skip
        return PlanRequest(**{**fields, **changes})

    make.told = told
    return make


@pytest.fixture(autouse=True)
def _in_cache(cache, monkeypatch):
    monkeypatch.setenv("BUDGETFT_CACHE", str(cache))


@pytest.fixture(scope="module")
def plan(request_of, cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BUDGETFT_CACHE", str(cache))
        return make_plan(request_of())


@pytest.fixture
def forgotten(cache):
    """Nothing is known of what overflows."""
    for path in (cache / "precision").glob("*"):
        path.unlink()


def test_the_plan_has_them_in_its_knobs_and_a_run_finds_the_same(plan, request_of, tmp_path):
    assert set(plan.knobs.fp32_blocks) == set(BLOCKS)
    assert plan.precision is not None
    assert set(plan.precision.fp32_blocks) == set(BLOCKS)
    assert plan.model.base is not None
    assert any("looking for blocks" in text for text in request_of.told)
    notes = []
    summary = train_plan(plan, tmp_path / "run", weights=None, steps=2, on_note=notes.append)
    assert set(summary.fp32_blocks) == set(BLOCKS)
    assert any("as planned" in note for note in notes)
    assert not any("does not know of" in note for note in notes)
    found = Precision.read(read_json(RunFolder(tmp_path / "run").precision), source="run")
    assert set(found.fp32_blocks) == set(BLOCKS)


def search_of(weights, plan, data):
    return Search(
        model=load_model(str(weights)), contract=plan.contract, checkpoint=open_checkpoint(str(weights)), data=data.folder,
        workload=plan.workload,
    )  # fmt: skip


def test_what_was_found_is_not_looked_for_again_but_in_other_weights(plan, weights, data, tmp_path, monkeypatch):
    monkeypatch.setattr("budgetft.search.overflows.look", lambda search: pytest.fail("looked again"))
    assert set(planned_precision(search_of(weights, plan, data), lambda text: None).fp32_blocks) == set(BLOCKS)
    sound = save_overflowing(MODEL, tmp_path / "sound", (), factor=1.0)
    for path in (profiles_folder() / "models" / MODEL).iterdir():
        if not (sound / path.name).exists():
            (sound / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr("budgetft.search.overflows.look", lambda search: Precision())
    assert planned_precision(search_of(sound, plan, data), lambda text: None).fp32_blocks == ()


def test_a_run_says_which_blocks_its_plan_did_not_know_of(plan, tmp_path):
    unaware = plan.replace(knobs=plan.knobs.replace(fp32_blocks=()))
    notes = []
    train_plan(unaware, tmp_path / "run", weights=None, steps=1, on_note=notes.append)
    told = next(note for note in notes if "does not know of" in note)
    assert all(name in told for name in BLOCKS)
    assert told.startswith("warning")


@pytest.mark.usefixtures("forgotten")
def test_hidden_states_that_leave_fp16_are_refused_by_name(request_of, monkeypatch):
    stream = Stream(module="model.language_model.layers.1", largest=1e5)
    monkeypatch.setattr("budgetft.search.overflows.look", lambda search: Precision(stream=stream))
    with pytest.raises(UsageError, match="cannot be trained in fp16: after model") as caught:
        make_plan(request_of())
    assert "bf16" in (caught.value.hint or "")


def test_a_gpu_that_computes_in_bf16_is_not_looked_at(request_of, monkeypatch):
    monkeypatch.setattr("budgetft.search.overflows.look", lambda search: pytest.fail("looked"))
    asked = request_of("rtx3090")
    assert precision_of(asked, None, open_checkpoint(asked.model.weights)) is None


def test_every_setting_of_the_job_has_them_but_the_stock_recipe_and_towers_that_are_not_there(plan):
    job = planned_job(plan, device="cuda", evidence="predicted")
    assert {knobs.fp32_blocks for knobs in settings(job)} == {job.fp32_blocks}
    assert {knobs.fp32_blocks for knobs in settings(job, "cached")} == {(BLOCKS[0],)}
    assert {knobs.fp32_blocks for knobs in stock_settings(job)} == {()}
    assert job.fingerprint() != job.replace(fp32_blocks=()).fingerprint()


def test_the_heaviest_examples_are_those_of_each_kind():
    shapes = [Shape(images=(), text_tokens=10 + n, supervised_tokens=5) for n in range(20)]
    shapes[3] = Shape(images=((280, 280),), text_tokens=20, supervised_tokens=5)
    shapes[7] = Shape(images=(), text_tokens=28, supervised_tokens=27)
    chosen = heaviest(shapes, 28)
    assert chosen[0] == 3
    assert 7 in chosen
    assert len(chosen) == len(set(chosen)) == HEAVIEST
    assert heaviest(shapes[:1], 28) == [0]
    assert spread(3, 5) == [0, 1, 2]
    assert spread(100, 4) == [0, 25, 50, 75]
