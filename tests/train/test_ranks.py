"""Several processes share a run: the loss curve and the adapter of one process, whatever their number."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from budgetft.errors import UsageError
from budgetft.outcome import CONNECTION, Term
from budgetft.step.shared import ALIGNMENT, SharedLayers
from budgetft.train.opening import tell_peak
from budgetft.train.ranks import Ranks

ADAPTER = "adapter/adapter_model.safetensors"


def test_two_processes_have_the_loss_curve_of_one_also_after_a_resume(make_plan, train, launch, doubles, same_run, tmp_path):
    plan = make_plan(micro_batch=1, learning_rate=1e-4)
    alone = train(plan, steps=5, out=tmp_path / "alone")
    done = launch(plan, "--steps", "5", "--save-every", "2", doubles=True)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    assert same_run.losses(run, tmp_path / "alone")
    assert same_run.adapters(run, tmp_path / "alone")
    summary = json.loads((run / "summary.json").read_text())
    assert len(summary["processes_peak_bytes"]) == 2
    assert summary["examples"] == alone.examples
    # As if it had been killed after step 4.
    adapter = (run / ADAPTER).read_bytes()
    (run / "summary.json").unlink()
    (run / "checkpoints" / "step-5").rename(tmp_path / "removed")
    done = launch(plan, "--resume", doubles=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run / ADAPTER).read_bytes() == adapter


def test_two_processes_start_as_a_user_starts_them(make_plan, launch, tmp_path):
    done = launch(make_plan(micro_batch=1), "--steps", "1", module="budgetft")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads((tmp_path / "run" / "summary.json").read_text())["processes_peak_bytes"]) == 2


def test_processes_share_the_micro_batches_of_a_step_without_leaving_one_out():
    parts = [(0, 1), (2, 3), (4, 5)]
    shared = [Ranks(rank=rank, world=2).share(parts) for rank in (0, 1)]
    assert shared == [[(0, 1), (4, 5)], [(2, 3)]]


def test_more_processes_than_micro_batches_are_refused(make_plan, train, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="launched as 3 processes; a step of this plan has 2 micro-batches"):
        train(make_plan(micro_batch=2))


@pytest.mark.parametrize(("world", "shared", "said"), [("1", "1", "as 1 process;"), ("2", "0", "each with the whole model")])
def test_a_plan_for_gpus_that_share_is_refused_where_they_do_not(make_plan, train, monkeypatch, tmp_path, world, shared, said):
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", shared)
    with pytest.raises(UsageError, match="this plan is for 2 GPUs") as caught:
        train(make_plan(micro_batch=1, gpus=2))
    assert said in caught.value.message
    assert "--num_processes 2" in (caught.value.hint or "")
    assert "--use_fsdp" in (caught.value.hint or "")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("gpus", "held"), [(1, 300), (2, 150 + 2 * 100)])  # of three layers all, or parts and two whole
def test_the_peak_of_a_process_has_what_it_holds_in_place_of_what_was_planned(make_plan, gpus, held):
    unit = ALIGNMENT * 2
    layers = SharedLayers(rank=0, world=2, device=torch.device("cpu"), layer_bytes=[100 * unit] * 3)
    plan = make_plan(micro_batch=1, gpus=gpus)
    terms = (Term(name=CONNECTION, memory_bytes=7 * unit),) * (gpus - 1)
    plan = plan.replace(estimate=plan.estimate.replace(process_peak_bytes=1000 * unit, terms=terms))
    step: Any = SimpleNamespace(shared=layers)
    found = tell_peak(step, plan, Ranks(rank=0, world=2, shared=True), 11 * unit, lambda note: None)
    assert found == (1000 - held + 350 - 7 * (gpus - 1) + 11) * unit


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_a_launch_that_would_do_the_step_in_its_own_way_is_refused_before_anything_is_written(
    make_plan, train, monkeypatch, tmp_path, variable
):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match="which would do the step in its own way") as caught:
        train(make_plan(micro_batch=2))
    assert "--use_fsdp shares the frozen layers" in (caught.value.hint or "")
    assert not (tmp_path / "run").exists()
