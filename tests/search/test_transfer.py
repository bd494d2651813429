"""What carries over from probes of one GPU to another, on synthetic truths without a GPU."""

import math

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from budgetft.gpu import load_gpu
from budgetft.outcome import Stack
from budgetft.search.planner import Planner
from budgetft.search.space import settings
from budgetft.search.transfer import Lesson, Transferred
from budgetft.units import GIB

H100 = Stack(gpu="NVIDIA H100 80GB HBM3", driver="570.1", torch="2.10", transformers="5.17", peft="0.19", python="3.12")


@pytest.fixture
def formula(make_truth):
    return make_truth(0).formula


def lesson(knobs, *, log_bytes=0.02, log_seconds=0.5, gpu=H100.gpu, context_bytes=700 * 2**20) -> Lesson:
    return Lesson(knobs=knobs, gpu=gpu, log_bytes=log_bytes, log_seconds=log_seconds, context_bytes=context_bytes)


def test_without_lessons_the_estimate_is_that_of_the_memory_model_and_the_calibration(formula):
    knobs = settings(formula.job)[3]
    learned, plain = Transferred(formula, [], gpu=None).estimate(knobs), formula.estimate(knobs)
    assert learned.process_peak_bytes - plain.process_peak_bytes == formula.calibration.context_bytes - 450 * 2**20
    assert (learned.samples_per_second, learned.fits) == (plain.samples_per_second, plain.fits)


def test_what_probes_found_of_the_bytes_carries_over_to_another_gpu(formula):
    grid = settings(formula.job)
    lessons = [lesson(knobs) for knobs in grid[::5]]
    learned = Transferred(formula, lessons, gpu="another GPU")
    for knobs in grid[1::7]:
        said = learned.estimate(knobs).reserved_peak_bytes / formula.estimate(knobs).reserved_peak_bytes
        assert said == pytest.approx(math.exp(0.02), abs=0.02 / 4)  # three quarters of what was found at least


def test_the_context_and_the_level_of_the_speed_carry_over_only_to_the_same_gpu(formula):
    grid = settings(formula.job)
    lessons = [lesson(knobs) for knobs in grid[::5]]
    elsewhere, here = (Transferred(formula, lessons, gpu=gpu) for gpu in ("another GPU", H100.gpu))
    knobs = grid[1]
    plain = formula.estimate(knobs).step_seconds
    assert here.calibration.context_bytes == 700 * 2**20
    assert elsewhere.calibration.context_bytes == formula.calibration.context_bytes
    assert here.estimate(knobs).step_seconds == pytest.approx(
        plain * math.exp(0.5), rel=0.5 / 25
    )  # nearly all of what was found
    assert elsewhere.estimate(knobs).step_seconds == pytest.approx(plain, rel=0.5 / 25)


def test_another_gpu_leaves_at_least_the_uncertainty_of_its_calibration(formula):
    lessons = [lesson(knobs) for knobs in settings(formula.job)[::5]]
    elsewhere, here = (Transferred(formula, lessons, gpu=gpu) for gpu in ("another GPU", H100.gpu))
    assert elsewhere.uncertainty_share > formula.calibration.uncertainty_share
    assert here.uncertainty_share < elsewhere.uncertainty_share


def test_lessons_of_another_kernel_are_worth_less(make_job, make_truth):
    ampere = make_truth(0, gpu=load_gpu("rtx3060-12g"), budget_bytes=11 * 2**30).formula
    volta = [knobs.replace(attention="efficient") for knobs in settings(ampere.job)[::5]]
    of_another = Transferred(ampere, [lesson(knobs) for knobs in volta], gpu=H100.gpu)
    of_the_same = Transferred(ampere, [lesson(knobs) for knobs in settings(ampere.job)[::5]], gpu=H100.gpu)
    assert of_another.uncertainty_share > of_the_same.uncertainty_share


def test_the_terms_sum_to_the_process_peak(formula):
    learned = Transferred(formula, [lesson(settings(formula.job)[0])], gpu=H100.gpu)
    estimate = learned.estimate(settings(formula.job)[5])
    assert sum(term.memory_bytes for term in estimate.terms) == estimate.process_peak_bytes


class LookedUp:
    """A prober that answers from a truth and counts."""

    stack = H100

    def __init__(self, truth) -> None:
        self.truth, self.asked = truth, 0

    def probe(self, knobs, *, fresh=False):
        self.asked += 1
        return self.truth.outcome(knobs).replace(stack=H100)


@pytest.mark.parametrize("budget_gib", [9, 11, 20])
@pytest.mark.parametrize("seed", range(5))
def test_a_ported_plan_is_within_5_percent_of_a_fresh_search_in_three_probes(make_truth, seed, budget_gib):
    old, new, again = (make_truth(seed, budget_bytes=size * GIB) for size in (14, budget_gib, budget_gib))
    first = Planner(job=old.formula.job, estimator=old.formula, prober=LookedUp(old))
    first.plan()
    lessons = []
    for outcome in (outcome for outcome in first.outcomes if outcome.fits):
        said = old.formula.estimate(outcome.knobs)
        lessons.append(
            lesson(
                outcome.knobs,
                log_bytes=math.log(outcome.reserved_peak_bytes / said.reserved_peak_bytes),
                log_seconds=math.log(said.samples_per_second / outcome.samples_per_second),
                context_bytes=outcome.process_peak_bytes - outcome.reserved_peak_bytes,
            )
        )
    ported_prober, fresh_prober = LookedUp(new), LookedUp(again)
    learned = Transferred(new.formula, lessons, gpu=H100.gpu)
    ported = Planner(job=new.formula.job, estimator=learned, prober=ported_prober, max_probes=3, probe_baseline=False).plan()
    fresh = Planner(job=again.formula.job, estimator=again.formula, prober=fresh_prober).plan()
    assert ported_prober.asked <= 3 <= fresh_prober.asked
    assert new.speed(ported.winner.knobs) >= 0.95 * new.speed(fresh.winner.knobs)
    before = learned.estimate(ported.winner.knobs).process_peak_bytes
    assert before == pytest.approx(ported.confirmed.process_peak_bytes, rel=0.03)
    assert ported.baseline is None or ported.baseline.estimate.evidence == "predicted"


def test_the_ratio_of_a_ported_plan_to_the_stock_recipe_is_a_range_that_moves_with_what_was_learned(make_job):
    from budgetft.predict.estimator import Estimator
    from budgetft.search.space import settings, stock_settings

    job = make_job()
    plan, stock = settings(job)[0], stock_settings(job)[0]
    plain = Estimator(job)
    low, high = plain.ratio_range(plan, stock)
    assert low < high
    learned = Transferred(plain, [lesson(plan, log_seconds=math.log(2)), lesson(stock, log_seconds=0.0)], gpu=None)
    moved = learned.ratio_range(plan, stock)
    assert moved[1] / moved[0] == pytest.approx(high / low, rel=1e-9)
    assert moved[0] < low, "the plan's setting turned out slower than predicted, beside the stock recipe"
