"""A run that is killed, stopped or damaged goes on as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from patience import until
from runs import plan_of, train_plan
from safetensors.torch import load_file
from warm import warm

import budgetft
from budgetft.errors import BudgetftError, UsageError
from budgetft.plan import write_plan
from budgetft.train import saving
from budgetft.train.guard import Interrupted
from budgetft.train.saving import Pace

ADAPTER = "adapter/adapter_model.safetensors"
STEPS = 9
RUN = f"""
import signal, typer
from budgetft.cli.train import train
from budgetft.train.log import Log
append = Log.append
def endless(log, record):
    while record.step == {STEPS}:
        signal.pause()
    append(log, record)
Log.append = endless
typer.run(train)
"""
"""A run that does not finish before it is killed, however late that is."""


def losses(run):
    return [(line["step"], line["loss"]) for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())]


def steps_logged(run):
    return (run / "log.jsonl").read_bytes().count(b"\n") if (run / "log.jsonl").exists() else 0


@pytest.fixture(scope="module")
def plan(dataset):
    """With dropout, so that a wrong random state shows."""
    return plan_of(dataset, lora_dropout=0.1, knobs={"lora": "stock", "checkpointed_layers": 0})


@pytest.fixture(scope="module")
def reference(plan, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("reference") / "run"
    train_plan(plan, out, steps=STEPS)
    return out


def interrupt_after(step, signum=signal.SIGINT):
    """A progress callback that signals this process after ``step``."""

    def on_progress(record):
        if record.step == step:
            os.kill(os.getpid(), signum)

    return on_progress


def test_a_run_killed_at_any_step_resumes_to_the_same_bytes(plan, reference, train, tmp_path):
    run, plan_file = tmp_path / "run", tmp_path / "plan.json"
    write_plan(plan, plan_file)
    last = random.randint(1, STEPS - 3)
    command = [sys.executable, "-c", RUN, "--plan", plan_file, "--out", run, "--weights", "random"]
    command += ["--steps", str(STEPS), "--save-every", "3", "--device", "cpu", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(Path(budgetft.__file__).parent.parent)}
    with warm():
        process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE)
    try:
        until(lambda: steps_logged(run) >= last or process.poll() is not None, f"step {last} of the run")
    finally:
        process.kill()
        _, told = process.communicate()
    assert process.returncode == -signal.SIGKILL, told.decode()
    assert last <= steps_logged(run) < STEPS, f"killed after step {last}"

    summary = train(plan, out=run, resume=True, weights=None, save_every=3)
    assert losses(run) == losses(reference), f"killed after step {last}"
    assert (run / ADAPTER).read_bytes() == (reference / ADAPTER).read_bytes()
    assert summary.steps == STEPS


@pytest.mark.parametrize("init", ["gaussian", "orthogonal"])
def test_a_run_of_dora_goes_on_from_a_checkpoint_to_the_same_bytes_at_the_largest_seed_too(dataset, train, tmp_path, init):
    contract = {"use_dora": True, "use_rslora": True, "init_lora": init, "seed": 2**32 - 1, "lora_dropout": 0.1}
    plan = plan_of(dataset, **contract, lr_schedule="linear", knobs={"lora": "stock"})
    train(plan, steps=4, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(plan, steps=4, on_progress=interrupt_after(2))
    train(plan, resume=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert (tmp_path / "run" / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()
    tensors = load_file(tmp_path / "run" / ADAPTER)
    start = load_file(tmp_path / "run" / "checkpoints" / "step-2" / ADAPTER)
    lengths = [name for name in tensors if name.endswith("lora_magnitude_vector")]
    assert len(lengths) * 3 == len(tensors)
    assert any(not torch.equal(tensors[name], start[name]) for name in lengths), "they are learned"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_last_finished_step_and_says_how_to_go_on(plan, reference, train, tmp_path, signum):
    run, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=f"after step 5 of {STEPS}; that step is saved") as caught:
        train(plan, steps=STEPS, save_every=STEPS, on_progress=interrupt_after(5, signum))
    assert caught.value.exit_code == 128 + signum
    assert f"--out {run} --resume" in (caught.value.hint or "")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-5"]
    assert not (run / "adapter").exists()
    assert signal.getsignal(signal.SIGINT) is handler

    train(plan, resume=True)
    assert losses(run) == losses(reference)
    assert (run / ADAPTER).read_bytes() == (reference / ADAPTER).read_bytes()


def test_left_out_saving_takes_a_fiftieth_of_the_time_at_most():
    now = [100.0]
    pace = Pace(None, clock=lambda: now[0])

    def saves(seconds, steps, step_seconds):
        """The steps after which it saves, a save taking ``seconds``."""
        found = []
        for step in range(1, steps + 1):
            now[0] += step_seconds
            if pace.due(step):
                found.append(step)
                with pace.saving():
                    now[0] += seconds
        return found

    assert saves(0.0625, 12, 1.0) == [5, 10], "not more often than every 5 seconds"
    assert saves(1.0, 203, 1.0) == [3, 53, 103, 153, 203], "5 seconds after the last, then every 50"
    assert saves(0.5, 3, 100.0) == [1, 2, 3], "long steps are all saved"


def test_an_explicit_number_of_steps_between_checkpoints_stays_as_it_is():
    assert [step for step in range(1, 8) if Pace(3, clock=lambda: 0.0).due(step)] == [3, 6]


def test_a_run_that_saves_at_its_own_pace_goes_on_to_the_same_bytes(plan, reference, train, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(saving, "SAVE_SHARE", 0.0)
    run = tmp_path / "run"

    def die(record):
        if record.step == 6:
            raise RuntimeError("as good as killed")

    with pytest.raises(RuntimeError, match="as good as killed"):
        train(plan, out=run, steps=STEPS, save_every=None, on_progress=die)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-4", "step-5"]
    train(plan, out=run, resume=True)
    assert losses(run) == losses(reference)
    assert (run / ADAPTER).read_bytes() == (reference / ADAPTER).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_older_one_with_a_warning(plan, train, tmp_path, damage):
    run, notes = tmp_path / "run", []
    with pytest.raises(Interrupted):
        train(plan, steps=6, save_every=2, on_progress=interrupt_after(5))
    before = losses(run)
    newest = run / "checkpoints" / "step-5"
    assert sorted(path.name for path in newest.parent.iterdir()) == ["step-4", "step-5"]  # the older is dropped
    if damage == "cut":
        file = newest / "state.json"
        file.write_bytes(file.read_bytes()[:100])
    elif damage == "changed":
        file = newest / "adapter" / "adapter_model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    else:
        (newest / "optimizer.safetensors").unlink()
    train(plan, resume=True, save_every=2, on_note=notes.append)
    assert any(note.startswith("warning: checkpoint step-5 is damaged") and "step-4" in note for note in notes)
    assert losses(run)[:5] == before
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4, 5, 6]
    assert not newest.exists()


def test_when_every_checkpoint_is_damaged_the_run_is_not_started_over(plan, train, tmp_path):
    with pytest.raises(Interrupted):
        train(plan, steps=3, on_progress=interrupt_after(1))
    (tmp_path / "run" / "checkpoints" / "step-1" / "state.json").write_text("{}")
    with pytest.raises(BudgetftError, match=r"no checkpoint .* is whole"):
        train(plan, resume=True)


def test_a_finished_run_resumes_to_its_summary_without_work(plan, train):
    summary = train(plan, steps=1)
    assert train(plan, resume=True, weights=None, on_progress=pytest.fail) == summary


def test_resuming_something_else_is_refused_with_every_reason(plan, make_plan, train, tmp_path):
    train(plan, steps=1)
    with pytest.raises(
        UsageError, match="started under another plan; its learning-rate schedule was laid out for 1 steps, not 2"
    ):
        train(make_plan(rank=8), resume=True, steps=2)


def test_resuming_where_nothing_was_started_is_refused(plan, train, tmp_path):
    with pytest.raises(UsageError, match="holds no run to resume"):
        train(plan, resume=True)
    assert not (tmp_path / "run").exists()
