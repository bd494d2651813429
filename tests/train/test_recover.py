"""Running out of memory in a run: the step is done again in smaller pieces, and what is learned stays the same."""

import json
import os
import random
import signal

import pytest
from doubles import in_doubles
from drawn import draw_examples
from refusing import refusing
from runs import log_of, plan_of, train_plan

from budgetft.errors import BudgetftError
from budgetft.train.guard import Interrupted
from budgetft.train.other_processes import OtherProcesses
from budgetft.train.readings import OtherProcess

STEPS = 4
PHASES = ("load", "vision", "forward", "loss", "backward", "optimizer")


@pytest.fixture
def plan(make_plan):
    # Not Adam's first steps at full speed: it divides noise by noise where a gradient is all but zero.
    return make_plan(micro_batch=4, learning_rate=1e-4)


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    """An undisturbed run's folder, and how many allocations each phase of each of its steps made."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    with in_doubles(), refusing() as state:
        train_plan(plan_of(dataset, micro_batch=4, learning_rate=1e-4), run, steps=STEPS)
    return run, state.counts


def test_a_refused_allocation_anywhere_in_a_step_changes_no_loss(plan, train, doubles, tmp_path, undisturbed, same_run):
    expected, counts = undisturbed
    draw = random.Random(0)
    for number, phases in enumerate((PHASES[:3], PHASES[3:])):  # one a step: each step starts at its planned size again
        places = [(step, phase, draw.randint(1, counts[step, phase])) for step, phase in enumerate(phases, start=1)]
        with refusing(*places) as state:
            summary = train(plan, out=tmp_path / f"run-{number}", steps=STEPS)
        assert state.refused == places
        assert same_run.losses(tmp_path / f"run-{number}", expected), places
        assert same_run.adapters(tmp_path / f"run-{number}", expected), places
        told = [(one.step, one.phase, one.micro_batch, one.reduced_to) for one in summary.fallbacks]
        assert told == [(step, phase, 4, 2) for step, phase, _ in places]


def test_every_allocation_of_the_first_update_may_be_refused(plan, train, doubles, tmp_path, undisturbed, same_run):
    """The first one makes Adam's states: a half-made set must not survive."""
    expected, counts = undisturbed
    count = counts[1, "optimizer"]
    for number, depth in enumerate({count // 2, count}):
        with refusing((1, "optimizer", depth)) as state:
            train(plan, out=tmp_path / f"run-{number}", steps=STEPS)
        assert len(state.refused) == 1
        assert same_run.adapters(tmp_path / f"run-{number}", expected)


def test_a_fallback_is_told_logged_with_its_examples_and_ends_with_the_step(plan, train, tmp_path):
    notes = []
    with refusing((2, "backward", 5), (2, "forward", 3)):
        summary = train(plan, steps=STEPS, on_note=notes.append)
    assert [len(line["fallbacks"]) for line in log_of(tmp_path / "run")] == [0, 2, 0, 0]
    first, second = summary.fallbacks
    assert {first.reduced_to, second.reduced_to} == {2, 1}
    assert len(first.examples) == 4
    assert set(second.examples) < set(first.examples)
    assert any(note.startswith("warning: out of memory in phase") and first.examples[0] in note for note in notes)


def test_memory_refused_in_the_update_names_all_examples_of_the_step(make_plan, train, tmp_path):
    plan = make_plan(micro_batch=2, effective_batch=6)
    with refusing() as state:
        train(plan, out=tmp_path / "undisturbed", steps=2)
    with refusing((2, "optimizer", state.counts[2, "optimizer"])):
        summary = train(plan, steps=2)
    (fallback,) = summary.fallbacks
    assert (fallback.phase, fallback.micro_batch, fallback.reduced_to) == ("optimizer", 2, 1)
    assert len(fallback.examples) == 6


def test_a_batch_that_does_not_fit_whole_is_done_in_parts_under_the_cap(make_plan, train, doubles, tmp_path, same_run):
    """The cap itself refuses, in every step: the data is heavier than the budget allows at this micro-batch."""
    from budgetft.train.loop import Training

    train(make_plan(micro_batch=1, learning_rate=1e-4), out=tmp_path / "small", steps=3)
    train(make_plan(micro_batch=4, learning_rate=1e-4), out=tmp_path / "large", steps=3)
    peaks = [json.loads((tmp_path / name / "summary.json").read_text())["process_peak_bytes"] for name in ("small", "large")]
    budget = (2 * peaks[0] + peaks[1]) // 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_preflight", lambda self, micros: None)
        summary = train(make_plan(micro_batch=4, learning_rate=1e-4, budget_bytes=budget), steps=3)
    assert {fallback.step for fallback in summary.fallbacks} == {1, 2, 3}
    assert same_run.losses(tmp_path / "run", tmp_path / "small")
    assert summary.process_peak_bytes <= budget
    assert not summary.over_budget


def test_one_example_that_does_not_fit_ends_the_run_by_name_and_keeps_the_checkpoint(plan, train, tmp_path):
    tries = [(3, "backward", 5)] * 3  # 4, 2 and 1 at a time
    with (
        refusing(*tries),
        pytest.raises(BudgetftError, match=r"step 3, one example at a time \(examples example-\d\)") as caught,
    ):
        train(plan, steps=STEPS, save_every=1)
    assert "--resume goes on after step 2" in (caught.value.hint or "")
    assert (tmp_path / "run" / "checkpoints" / "step-2").is_dir()


def test_a_run_that_ends_out_of_memory_keeps_its_finished_steps_its_record_and_the_ledgers(
    plan, train, doubles, tmp_path, undisturbed, same_run
):
    run, outcomes = tmp_path / "run", []
    with refusing(*[(3, "backward", 5)] * 3), pytest.raises(BudgetftError, match="step 3, one example at a time") as caught:
        train(plan, steps=STEPS, on_refused=outcomes.append)
    assert "--resume goes on after step 2" in (caught.value.hint or "")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"]
    assert [(outcome.status, outcome.phase, outcome.knobs) for outcome in outcomes] == [("oom", "backward", plan.knobs)]
    *finished, last = log_of(run)
    assert [line["step"] for line in finished] == [1, 2]
    assert last["unfinished_step"] == 3
    assert [(one["micro_batch"], one["reduced_to"]) for one in last["fallbacks"]] == [(4, 2), (2, 1), (1, None)]

    summary = train(plan, resume=True, on_refused=pytest.fail)
    assert same_run.losses(run, undisturbed[0])
    assert [len(line["fallbacks"]) for line in log_of(run)] == [0, 0, 3, 0]
    assert [one.reduced_to for one in summary.fallbacks] == [2, 1, None]


def test_the_ledger_learns_of_a_micro_batch_of_one_that_does_not_fit(make_plan, train):
    plan, outcomes = make_plan(micro_batch=1), []
    with refusing((1, "backward", 5)), pytest.raises(BudgetftError, match="one example at a time") as caught:
        train(plan, steps=2, on_refused=outcomes.append)
    assert "starts over from step 1" in (caught.value.hint or "")
    assert [outcome.knobs for outcome in outcomes] == [plan.knobs]


def test_what_a_step_met_before_a_signal_is_not_lost_either(plan, train, tmp_path):
    def interrupt(outcome):
        os.kill(os.getpid(), signal.SIGINT)

    with refusing((2, "backward", 5)), pytest.raises(Interrupted, match="after step 1 of 2; that step is saved"):
        train(plan, steps=2, on_refused=interrupt)
    summary = train(plan, resume=True)
    assert [(one.step, one.reduced_to) for one in summary.fallbacks] == [(2, 2)]


def test_an_image_that_goes_missing_ends_the_run_with_its_finished_steps_saved(make_plan, train, tmp_path):
    data = draw_examples(tmp_path / "data", 7)

    def remove(record):
        if record.step == 2:
            for image in data.folder.rglob("*.png"):
                image.unlink()

    with pytest.raises(BudgetftError) as caught:
        train(make_plan(data=data.folder), steps=12, on_progress=remove)
    finished = (tmp_path / "run" / "log.jsonl").read_bytes().count(b"\n")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{finished}"]
    assert f"--resume goes on after step {finished}" in (caught.value.hint or "")


def test_a_other_process_is_told_once_and_kept_with_its_largest_bytes():
    a, b = OtherProcess(pid=1, name="python", memory_bytes=2**30), OtherProcess(pid=2, name="jupyter", memory_bytes=None)
    here, notes = [[a], [a, b], [a.replace(memory_bytes=2**31)], []], []
    looks = iter(here)
    other_processes = OtherProcesses(lambda: next(looks), notes.append)
    for number in range(4):
        other_processes.look(f"since step {number}")
    assert [note.split(";")[0] for note in notes] == [
        "warning: process 1 (python, 1.00 GiB) is on the GPU since step 0",
        "warning: process 2 (jupyter, an unknown number of bytes) is on the GPU since step 1",
    ]
    assert other_processes.seen == (a.replace(memory_bytes=2**31), b)


def test_data_of_equal_ids_is_made_again_from_the_same_examples(make_plan, train, doubles, tmp_path, same_run):
    """More steps than data: the same example can be in a step twice, and is in its second try too."""
    data = draw_examples(tmp_path / "two", 2)
    plan = make_plan(micro_batch=4, data=data.folder, learning_rate=1e-4)
    train(plan, out=tmp_path / "undisturbed", steps=2)
    with refusing((2, "forward", 9)):
        train(plan, steps=2)
    assert same_run.losses(tmp_path / "run", tmp_path / "undisturbed")
    assert same_run.adapters(tmp_path / "run", tmp_path / "undisturbed")


def test_a_fallback_is_handed_on_as_an_outcome_of_the_planned_setting_once(plan, train):
    outcomes = []
    with refusing((1, "loss", 1), (3, "backward", 7)):
        train(plan, steps=STEPS, on_refused=outcomes.append)
    (outcome,) = outcomes
    assert (outcome.status, outcome.phase, outcome.knobs) == ("oom", "loss", plan.knobs)
    assert (outcome.budget_bytes, outcome.evidence) == (plan.gpu.budget_bytes, "predicted")
    assert "in step 1 of a run" in outcome.detail
    assert "example-" in outcome.detail


def test_a_preflight_that_does_not_fit_is_handed_on_too(make_plan, train):
    outcomes = []
    with pytest.raises(BudgetftError, match="of the pre-flight"):
        train(make_plan(budget_bytes=50 * 2**20), on_refused=outcomes.append)
    assert [outcome.status for outcome in outcomes] == ["oom"]
    assert "in the pre-flight" in outcomes[0].detail


def test_memory_that_others_hold_is_not_blamed_on_the_setting(plan, train):
    from budgetft.train.memory import CpuMemory

    outcomes = []
    with pytest.MonkeyPatch.context() as patch, refusing((1, "loss", 1)):
        patch.setattr(CpuMemory, "crowded", lambda self: True)
        patch.setattr(CpuMemory, "other_processes", lambda self: (OtherProcess(pid=7, name="python", memory_bytes=5 * 2**30),))
        summary = train(plan, steps=1, on_refused=outcomes.append)
    assert outcomes == []
    assert summary.fallbacks[0].crowded
    assert (
        summary.fallbacks[0].other_processes
        == summary.other_processes
        == (OtherProcess(pid=7, name="python", memory_bytes=5 * 2**30),)
    )
