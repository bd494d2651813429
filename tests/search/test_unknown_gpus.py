"""Searches on GPUs that nobody has calibrated: made-up ones, and grids that were measured (reports/prediction)."""

import random
import sys

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from budgetft.predict.calibrate import load_calibration
from budgetft.predict.estimator import Estimator
from budgetft.profiles import profiles_folder

MOST_PROBES = 12


@pytest.fixture(scope="module")
def reports():
    """The modules of reports/prediction that draw GPUs and replay grids."""
    folder = str(profiles_folder().parent / "reports" / "prediction")
    sys.path.insert(0, folder)
    try:
        import made_up
        import replay
        import replaying
    finally:
        sys.path.remove(folder)
    return made_up, replay, replaying


@pytest.mark.parametrize("seed", [11, 12])
def test_on_four_made_up_gpus_little_is_lost_within_twelve_probes(reports, seed):
    """A tenth at most on each: the report has 40 of another seed, where the worst was 8 %."""
    made_up, _, replaying = reports
    draw, done = random.Random(f"made-up {seed}"), 0
    while done < 2:
        one = made_up.make(draw, done)
        job = made_up.job_for(draw, one)
        if job is None:
            continue
        estimator = made_up.estimator_of(job)
        found = replaying.search(
            estimator, made_up.truth_of(one, estimator), sampler="residual", seed=seed, max_probes=MOST_PROBES
        )
        assert found.regret <= 0.1
        assert found.probes <= MOST_PROBES
        assert found.lost <= 1
        done += 1


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize(
    "flat", [False, pytest.param(True, marks=pytest.mark.sweep)], ids=["noise as repeated", "noise of 14 percent"]
)
def test_on_a_measured_grid_the_plan_is_within_five_percent_of_the_best(reports, number, flat):
    _, replay, replaying = reports
    _, job, measured, allocator = [replay.h100_grid(), *replay.h200_grids()][number]
    estimator = Estimator(job, calibration=load_calibration("no GPU has this name"))
    found = replaying.search(
        estimator,
        replay.truths(measured, flat=flat),
        sampler="residual",
        seed=1,
        max_probes=MOST_PROBES,
        allocator=allocator,
    )
    assert found.regret <= 0.05
    assert found.probes <= MOST_PROBES


@pytest.mark.parametrize("most", [4, 5, 6])
def test_few_probes_still_give_the_best_of_what_was_seen(reports, most):
    _, replay, replaying = reports
    _, job, measured, allocator = replay.h200_grids()[0]
    estimator = Estimator(job, calibration=load_calibration("no GPU has this name"))
    truth, seen = replay.truths(measured, flat=False), []
    found = replaying.search(
        estimator,
        truth,
        sampler="residual",
        seed=3,
        max_probes=most,
        allocator=allocator,
        on_event=lambda event: seen.append(event.outcome.knobs) if event.outcome and event.outcome.fits else None,
    )
    best = max(truth[knobs].samples_per_second for knobs in seen)
    assert truth[found.winner].samples_per_second >= 0.97 * best, "but for the noise of one reading each"
