"""The residual sampler, replayed against errors of prediction that it has never seen."""

import math

import numpy as np
import pytest
from rounding import UNITS

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from optuna.storages import InMemoryStorage

from budgetft.search.sampler import PEAK_PRIOR, SURE, TRIES, WORTHWHILE, ResidualSampler, distributions, parameters
from budgetft.search.space import settings, stock_settings
from budgetft.search.study import knobs_of, open_study, tell

SEEDS = range(10)
MOST = 14


class Replay:
    """A search by the sampler alone, as the planner drives it."""

    def __init__(self, truth) -> None:
        self.truth = truth
        job = truth.formula.job
        self.grid = settings(job)
        self.estimates = [truth.formula.estimate(knobs) for knobs in self.grid]
        self.sampler = ResidualSampler(self.grid, self.estimates, budget_bytes=job.budget_bytes)
        self.study = open_study("replay", InMemoryStorage(), self.sampler)
        self.tried, self.outcomes = [], []

    def next(self):
        """The setting that the sampler proposes; None when there is none."""
        index = self.sampler.choose(self.study.get_trials(deepcopy=False))
        return None if index is None else self.grid[index]

    def tell(self, outcome) -> None:
        trial = self.study.ask(distributions(self.grid))
        knobs = knobs_of(trial, self.grid[0], self.truth.formula.job.contract.effective_batch)
        assert knobs == outcome.knobs, "Optuna asks for what the sampler chose"
        tell(self.study, trial, outcome, self.truth.formula.estimate(knobs))
        self.tried.append(knobs)
        self.outcomes.append(outcome)

    def run(self) -> "Replay":
        while len(self.tried) < MOST:
            knobs = self.next()
            if knobs is None or self.sampler.expected_gain < WORTHWHILE:
                break
            self.tell(self.truth.outcome(knobs))
        return self

    def best_speed(self) -> float:
        return max((self.truth.speed(o.knobs) for o in self.outcomes if o.fits), default=0.0)


@pytest.mark.parametrize("seed", SEEDS)
def test_it_finds_a_setting_within_three_percent_of_the_best_that_leaves_one_percent_free(make_truth, seed):
    """The last percent of the budget is not its to find: it never takes a setting that fits with less than 0.9."""
    replay = Replay(make_truth(seed)).run()
    safe = [k for k in replay.grid if replay.truth.peak(k) <= 0.99 * replay.truth.budget_bytes]
    assert replay.best_speed() >= 0.97 * replay.truth.best_speed(safe)
    assert len(replay.tried) < MOST, "it stops by itself"


def test_learning_beats_trusting_the_prediction_and_seldom_runs_out_of_memory(make_truth):
    learned, trusted, failed, probes = [], [], 0, 0
    for seed in SEEDS:
        replay = Replay(make_truth(seed)).run()
        truth, pairs = replay.truth, list(zip(replay.grid, replay.estimates, strict=True))
        best = truth.best_speed(replay.grid)
        predicted = max((pair for pair in pairs if pair[1].fits), key=lambda pair: pair[1].samples_per_second)[0]
        learned.append(replay.best_speed() / best)
        trusted.append(truth.speed(predicted) / best if truth.peak(predicted) <= truth.budget_bytes else 0.0)
        failed += sum(not outcome.fits for outcome in replay.outcomes)
        probes += len(replay.outcomes)
    assert np.mean(learned) > np.mean(trusted)
    assert failed <= (1 - SURE) * probes


@pytest.mark.parametrize("seed", SEEDS)
def test_it_never_proposes_what_fits_with_less_than_nine_tenths(make_truth, seed):
    """The probability by the textbook's formula, from what had been told up to then."""
    replay = Replay(make_truth(seed))
    # Two ways to solve with one covariance differ by its condition times a unit.
    variance = PEAK_PRIOR.offset**2 + PEAK_PRIOR.smooth**2
    slack = 2 * MOST**2 * variance / PEAK_PRIOR.noise**2 * UNITS["fp64"]
    for _ in range(MOST):
        knobs = replay.next()
        if knobs is None:
            break
        assert probability_of_fitting(replay, knobs) >= SURE - slack
        replay.tell(replay.truth.outcome(knobs))
    assert len(replay.tried) > 3


def probability_of_fitting(replay: Replay, knobs) -> float:
    """Direct inversion with a Matern 5/2 kernel over the sampler's own features."""
    features = replay.sampler._features
    logs = np.log([estimate.process_peak_bytes for estimate in replay.estimates])
    seen = [replay.grid.index(tried) for tried in replay.tried]
    residuals = []
    for index, outcome in zip(seen, replay.outcomes, strict=True):
        limit = max(replay.estimates[index].process_peak_bytes, 1.02 * outcome.budget_bytes)
        residuals.append(math.log(outcome.process_peak_bytes or int(limit)) - logs[index])

    def kernel(a: int, b: int) -> float:
        r = math.sqrt(5) * math.dist(features[a], features[b])
        return PEAK_PRIOR.offset**2 + PEAK_PRIOR.smooth**2 * (1 + r + r * r / 3) * math.exp(-r)

    asked = replay.grid.index(knobs)
    mean, variance = 0.0, kernel(asked, asked)
    if seen:
        inverse = np.linalg.inv(
            np.array([[kernel(a, b) for b in seen] for a in seen]) + PEAK_PRIOR.noise**2 * np.eye(len(seen))
        )
        cross = np.array([kernel(a, asked) for a in seen])
        mean, variance = float(cross @ inverse @ residuals), variance - float(cross @ inverse @ cross)
    room = math.log(replay.truth.budget_bytes) - logs[asked] - mean
    variance += PEAK_PRIOR.noise**2  # a probe finds the peak with its own scatter
    return 0.5 * (1 + math.erf(room / math.sqrt(2 * variance)))


def test_it_times_again_only_what_held_and_does_so_when_two_settings_are_as_good(make_truth):
    truth = make_truth(3)
    replay, draw, again = Replay(truth), np.random.default_rng(3), []
    while len(replay.tried) < MOST and (knobs := replay.next()) is not None:
        outcome = truth.outcome(knobs)
        if outcome.fits:
            speed = outcome.samples_per_second * math.exp(0.1 * draw.normal())
            outcome = outcome.replace(samples_per_second=speed, speed_error=0.1)
        if knobs in replay.tried:
            again.append(knobs)
            assert replay.outcomes[replay.tried.index(knobs)].fits
        replay.tell(outcome)
    assert again, "with a noise of 10 % one reading does not settle it"


def test_two_readings_of_a_setting_are_worth_more_than_the_luckier_one(make_truth):
    """Of two equal settings the one that was read fast once and slow once is not the better."""
    truth = make_truth(1, budget_bytes=2**40)
    replay = Replay(truth)
    first, second = replay.grid[5], replay.grid[6]
    study = replay.study
    for knobs, speed in ((first, 10.0), (second, 12.0), (second, 7.0)):
        outcome = truth.outcome(knobs).replace(samples_per_second=speed, speed_error=0.1)
        study.enqueue_trial(parameters(knobs))
        tell(study, study.ask(distributions(replay.grid)), outcome, truth.formula.estimate(knobs))
    assert replay.sampler.ranking(study.get_trials(deepcopy=False))[0] == first


def test_it_proposes_nothing_when_nothing_can_fit(make_truth):
    assert Replay(make_truth(0, budget_bytes=2**30)).next() is None


def test_where_everything_fits_it_stops_after_a_few_probes(make_truth):
    replay = Replay(make_truth(1, budget_bytes=2**40)).run()
    assert len(replay.tried) < 10
    assert replay.best_speed() >= 0.97 * replay.truth.best_speed(replay.grid)


def test_the_first_choice_is_the_fastest_prediction_that_is_sure_to_fit(make_truth):
    replay = Replay(make_truth(0))
    first = replay.next()
    assert replay.sampler.expected_gain == math.inf
    spread = math.hypot(PEAK_PRIOR.offset, PEAK_PRIOR.smooth)
    sure = [
        (estimate.samples_per_second, knobs)
        for knobs, estimate in zip(replay.grid, replay.estimates, strict=True)
        if estimate.process_peak_bytes * math.exp(1.2816 * spread) <= replay.truth.budget_bytes
    ]
    assert replay.truth.formula.estimate(first).samples_per_second == max(sure, key=lambda pair: pair[0])[0]


def test_a_setting_that_crashes_is_tried_once_more_and_then_left_alone(make_truth):
    replay = Replay(make_truth(0))
    broken = replay.next()
    crash = replay.truth.outcome(broken).replace(status="crash", samples_per_second=None, process_peak_bytes=None)
    for _ in range(TRIES):
        assert replay.next() == broken
        replay.tell(crash)
    assert replay.next() not in (None, broken)


def test_a_setting_that_needed_allocator_retries_counts_as_too_large(make_truth):
    replay = Replay(make_truth(0))
    thrashing = replay.next()
    replay.tell(replay.truth.outcome(thrashing).replace(alloc_retries=3))
    (trial,) = replay.study.get_trials()
    assert trial.value == 0.0
    assert max(trial.constraints.values()) > 0
    formula = replay.truth.formula
    assert formula.estimate(replay.next()).process_peak_bytes < formula.estimate(thrashing).process_peak_bytes


def test_settings_and_parameters_are_one_to_one(make_job):
    job = make_job()
    everything = [*settings(job), *stock_settings(job)]
    assert len({tuple(parameters(knobs).values()) for knobs in everything}) == len(everything)
    space = distributions(everything)
    for knobs in everything:
        assert all(value in space[name].choices for name, value in parameters(knobs).items())
