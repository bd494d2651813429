"""Processes share the frozen layers out: the run of the whole base, with fewer bytes in each, and none waits for ever."""

import json

import pytest
from drawn import draw_examples
from refusing import refusing
from rounding import farthest
from runs import log_of, losses_of
from torch import distributed

from budgetft.errors import BudgetftError
from budgetft.measure.job import planned_job
from budgetft.measure.ledger import Ledger
from budgetft.model import load_model
from budgetft.plan import refer
from budgetft.predict.sharing import saved_bytes
from budgetft.profiles import profiles_folder

ADAPTER = "adapter/adapter_model.safetensors"
LAYERS = 8


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A folder with weights of a tiny model that is deep enough for sharing to save something."""
    from transformers import AutoModelForImageTextToText

    from budgetft.step.build import model_config

    folder = tmp_path_factory.mktemp("weights") / "deep"
    model = load_model("tiny-qwen2.5-vl")
    text = {**model.text, "num_hidden_layers": LAYERS}
    config = model_config(model.replace(config={**model.config, "text_config": text}))
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    described = profiles_folder() / "models" / "tiny-qwen2.5-vl" / "preprocessor_config.json"
    (folder / described.name).write_text(described.read_text())
    return folder


@pytest.fixture
def make_deep_plan(make_plan, deep):
    def make(**options):
        plan = make_plan(**{"learning_rate": 1e-4, **options})
        return plan.replace(model=refer(load_model(str(deep))))

    return make


def summary(run):
    return json.loads((run / "summary.json").read_text())


def test_a_shared_base_gives_the_run_of_a_whole_one_and_holds_what_was_predicted(
    make_deep_plan, train, launch, doubles, same_run, tmp_path, deep
):
    """Three micro-batches of one step, and three of held-out data, do not divide between two."""
    plan = make_deep_plan(micro_batch=1, effective_batch=3)
    held = draw_examples(tmp_path / "held", 3, answer="one {colour} shape").folder
    alone = train(plan, steps=3, out=tmp_path / "alone", weights=str(deep), heldout=held, heldout_every=2)
    planned = plan.replace(gpu=plan.gpu.replace(gpus=2, shared=True))
    saved = saved_bytes(planned_job(planned, device="cpu", evidence="predicted", model=load_model(str(deep))), "fp32")
    planned = planned.replace(estimate=plan.estimate.replace(process_peak_bytes=alone.preflight_peak_bytes - saved))
    options = ("--steps", "3", "--eval-data", str(held), "--eval-every", "2")
    done = launch(planned, *options, shared=True, doubles=True, weights=str(deep))
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    assert same_run.losses(run, tmp_path / "alone")
    evaluated, expected = ([line["heldout_loss"] for line in log_of(one)[1:]] for one in (run, tmp_path / "alone"))
    assert farthest(evaluated, expected) <= same_run.loss
    assert same_run.adapters(run, tmp_path / "alone")
    shared = summary(run)
    assert shared["preflight_peak_bytes"] == shared["predicted_peak_bytes"] == planned.estimate.process_peak_bytes
    assert saved > 0
    assert max(shared["processes_peak_bytes"]) < alone.process_peak_bytes
    assert len(shared["processes_peak_bytes"]) == 2
    assert f"of {LAYERS} layers" in done.stderr
    assert "each process" in done.stdout


def test_a_run_of_whole_bases_goes_on_to_the_same_adapter_where_they_are_shared(make_plan, launch, tmp_path):
    plan, run = make_plan(micro_batch=1, learning_rate=1e-4), tmp_path / "run"
    done = launch(plan, "--steps", "3", "--save-every", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    adapter, expected = (run / ADAPTER).read_bytes(), losses_of(run)
    (run / "summary.json").unlink()  # as if it had been killed after step 2
    (run / "checkpoints" / "step-3").rename(tmp_path / "removed")
    done = launch(plan, "--resume", shared=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "each holds 0.00 GiB of 2 layers" in done.stderr
    assert (run / ADAPTER).read_bytes() == adapter
    assert losses_of(run) == expected


def test_a_base_above_the_budget_loads_where_it_is_shared(make_deep_plan, deep):
    from budgetft.train.job import settle
    from budgetft.train.memory import CpuMemory
    from budgetft.train.opening import load_step
    from budgetft.train.ranks import Ranks

    def load(budget_bytes, ranks):
        plan = make_deep_plan(budget_bytes=budget_bytes)
        memory = CpuMemory(plan.gpu)
        step = load_step(settle(plan, data=None, weights=str(deep), steps=1), memory, ranks, lambda note: None)[1]
        return step, memory.read().allocated_bytes

    _, whole = load(2**30, Ranks())
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)  # it has nobody to ask
    try:
        step, held = load(whole - 1, Ranks(rank=0, world=2, shared=True))
    finally:
        distributed.destroy_process_group()
    assert whole - held == sum(step.shared.layer_bytes) - step.shared.held_bytes > 0
    with pytest.raises(BudgetftError, match="out of memory in phase 'load'"):
        load(whole - 1, Ranks())


@pytest.mark.parametrize("shared", [True, False])
def test_memory_refused_in_one_process_makes_both_do_the_step_again(
    make_plan, train, launch, doubles, same_run, tmp_path, monkeypatch, shared
):
    plan = make_plan(micro_batch=4, effective_batch=8, learning_rate=1e-4)
    train(plan, steps=3, out=tmp_path / "alone")
    monkeypatch.setenv("FAULTY_RANK", "1")
    monkeypatch.setenv("FAULTY", "2 forward 30,2 backward 7,3 vision 2")
    done = launch(plan, "--steps", "3", shared=shared, doubles=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_run.losses(tmp_path / "run", tmp_path / "alone")
    assert same_run.adapters(tmp_path / "run", tmp_path / "alone")
    told = [(one["step"], one["process"], one["phase"], one["reduced_to"]) for one in summary(tmp_path / "run")["fallbacks"]]
    assert told == [(2, 1, "forward", 2), (2, 1, "backward", 1), (3, 1, "vision", 2)]


def test_memory_that_one_process_cannot_have_ends_both_at_once_by_name_and_keeps_the_checkpoint(
    make_plan, launch, tmp_path, monkeypatch
):
    monkeypatch.setenv("FAULTY_RANK", "1")
    monkeypatch.setenv("FAULTY", "3 backward 5,3 backward 5")
    done = launch(make_plan(micro_batch=2), "--steps", "4", "--save-every", "1", shared=True)
    assert done.returncode != 0
    sentence = "error: out of memory in phase 'backward' of step 3, one example at a time (examples example-"
    assert done.stderr.count(sentence) == 2, "one waited for the other until the connection broke"
    assert "--resume goes on after step 2" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir()


@pytest.mark.parametrize("rank", ["0", "1"])
def test_both_end_at_once_with_the_last_finished_step_saved_and_the_refusal_in_log_and_ledger(
    make_plan, launch, tmp_path, monkeypatch, rank
):
    monkeypatch.setenv("FAULTY_RANK", rank)
    monkeypatch.setenv("FAULTY", "3 backward 5,3 backward 5")
    ledger = tmp_path / "ledger.sqlite3"
    done = launch(make_plan(micro_batch=2), "--steps", "4", "--ledger", str(ledger))
    assert done.returncode != 0
    assert done.stderr.count("--resume goes on after step 2") == 2, "one waited for the other until the connection broke"
    assert "starts over" not in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir()
    last = log_of(tmp_path / "run")[-1]
    assert [(one["process"], one["reduced_to"]) for one in last["fallbacks"]] == [(int(rank), 1), (int(rank), None)]
    assert len(Ledger(ledger)) == 1


def test_an_evaluation_out_of_memory_in_the_other_process_is_in_the_log_of_the_first(
    make_plan, train, launch, tmp_path, monkeypatch
):
    pair, four = (draw_examples(tmp_path / str(count), count).folder for count in (2, 4))
    with refusing() as state:  # what each of the two has of a step and of an evaluation
        train(make_plan(micro_batch=2, effective_batch=2), steps=1, heldout=pair, out=tmp_path / "one")
    monkeypatch.setenv("FAULTY_RANK", "1")
    monkeypatch.setenv("FAULTY", f"1 loss {state.counts[1, 'loss']}")
    done = launch(make_plan(micro_batch=2), "--steps", "1", "--eval-data", str(four))
    assert done.returncode == 0, done.stderr[-3000:]
    (fallback,) = summary(tmp_path / "run")["fallbacks"]
    assert (fallback["during"], fallback["process"], fallback["reduced_to"]) == ("evaluation", 1, 1)
    assert len(fallback["examples"]) == 2


def test_a_preflight_that_one_process_cannot_make_ends_both_before_the_first_step(make_plan, launch, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULTY_RANK", "1")
    monkeypatch.setenv("FAULTY", "0 backward 3")
    done = launch(make_plan(micro_batch=2), "--steps", "2", shared=True)
    assert done.returncode != 0
    assert done.stderr.count("error: out of memory in phase 'backward' of the pre-flight") == 2, "one waited for the other"
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_dora_reads_weights_that_are_shared_out_as_it_reads_whole_ones(
    make_deep_plan, train, launch, doubles, same_run, tmp_path, deep
):
    plan = make_deep_plan(micro_batch=1, effective_batch=3, use_dora=True, knobs={"lora": "stock"})
    train(plan, steps=3, out=tmp_path / "alone", weights=str(deep))
    done = launch(plan, "--steps", "3", shared=True, doubles=True, weights=str(deep))
    assert done.returncode == 0, done.stderr[-3000:]
    assert same_run.losses(tmp_path / "run", tmp_path / "alone")
    assert same_run.adapters(tmp_path / "run", tmp_path / "alone")
