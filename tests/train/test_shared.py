"""Processes share the frozen layers out: the run of the whole base, with fewer bytes in each, and none waits for ever."""

import json

import pytest
from safetensors.torch import load_file

ADAPTER = "adapter/adapter_model.safetensors"


def lines(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run):
    return [line["loss"] for line in lines(run)]


def test_a_shared_base_has_the_loss_curve_of_a_whole_one_also_where_micro_batches_do_not_divide_and_after_a_resume(
    make_plan, train, launch, tmp_path
):
    plan = make_plan(micro_batch=1, effective_batch=3, learning_rate=1e-4)
    train(plan, steps=4, out=tmp_path / "alone")
    done = launch(plan, "--steps", "4", "--save-every", "2", shared=True)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stderr)
    run = tmp_path / "run"
    assert losses(run) == pytest.approx(losses(tmp_path / "alone"), rel=1e-6)
    found, expected = load_file(run / ADAPTER), load_file(tmp_path / "alone" / ADAPTER)
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-5
