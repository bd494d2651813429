"""The study is an ordinary Optuna study: it resumes, and anyone may read it."""

import json
import subprocess
import sys

import pytest
from rounding import arithmetic

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

import optuna
from optuna.trial import TrialState
from patience import HANG_SECONDS

from budgetft.errors import UsageError
from budgetft.search.claims import Claims
from budgetft.search.sampler import distributions
from budgetft.search.space import settings, stock_settings
from budgetft.search.study import CONSTRAINT, knobs_of, make_sampler, open_study, tell, told

READ = """
import json, sys, optuna
study = optuna.load_study(study_name=sys.argv[1], storage=sys.argv[2])
print(json.dumps({
    "direction": study.direction.name,
    "best": study.best_trial.params["micro_batch"],
    "trials": [[t.state.name, t.value, t.constraints, t.user_attrs.get("status")] for t in study.get_trials()],
    "budgetft": "budgetft" in sys.modules,
}))
"""


@pytest.fixture
def storage(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'studies.sqlite3'}"


@pytest.fixture
def open_again(make_truth, storage):
    """The study of a truth's job in a file, with its grid, opened anew at every call."""
    truth = make_truth(0)
    grid = [*settings(truth.formula.job), *stock_settings(truth.formula.job)]
    estimates = [truth.formula.estimate(knobs) for knobs in grid]

    def open_it(name: str = "residual"):
        sampler = make_sampler(name, grid, estimates, budget_bytes=truth.budget_bytes, seed=0)
        return open_study("a study", storage, sampler), grid, truth

    return open_it


def report(study, truth, grid, outcome):
    """Tell ``outcome`` as the planner does for a setting that it chose itself."""
    trial = Claims(study, distributions(grid), shared=False).take(outcome.knobs)
    assert knobs_of(trial, grid[0], 32) == outcome.knobs
    tell(study, trial, outcome, truth.formula.estimate(outcome.knobs))


def test_a_study_that_is_opened_again_has_its_trials_and_closes_what_was_left_running(open_again):
    study, grid, truth = open_again()
    for knobs in (grid[0], grid[-1]):
        report(study, truth, grid, truth.outcome(knobs))
    left = study.ask(distributions(grid))
    assert study.get_trials()[left.number].state == TrialState.RUNNING

    again, _, _ = open_again()
    assert [trial.state for trial in again.get_trials()] == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL]
    assert again.get_trials()[:2] == study.get_trials()[:2]
    assert [outcome.knobs for outcome in told(again)] == [grid[0], grid[-1]]
    report(again, truth, grid, truth.outcome(grid[1]))
    assert len(open_again()[0].get_trials()) == 4


def test_what_was_told_comes_back_as_the_same_outcome(open_again):
    study, grid, truth = open_again()
    given = [truth.outcome(grid[0]), truth.outcome(grid[0]).replace(knobs=grid[3], status="oom", phase="loss", detail="☃")]
    for outcome in given:
        report(study, truth, grid, outcome)
    assert told(open_again()[0]) == given


def test_out_of_memory_is_a_finished_trial_that_broke_the_constraint_and_a_crash_is_a_failed_one(open_again):
    study, grid, truth = open_again()
    fine = truth.outcome(grid[0])
    cases = {
        "ok": fine,
        "oom": fine.replace(status="oom", process_peak_bytes=None, samples_per_second=None),
        "over_budget": fine.replace(status="over_budget", process_peak_bytes=truth.budget_bytes + 100, samples_per_second=None),
        "nonfinite": fine.replace(status="nonfinite", samples_per_second=None),
        "timeout": fine.replace(status="timeout", process_peak_bytes=None, samples_per_second=None),
        "crash": fine.replace(status="crash", process_peak_bytes=None, samples_per_second=None, detail="why"),
    }
    for index, outcome in enumerate(cases.values()):
        report(study, truth, grid, outcome.replace(knobs=grid[index]))
    trials = dict(zip(cases, study.get_trials(), strict=True))

    assert [trials[name].state.name for name in cases] == ["COMPLETE"] * 3 + ["FAIL"] * 3
    assert trials["ok"].value == fine.samples_per_second
    assert trials["ok"].constraints[CONSTRAINT] == arithmetic(fine.process_peak_bytes / truth.budget_bytes - 1, scale=1.0)
    assert trials["ok"].constraints[CONSTRAINT] < 0
    assert trials["oom"].value == trials["over_budget"].value == 0.0
    assert trials["oom"].constraints[CONSTRAINT] >= 0.0199
    assert trials["over_budget"].constraints[CONSTRAINT] == arithmetic(100 / truth.budget_bytes, scale=1.0)
    assert trials["crash"].user_attrs["detail"] == "why"
    assert study.best_trial.number == trials["ok"].number


def test_plain_optuna_in_another_process_reads_states_values_and_constraints(open_again, storage):
    study, grid, truth = open_again()
    report(study, truth, grid, truth.outcome(grid[0]))
    report(study, truth, grid, truth.outcome(grid[1]).replace(status="oom", samples_per_second=None))
    done = subprocess.run(
        [sys.executable, "-c", READ, "a study", storage], capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["budgetft"] is False
    assert found["direction"] == "MAXIMIZE"
    assert found["best"] == grid[0].micro_batch
    (ok, ok_value, ok_constraints, _), (oom, oom_value, oom_constraints, status) = found["trials"]
    assert (ok, oom, status) == ("COMPLETE", "COMPLETE", "oom")
    assert ok_constraints[CONSTRAINT] < 0 < oom_constraints[CONSTRAINT]
    assert ok_value > oom_value == 0.0


@pytest.mark.parametrize("name", ["residual", "tpe", "gp"])
def test_every_sampler_can_be_chosen_and_continues_the_same_study(open_again, name):
    if name == "gp":
        pytest.importorskip("scipy", reason="Optuna's GPSampler needs scipy")
        pytest.importorskip("torch", reason="Optuna's GPSampler needs torch")
    study, grid, truth = open_again(name)
    expected = {"residual": "ResidualSampler", "tpe": "TPESampler", "gp": "GPSampler"}[name]
    assert type(study.sampler).__name__ == expected
    for knobs in (grid[0], grid[20], grid[40], grid[60], grid[-3]):
        report(study, truth, grid, truth.outcome(knobs))
    trial = open_again(name)[0].ask(distributions(grid))
    assert set(trial.params) == set(distributions(grid))
    assert trial.number == 5


@pytest.mark.parametrize("storage", ["sqlite:////proc/no/such/place.sqlite3", "nonsense", "mysql://"])
def test_a_storage_that_cannot_be_used_is_refused_by_name(storage):
    with pytest.raises(UsageError, match="cannot use") as caught:
        open_study("a study", storage, optuna.samplers.RandomSampler())
    assert storage in caught.value.message
