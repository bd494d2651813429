"""Planning problems of the scripts, and plans made by hand."""

import json

import numpy as np
import pytest
from reported import harness
from safetensors.numpy import save_file

from budgetft.contract import Contract
from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.plan import read_plan, write_plan
from budgetft.predict.calibrate import load_calibration
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

jobs, small = harness("jobs"), harness("small")


def test_a_job_is_of_the_usual_example_and_the_gpus_own_budget_unless_told_otherwise():
    made = jobs.job("v100-16g", "tiny-qwen2.5-vl")
    assert made.workload == Workload.uniform(Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160))
    assert (made.budget_bytes, made.evidence, made.host) == (14 * GIB, "predicted", None)
    other = jobs.job("v100-16g", "tiny-qwen2.5-vl", budget_bytes=GIB, host="h100-80g", evidence="emulated")
    assert other.host is not None
    assert (other.budget_bytes, other.host.name) == (GIB, "h100-80g")


def test_a_gpu_that_nobody_calibrated_has_no_calibration_of_another():
    assert jobs.uncalibrated() == load_calibration("also no name of a GPU")


def test_a_plan_made_by_hand_is_of_its_data_and_can_be_written_and_read(tmp_path):
    data = small.draw_examples(tmp_path / "data", 3)
    workload = Workload.uniform(jobs.shape()).replace(examples=len(data), fingerprint=data.fingerprint)
    knobs = Knobs(micro_batch=1, grad_accum=4, checkpointed_layers=0)
    contract, model = Contract(effective_batch=4), load_model(small.TINY)
    plan = small.hand_made("v100-16g", model, data, contract, knobs, budget_bytes=GIB, workload=workload)
    write_plan(plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert plan.gpu.budget_bytes == GIB
    assert plan.data == str(data.folder)


def test_hidden_files_do_not_count_as_contents_of_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("x")
    (tmp_path / ".lock").write_text("y")
    assert small.contents(tmp_path) == {"a/x.txt": b"x"}


def test_two_runs_are_apart_by_their_losses_and_by_a_tensors_norm(tmp_path):
    for name, loss, value in (("one", 2.2, 1.5), ("other", 2.0, 1.0)):
        run = tmp_path / name
        small.adapter(run).parent.mkdir(parents=True)
        save_file({"a": np.full(4, value, np.float32), "b": np.ones(2, np.float32)}, small.adapter(run))
        rows = [{"step": 1, "loss": 1.0}, {"during": "evaluation"}, {"step": 2, "loss": loss}]
        (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert small.losses(tmp_path / "other") == [(1, 1.0), (2, 2.0)]
    assert small.apart(tmp_path / "one", tmp_path / "other") == pytest.approx((0.1, 0.5))
    assert small.apart(tmp_path / "one", tmp_path / "one") == (0, 0)
