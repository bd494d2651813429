"""Deterministic algorithms where they are asked for, and only there."""

import os

import torch

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, describe, parse_knob
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings, stock_settings
from budgetft.step.determinism import FIXED, WORKSPACE, deterministic
from budgetft.workload import Shape, Workload


def test_the_block_is_deterministic_and_what_follows_is_as_before(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    filling = torch.utils.deterministic.fill_uninitialized_memory
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()
        assert WORKSPACE not in os.environ
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ[WORKSPACE] == FIXED
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory is filling


def test_a_workspace_of_the_user_s_stays(monkeypatch):
    monkeypatch.setenv(WORKSPACE, ":16:8")
    with deterministic(True):
        assert os.environ[WORKSPACE] == ":16:8"


def test_a_deterministic_job_has_it_in_every_setting_and_takes_no_other_bytes():
    shape = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
    job = Job(
        gpu=load_gpu("v100-16g"), budget_bytes=14 * 2**30, model=load_model("qwen2.5-vl-3b"), contract=Contract(),
        workload=Workload.uniform(shape), evidence="predicted",
    )  # fmt: skip
    same = job.replace(deterministic=True)
    assert all(knobs.deterministic for knobs in [*settings(same), *stock_settings(same)])
    assert not any(knobs.deterministic for knobs in [*settings(job), *stock_settings(job)])
    assert job.fingerprint() != same.fingerprint()
    knobs = settings(job)[0]
    assert job.build_key(knobs) != job.build_key(knobs.replace(deterministic=True))
    assert Estimator.combined(knobs.replace(deterministic=True)) == Estimator.combined(knobs)


def test_the_knob_is_read_told_and_written_only_where_it_is_set():
    knobs = Knobs(micro_batch=1, grad_accum=1, checkpointed_layers=0)
    assert "deterministic" not in knobs.model_dump()
    assert "deterministic" in describe(knobs.replace(deterministic=True))
    assert parse_knob("deterministic=true") == ("deterministic", True)


def test_a_run_keeps_it_and_has_the_same_bits(tmp_path, monkeypatch):
    import sys
    from pathlib import Path

    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "train"))
    monkeypatch.delenv(WORKSPACE, raising=False)
    from drawn import draw_examples
    from runs import adapter_of, log_of, plan_of, train_plan

    assert "runs" in sys.modules
    plan = plan_of(draw_examples(tmp_path / "data", 4))
    train_plan(plan, tmp_path / "one", steps=2, deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()
    train_plan(plan, tmp_path / "two", steps=2)
    kept = (tmp_path / "one" / "run.json").read_text()
    assert '"deterministic": true' in kept
    one, two = (adapter_of(tmp_path / name) for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)  # on a CPU they are the same anyway
    assert [row["loss"] for row in log_of(tmp_path / "one")] == [row["loss"] for row in log_of(tmp_path / "two")]
