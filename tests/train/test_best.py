"""The best step of a run by its held-out loss: kept, made the adapter, and the reason to end early."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from drawn import draw_examples
from runs import adapter_of, log_of

from budgetft.errors import UsageError
from budgetft.train.checkpoint import step_of
from budgetft.train.guard import Interrupted
from budgetft.train.heldout import HeldOut

ADAPTER = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def heldout(tmp_path_factory) -> Path:
    return draw_examples(tmp_path_factory.mktemp("held") / "out", 2, answer="one {colour} shape").folder


@pytest.fixture
def losses(monkeypatch):
    """Let the held-out loss after each step be what is given."""

    def give(*values: float) -> None:
        monkeypatch.setattr(HeldOut, "loss", lambda self, after: values[after - 1])

    return give


def interrupt_after(step):
    def on_progress(record):
        if record.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    return on_progress


def adapter_after(step, plan, train, folder, steps):
    """As an undisturbed run has it after ``step`` of ``steps``."""
    with pytest.raises(Interrupted):
        train(plan, steps=steps, out=folder, on_progress=interrupt_after(step))
    return (folder / "checkpoints" / f"step-{step}" / ADAPTER).read_bytes()


def test_the_adapter_is_that_of_the_step_with_the_lowest_loss_however_many_checkpoints_follow(
    make_plan, train, losses, tmp_path, heldout
):
    plan, notes = make_plan(), []
    losses(3.0, 1.0, 2.0, 1.0, 4.0, 5.0)
    options = {"steps": 6, "save_every": 1, "heldout": heldout, "heldout_every": 1}
    summary = train(plan, **options, keep_best=True, on_note=notes.append)
    run = tmp_path / "run"
    assert (summary.best_step, summary.best_heldout_loss, summary.heldout_loss) == (2, 1.0, 5.0), "the first of equals"
    assert not summary.ended_early
    assert step_of(run / "best") == 2
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-5", "step-6"]
    assert (run / ADAPTER).read_bytes() == adapter_after(2, plan, train, tmp_path / "other", 6)
    assert (run / "model_inputs.json").read_bytes() == (run / "adapter" / "model_inputs.json").read_bytes()
    assert any("the adapter is that of step 2" in note for note in notes)
    plain = train(plan, **options, out=tmp_path / "plain")
    assert (plain.best_step, plain.best_heldout_loss) == (None, None)
    assert (run / ADAPTER).read_bytes() != (tmp_path / "plain" / ADAPTER).read_bytes()


def test_the_best_step_outlives_an_interruption_and_what_is_given_is_kept(make_plan, train, losses, tmp_path, heldout):
    plan, run = make_plan(), tmp_path / "run"
    losses(3.0, 1.0, 2.0, 5.0)
    with pytest.raises(Interrupted):
        train(plan, steps=4, heldout=heldout, heldout_every=1, keep_best=True, on_progress=interrupt_after(3))
    expected = (run / "best" / ADAPTER).read_bytes()
    summary = train(plan, resume=True)
    assert summary.best_step == 2
    assert (run / ADAPTER).read_bytes() == expected
    assert json.loads((run / "run.json").read_text())["keep_best"] is True


def test_a_run_killed_before_the_best_step_was_copied_copies_it_when_it_goes_on(make_plan, train, losses, tmp_path, heldout):
    losses(3.0, 1.0, 2.0, 5.0)
    plan, run = make_plan(), tmp_path / "run"
    with pytest.raises(Interrupted):
        train(plan, steps=4, heldout=heldout, heldout_every=1, keep_best=True, on_progress=interrupt_after(3))
    expected = (run / "best" / ADAPTER).read_bytes()
    shutil.rmtree(run / "best")
    assert train(plan, resume=True).best_step == 2
    assert (run / ADAPTER).read_bytes() == expected


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_a_best_step_that_is_gone_is_told_and_a_later_one_is_taken(make_plan, train, losses, tmp_path, heldout, damage):
    losses(3.0, 1.0, 2.5, 2.0, 2.2)
    plan, run, notes = make_plan(), tmp_path / "run", []
    with pytest.raises(Interrupted):
        train(plan, steps=5, heldout=heldout, heldout_every=1, keep_best=True, on_progress=interrupt_after(3))
    shutil.rmtree(run / "checkpoints" / "step-2")
    if damage == "lost":
        shutil.rmtree(run / "best")
    else:
        (run / "best" / ADAPTER).write_bytes(b"")
    summary = train(plan, resume=True, on_note=notes.append)
    assert any("the checkpoint of step 2, the best so far, was not kept" in note for note in notes)
    assert (summary.best_step, summary.best_heldout_loss) == (4, 2.0)
    assert step_of(run / "best") == 4


def test_losses_of_other_data_are_not_compared(make_plan, train, losses, tmp_path, heldout, dataset):
    losses(1.0, 0.5, 3.0, 2.0)
    plan = make_plan()
    with pytest.raises(Interrupted):
        train(plan, steps=4, heldout=heldout, heldout_every=1, keep_best=True, on_progress=interrupt_after(2))
    summary = train(plan, resume=True, heldout=dataset.folder)
    assert (summary.best_step, summary.best_heldout_loss) == (4, 2.0)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["heldout_since"] == 2


def test_a_run_that_no_longer_improves_ends_finished_with_its_last_step_saved(make_plan, train, losses, tmp_path, heldout):
    losses(3.0, 2.0, 2.5, 2.0, 9.0, 9.0)
    plan, run, notes = make_plan(), tmp_path / "run", []
    options = {"steps": 6, "heldout": heldout, "heldout_every": 1}
    summary = train(plan, **options, early_stopping=2, on_note=notes.append)
    assert (summary.steps, summary.ended_early) == (4, True)
    assert step_of(run / "checkpoints" / "step-4") == 4
    assert any("has not fallen in 2 evaluations" in note for note in notes)
    with pytest.raises(Interrupted):
        train(plan, **options, out=tmp_path / "whole", on_progress=interrupt_after(4))
    assert (run / ADAPTER).read_bytes() == (tmp_path / "whole" / "checkpoints" / "step-4" / ADAPTER).read_bytes()
    notes.clear()
    assert train(plan, resume=True, on_note=notes.append) == summary
    assert notes == [f"the run in {run} is finished; nothing to do"]


def test_a_resumed_run_counts_the_evaluations_of_before(make_plan, train, losses, tmp_path, heldout):
    losses(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    plan = make_plan()
    with pytest.raises(Interrupted):
        train(plan, steps=6, heldout=heldout, heldout_every=1, early_stopping=3, on_progress=interrupt_after(3))
    summary = train(plan, resume=True)
    assert (summary.steps, summary.ended_early) == (4, True)


def test_a_run_that_was_stopped_in_its_last_step_ends_without_another(make_plan, train, losses, tmp_path, heldout):
    losses(1.0, 2.0, 3.0, 4.0)
    plan = make_plan()
    with pytest.raises(Interrupted):
        train(plan, steps=4, heldout=heldout, heldout_every=1, early_stopping=1, on_progress=interrupt_after(2))
    summary = train(plan, resume=True)
    assert (summary.steps, summary.ended_early) == (2, True)
    assert [line["step"] for line in log_of(tmp_path / "run")] == [1, 2]


def test_the_end_of_the_schedule_is_no_early_end_and_0_drops_what_a_run_had(make_plan, train, losses, tmp_path, heldout):
    losses(1.0, 2.0, 3.0, 4.0)
    plan, options = make_plan(), {"steps": 4, "heldout": heldout, "heldout_every": 1}
    assert not train(plan, **options, early_stopping=3, out=tmp_path / "last").ended_early
    with pytest.raises(Interrupted):
        train(plan, **options, early_stopping=2, keep_best=True, on_progress=interrupt_after(1))
    summary = train(plan, resume=True, early_stopping=0, keep_best=False)
    assert (summary.steps, summary.ended_early, summary.best_step) == (4, False, None)
    assert not {"early_stopping", "keep_best"} & set(json.loads((tmp_path / "run" / "run.json").read_text()))


@pytest.mark.parametrize(
    "wish", [{"keep_best": True}, {"early_stopping": 1}, {"sample_captions": 1}], ids=lambda wish: next(iter(wish))
)
def test_what_needs_held_out_data_is_refused_without_them(make_plan, train, tmp_path, wish):
    name = next(iter(wish)).replace("_", "-")
    with pytest.raises(UsageError, match=f"--{name} needs held-out data") as caught:
        train(make_plan(), **wish)
    assert caught.value.hint == "give --eval-data FOLDER"
    assert not (tmp_path / "run").exists()


def test_several_processes_end_together_and_the_first_keeps_the_best_step(make_plan, launch, tmp_path, heldout):
    """With next to no learning rate the loss stays what it is, to the bit: it never falls."""
    plan = make_plan(micro_batch=1, learning_rate=1e-30)
    options = ("--steps", "5", "--eval-data", str(heldout), "--eval-every", "1", "--keep-best", "--early-stopping", "2")
    done = launch(plan, *options)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["ended_early"], summary["best_step"]) == (3, True, 1)
    assert step_of(tmp_path / "run" / "best") == 1
    assert adapter_of(tmp_path / "run")
    assert "of step 1, whose held-out loss of" in done.stdout
    assert "ended early" in done.stdout
