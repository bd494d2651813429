"""Planning with a prober that looks its answers up: what is probed, in which order, and what comes out."""

import os
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from budgetft.errors import BudgetftError, NothingFits, UsageError
from budgetft.knobs import is_stock
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Stack
from budgetft.search.planner import Planner
from budgetft.search.ranking import settle
from budgetft.search.run import _cost_of_determinism
from budgetft.search.space import settings, stock_settings
from budgetft.units import GIB, MIB, format_gib

STACK = Stack(gpu="a GPU", driver="570.1", torch="2.10", transformers="5.17", peft="0.19", python="3.12")


class LookedUp:
    """A prober: ``answer`` gives the outcome of a setting, told whether it must be fresh."""

    def __init__(self, answer, stack: Stack | None = STACK) -> None:
        self.stack = stack
        self._answer = answer
        self.asked = []

    def probe(self, knobs, *, fresh: bool = False):
        self.asked.append((knobs, fresh))
        return self._answer(knobs, fresh).replace(stack=self.stack)

    @property
    def settings(self):
        return [knobs for knobs, _ in self.asked]


@pytest.fixture
def make_planner(make_truth):
    """A planner of a synthetic truth, and its prober; ``answer`` replaces what a probe finds."""

    def make(seed: int = 0, *, answer=None, ledger=None, stack=STACK, budget_bytes: int = 14 * GIB, **options):
        truth = make_truth(seed, budget_bytes=budget_bytes)
        prober = LookedUp((lambda knobs, fresh: truth.outcome(knobs)) if answer is None else answer(truth), stack)
        options = {"make_estimator": type(truth.formula), **options}
        planner = Planner(job=truth.formula.job, estimator=truth.formula, prober=prober, ledger=ledger, **options)
        return planner, prober, truth

    return make


@pytest.mark.parametrize("probe_baseline", [True, False])
def test_a_type_that_is_not_the_gpu_s_own_is_searched_as_well(make_planner, probe_baseline):
    planner, prober, _ = make_planner(base_precision="bf16", probe_baseline=probe_baseline)
    assert planner.job.gpu.base_precision == "fp16"
    assert planner.plan().confirmed.fits
    assert {knobs.base_precision for knobs in prober.settings} == {"bf16"}


@pytest.mark.parametrize("seed", range(5))
def test_the_plan_is_near_the_best_and_was_confirmed_in_a_fresh_process(make_planner, seed):
    planner, prober, truth = make_planner(seed)
    choice = planner.plan()
    safe = [knobs for knobs in settings(planner.job) if truth.peak(knobs) <= 0.99 * truth.budget_bytes]
    assert truth.speed(choice.winner.knobs) >= 0.97 * truth.best_speed(safe)
    assert prober.asked[-1] == (choice.winner.knobs, True)
    assert [fresh for _, fresh in prober.asked].count(True) == 1
    assert choice.confirmed.fits
    assert choice.winner.outcome == choice.confirmed
    assert choice.outcomes == tuple(planner.outcomes)
    assert len(choice.outcomes) == len(prober.asked) <= planner.max_probes


def test_the_winner_s_estimate_is_what_was_measured_and_its_terms_still_sum_to_it(make_planner):
    choice = make_planner()[0].plan()
    estimate, confirmed = choice.winner.estimate, choice.confirmed
    assert estimate.process_peak_bytes == confirmed.process_peak_bytes
    assert estimate.samples_per_second == confirmed.samples_per_second
    assert estimate.evidence == "measured"
    assert sum(term.memory_bytes for term in estimate.terms) == estimate.process_peak_bytes
    for candidate in (choice.baseline, *choice.runners_up):
        assert sum(term.memory_bytes for term in candidate.estimate.terms) == candidate.estimate.process_peak_bytes


def test_the_baseline_is_probed_first_and_is_the_fastest_stock_recipe_that_held(make_planner):
    planner, prober, _ = make_planner()
    choice = planner.plan()
    assert is_stock(prober.settings[0])
    stock = [o for o in planner.outcomes if is_stock(o.knobs) and o.fits]
    assert choice.baseline.outcome == max(stock, key=lambda outcome: outcome.samples_per_second)
    assert choice.winner.outcome.samples_per_second > choice.baseline.outcome.samples_per_second


def test_a_baseline_that_runs_out_of_memory_is_tried_smaller_until_it_holds(make_planner):
    def only_one_at_a_time(truth):
        def answer(knobs, fresh):
            outcome = truth.outcome(knobs)
            too_much = is_stock(knobs) and knobs.micro_batch > 1
            return outcome.replace(status="oom", samples_per_second=None) if too_much else outcome

        return answer

    planner, prober, _ = make_planner(answer=only_one_at_a_time)
    choice = planner.plan()
    sizes = [knobs.micro_batch for knobs in prober.settings if is_stock(knobs)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 1
    assert choice.baseline.knobs.micro_batch == 1


def test_where_the_stock_recipe_holds_at_no_size_there_is_a_plan_without_a_baseline(make_planner):
    def never_stock(truth):
        return lambda knobs, fresh: truth.outcome(knobs).replace(status="oom" if is_stock(knobs) else "ok")

    choice = make_planner(answer=never_stock)[0].plan()
    assert choice.baseline is None
    assert not is_stock(choice.winner.knobs)


def test_a_winner_that_fails_in_a_fresh_process_falls_to_the_next_best(make_planner):
    refused = []

    def once(truth):
        def answer(knobs, fresh):
            outcome = truth.outcome(knobs)
            if fresh and not refused:
                refused.append(knobs)
                return outcome.replace(status="oom", phase="backward", samples_per_second=None)
            return outcome

        return answer

    planner, prober, _ = make_planner(answer=once)
    choice = planner.plan()
    held = sorted((o for o in planner.outcomes if o.fits), key=lambda outcome: outcome.samples_per_second, reverse=True)
    best_first = list(dict.fromkeys(outcome.knobs for outcome in held))
    assert refused == best_first[:1]
    assert choice.winner.knobs == best_first[1]
    assert prober.asked[-2:] == [(best_first[0], True), (best_first[1], True)]
    listed = [candidate.knobs for candidate in choice.runners_up]
    assert refused[0] not in listed, "a setting that failed its confirmation is not offered as an alternative"
    assert choice.winner.knobs not in listed


def test_three_winners_that_do_not_hold_are_an_error_that_says_why(make_planner):
    def never_fresh(truth):
        def answer(knobs, fresh):
            outcome = truth.outcome(knobs)
            return outcome.replace(status="oom", detail="2 GiB short", samples_per_second=None) if fresh else outcome

        return answer

    planner, prober, _ = make_planner(answer=never_fresh)
    with pytest.raises(BudgetftError, match="2 GiB short") as caught:
        planner.plan()
    assert caught.value.exit_code == 1
    assert [fresh for _, fresh in prober.asked].count(True) == 3


def test_a_setting_that_needed_allocator_retries_is_not_chosen(make_planner):
    fastest = []

    def retry_the_fast_ones(truth):
        best = sorted(settings(truth.formula.job), key=truth.speed, reverse=True)
        fastest.extend(knobs for knobs in best if truth.peak(knobs) <= truth.budget_bytes)
        thrashing = set(fastest[:10])
        return lambda knobs, fresh: truth.outcome(knobs).replace(alloc_retries=2 if knobs in thrashing else 0)

    planner, prober, truth = make_planner(answer=retry_the_fast_ones)
    choice = planner.plan()
    assert set(prober.settings) & set(fastest[:10]), "some were met"
    assert choice.winner.knobs not in fastest[:10]
    assert not {candidate.knobs for candidate in choice.runners_up} & set(fastest[:10])
    assert truth.speed(choice.winner.knobs) > 0.9 * truth.speed(fastest[10])


def test_a_winner_that_needs_retries_when_confirmed_falls_to_the_next_best(make_planner):
    def retried_when_fresh(truth):
        met = []

        def answer(knobs, fresh):
            met.append(fresh)
            return truth.outcome(knobs).replace(alloc_retries=1 if fresh and met.count(True) == 1 else 0)

        return answer

    planner, prober, _ = make_planner(answer=retried_when_fresh)
    choice = planner.plan()
    assert choice.confirmed.alloc_retries == 0
    assert prober.asked[-2][0] != choice.winner.knobs


# Nothing fits


def test_tensors_that_exceed_the_budget_are_refused_without_a_probe(make_planner):
    planner, prober, truth = make_planner(budget_bytes=6 * GIB)
    with pytest.raises(NothingFits) as caught:
        planner.plan()
    assert prober.asked == []
    assert caught.value.exit_code == 3
    smallest = min(map(truth.formula.estimate, settings(planner.job)), key=lambda estimate: estimate.process_peak_bytes)
    assert f"needs at least {format_gib(smallest.process_peak_bytes)}" in caught.value.message
    assert f"weights {format_gib(int(7.2 * GIB))}" in caught.value.message
    needed = round(smallest.process_peak_bytes * (1 + planner.estimator.calibration.uncertainty_share))
    assert f"about {format_gib(needed)}" in caught.value.hint
    assert "weights alone exceed the budget" in caught.value.hint
    assert "--gpus 2: fits in " in caught.value.hint


def test_the_budget_that_the_refusal_names_does_work(make_planner):
    planner, _, truth = make_planner(budget_bytes=6 * GIB)
    planner.prober = None
    with pytest.raises(NothingFits):
        planner.plan()
    smallest = min(truth.formula.estimate(knobs).process_peak_bytes for knobs in settings(planner.job))
    enough = round(smallest * (1 + planner.estimator.calibration.uncertainty_share)) + MIB
    planner, _, _ = make_planner(budget_bytes=enough)
    planner.prober = None
    assert planner.plan().winner.estimate.fits


def test_the_smallest_setting_is_probed_before_giving_up(make_planner, make_truth):
    """The sampler wants 0.9; a budget just above the smallest prediction gives less, and yet the setting may hold."""
    formula = make_truth().formula
    smallest = min(settings(formula.job), key=lambda knobs: formula.estimate(knobs).process_peak_bytes)
    budget = int(formula.estimate(smallest).process_peak_bytes * 1.03)

    def as_predicted(truth):
        def answer(knobs, fresh):
            estimate, outcome = truth.formula.estimate(knobs), truth.outcome(knobs)
            peak, fits = estimate.process_peak_bytes, estimate.process_peak_bytes <= truth.budget_bytes
            peaks = {"process_peak_bytes": peak, "reserved_peak_bytes": peak, "allocated_peak_bytes": peak}
            return outcome.replace(status="ok" if fits else "oom", samples_per_second=truth.speed(knobs), **peaks)

        return answer

    choice = make_planner(budget_bytes=budget, answer=as_predicted)[0].plan()
    assert formula.estimate(choice.winner.knobs).process_peak_bytes <= budget


def test_where_nothing_fits_the_most_images_that_would_are_named(make_job, formula):
    class HeavyImages(formula):
        def estimate(self, knobs):
            return super().estimate(knobs).replace(fits=self.job.workload.most_frames <= 2)

    job = make_job(workload=make_job().workload.with_frames(8, make_job().model, video=False))
    planner = Planner(job=job, estimator=HeavyImages(job), make_estimator=HeavyImages)
    with pytest.raises(NothingFits) as caught:
        planner.plan()
    assert "make examples of 2 instead of 8 images: fits in " in str(caught.value.hint)


def test_out_of_memory_everywhere_is_nothing_fits_and_asks_for_more_than_there_was(make_planner):
    def never(truth):
        return lambda knobs, fresh: truth.outcome(knobs).replace(status="oom", phase="forward", samples_per_second=None)

    planner, prober, _ = make_planner(answer=never)
    with pytest.raises(NothingFits) as caught:
        planner.plan()
    assert caught.value.exit_code == 3
    assert "ended as oom in phase forward" in caught.value.message
    needed = round(14 * GIB * (1 + planner.estimator.calibration.uncertainty_share))
    assert f"about {format_gib(needed)}" in caught.value.hint
    assert len(prober.asked) == len(set(prober.settings)) <= planner.max_probes


def test_when_every_probe_crashes_the_last_reason_is_told_and_no_setting_is_tried_over_and_over(make_planner):
    count = []

    def broken(truth):
        def answer(knobs, fresh):
            count.append(knobs)
            return truth.outcome(knobs).replace(status="crash", phase="load", detail=f"no kernel image ({len(count)})")

        return answer

    planner, prober, _ = make_planner(answer=broken)
    with pytest.raises(BudgetftError) as caught:
        planner.plan()
    assert caught.value.exit_code == 1
    assert f"no kernel image ({len(count)})" in caught.value.message
    assert "crash in phase load" in caught.value.message
    assert len(count) <= planner.max_probes
    assert max(prober.settings.count(knobs) for knobs in prober.settings) <= 2


# What is known already


def test_what_the_ledger_knows_is_not_probed_again(make_planner, tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    first, prober, _ = make_planner(ledger=ledger)
    choice = first.plan()
    assert [outcome for _, outcome in ledger.rows()] == list(choice.outcomes)
    events = []
    second, again, _ = make_planner(ledger=ledger, on_event=events.append)
    repeated = second.plan()
    assert again.asked == [(choice.winner.knobs, True)], "only the confirmation is made anew"
    assert repeated.winner.knobs == choice.winner.knobs
    found = [event for event in events if event.outcome is not None]
    assert [event.from_ledger for event in found] == [True] * (len(prober.asked) - 1) + [False]


def test_a_winner_that_ran_out_of_memory_in_a_run_is_not_planned_again(make_planner, tmp_path):
    storage = f"sqlite:///{tmp_path / 'studies.sqlite3'}"
    ledger = Ledger(tmp_path / "ledger.sqlite3")
    planner, _, truth = make_planner(ledger=ledger, storage=storage)
    first = planner.plan().winner.knobs
    refused = truth.outcome(first).replace(status="oom", samples_per_second=None, stack=STACK)
    ledger.append(planner.job, refused)
    second = make_planner(ledger=ledger, storage=storage)[0].plan().winner
    assert second.knobs != first
    assert second.estimate.fits


def test_another_stack_or_budget_is_probed_anew(make_planner, tmp_path):
    ledger, storage = Ledger(tmp_path / "ledger.sqlite3"), f"sqlite:///{tmp_path / 'studies.sqlite3'}"
    first, prober, _ = make_planner(ledger=ledger, storage=storage)
    choice = first.plan()
    for changes in ({"stack": STACK.replace(torch="2.11")}, {"budget_bytes": 14 * GIB - MIB}):
        planner, again, _ = make_planner(ledger=ledger, storage=storage, **changes)
        winner = planner.plan().winner
        assert winner.knobs == choice.winner.knobs
        assert len(again.asked) == len(prober.asked)


@pytest.mark.parametrize("with_ledger", [True, False])
def test_planning_again_with_the_same_study_pays_for_little_more_than_the_confirmation_and_loses_nothing(
    make_planner, tmp_path, with_ledger
):
    storage = f"sqlite:///{tmp_path / 'studies.sqlite3'}"
    ledger = Ledger(tmp_path / "ledger.sqlite3") if with_ledger else None
    choice = make_planner(storage=storage, ledger=ledger)[0].plan()
    planner, prober, truth = make_planner(storage=storage, ledger=ledger)
    again = planner.plan()
    assert truth.speed(again.winner.knobs) >= truth.speed(choice.winner.knobs)
    assert again.baseline.knobs == choice.baseline.knobs
    assert [fresh for _, fresh in prober.asked].count(True) == 1
    more = [knobs for knobs, fresh in prober.asked if not fresh]
    assert not more, "what is known says that nothing is worth another probe"
    assert not {outcome.knobs for outcome in choice.outcomes} & set(more)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_an_interrupted_search_goes_on_where_it_stopped(make_planner, tmp_path, stop_at):
    storage = f"sqlite:///{tmp_path / 'studies.sqlite3'}"
    uninterrupted, whole, _ = make_planner()
    expected = uninterrupted.plan().winner.knobs
    assert len(whole.asked) > stop_at

    def interrupted(truth):
        met = []

        def answer(knobs, fresh):
            met.append(knobs)
            if len(met) == stop_at:
                raise KeyboardInterrupt
            return truth.outcome(knobs)

        return answer

    ledger = Ledger(tmp_path / "ledger.sqlite3")
    first, before, _ = make_planner(answer=interrupted, storage=storage, ledger=ledger)
    with pytest.raises(KeyboardInterrupt):
        first.plan()
    assert len(ledger) == stop_at - 1
    second, after, _ = make_planner(storage=storage, ledger=ledger)
    assert second.plan().winner.knobs == expected
    paid = [*before.settings[:-1], *[knobs for knobs, fresh in after.asked if not fresh]]
    assert len(paid) == len(set(paid)), "no probe is paid for twice"


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_optuna_s_own_samplers_find_something_that_fits_and_stay_within_the_number_of_probes(make_planner, sampler):
    if sampler == "gp":
        pytest.importorskip("scipy", reason="Optuna's GPSampler needs scipy")
        pytest.importorskip("torch", reason="Optuna's GPSampler needs torch")
    planner, prober, _ = make_planner(sampler=sampler, max_probes=5)
    choice = planner.plan()
    assert choice.confirmed.fits
    assert len(prober.asked) <= 5 + 2  # two more confirmations when the first do not hold
    probed = [knobs for knobs, fresh in prober.asked if not fresh]
    assert len(probed) == len(set(probed))
    valid = {*settings(planner.job), *stock_settings(planner.job)}
    assert set(probed) <= valid


def test_without_a_prober_the_plan_is_the_fastest_prediction_that_fits(make_planner):
    planner, _, truth = make_planner()
    planner.prober = None
    choice = planner.plan()
    fitting = [k for k in settings(planner.job) if truth.formula.estimate(k).fits]
    speeds = [truth.formula.estimate(knobs).samples_per_second for knobs in fitting]
    assert choice.winner.estimate.samples_per_second == max(speeds)
    assert choice.winner.estimate.evidence == "predicted"
    assert choice.outcomes == ()
    assert choice.confirmed is None
    assert is_stock(choice.baseline.knobs)
    assert len(choice.runners_up) == 3


def test_an_outcome_without_bytes_leaves_the_predicted_ones(make_truth):
    truth = make_truth()
    knobs = settings(truth.formula.job)[0]
    estimate, outcome = truth.formula.estimate(knobs), truth.outcome(knobs)
    bare = outcome.replace(allocated_peak_bytes=None, reserved_peak_bytes=None, process_peak_bytes=None)
    settled = settle(estimate, bare)
    assert settled.process_peak_bytes == estimate.process_peak_bytes
    assert sum(term.memory_bytes for term in settled.terms) == estimate.process_peak_bytes
    assert settled.samples_per_second == outcome.samples_per_second


def test_two_plans_of_one_job_at_a_time_are_refused_and_the_first_goes_on_untouched(make_planner, tmp_path):
    storage = f"sqlite:///{tmp_path / 'studies.sqlite3'}"
    refused = []

    def while_planning(truth):
        def answer(knobs, fresh):
            if not refused:
                with pytest.raises(UsageError, match=rf"another process \({os.getpid()}\) is planning this very job") as caught:
                    make_planner(storage=storage)[0].plan()
                refused.append(caught.value.hint)
            return truth.outcome(knobs)

        return answer

    choice = make_planner(answer=while_planning, storage=storage)[0].plan()
    assert choice.winner.estimate.fits
    assert "wait for it" in refused[0]
    assert make_planner(storage=storage)[0].plan().winner.estimate.fits  # and afterwards it is free


def test_a_storage_that_fails_in_the_middle_is_told_and_the_ledger_keeps_what_was_found(make_planner, tmp_path):
    path, ledger = tmp_path / "studies.sqlite3", Ledger(tmp_path / "ledger.sqlite3")

    def damage(truth):
        def answer(knobs, fresh):
            path.write_bytes(b"not a database" * 1000)
            return truth.outcome(knobs)

        return answer

    planner, prober, _ = make_planner(answer=damage, storage=f"sqlite:///{path}", ledger=ledger)
    with pytest.raises(BudgetftError, match=r"the study's storage .* failed") as caught:
        planner.plan()
    assert "plan again" in (caught.value.hint or "")
    assert len(ledger) == len(prober.asked) >= 1


def test_what_determinism_costs_is_probed_once_and_told(make_planner):
    planner, prober, _ = make_planner()
    choice = planner.plan()
    asked, told = len(prober.asked), []
    slower = replace(choice, winner=choice.winner.replace(estimate=choice.winner.estimate.replace(samples_per_second=1.0)))
    request = SimpleNamespace(deterministic=True, on_event=lambda event: told.append(event.text))
    text = _cost_of_determinism(request, planner.job, slower, planner)
    assert len(prober.asked) == asked + 1
    found = re.fullmatch(r"; deterministic: 1\.00 examples/s, ([\d.]+) without \((-\d+)%\)", text)
    assert found is not None
    assert int(found[2]) == round(100 * (1 / float(found[1]) - 1))
    assert told == [text.removeprefix("; ")]
    request.deterministic = False
    assert _cost_of_determinism(request, planner.job, slower, planner) == ""
