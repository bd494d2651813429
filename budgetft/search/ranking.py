"""Settings in order, and what is known of one: predicted, and after a probe measured."""

from collections.abc import Sequence

from budgetft.knobs import Knobs, is_stock
from budgetft.outcome import Estimate, Outcome, Term
from budgetft.plan import Candidate
from budgetft.predict.estimator import STATIC_TERMS
from budgetft.search.study import held


def settle(estimate: Estimate, outcome: Outcome) -> Estimate:
    """``estimate`` with what was measured put in the place of what was predicted; the terms still sum to the process peak."""
    allocated = outcome.allocated_peak_bytes or estimate.tensor_peak_bytes
    reserved = outcome.reserved_peak_bytes or estimate.reserved_peak_bytes
    process = outcome.process_peak_bytes or estimate.process_peak_bytes
    fixed = [t for t in estimate.terms if t.name in STATIC_TERMS]
    moving = next((t.name for t in estimate.terms if "activations" in t.name), "activations and temporaries")
    terms = (
        *fixed,
        Term(name=moving, memory_bytes=allocated - sum(term.memory_bytes for term in fixed)),
        Term(name="allocator (fragmentation)", memory_bytes=reserved - allocated),
        Term(name="context and kernels", memory_bytes=process - reserved),
    )
    return estimate.replace(
        tensor_peak_bytes=allocated,
        reserved_peak_bytes=reserved,
        process_peak_bytes=process,
        step_seconds=outcome.step_seconds,
        samples_per_second=outcome.samples_per_second,
        speed_low=None,
        speed_high=None,
        fits=outcome.fits,
        terms=terms,
        evidence=outcome.evidence,
    )


def predicted_baseline(estimates: dict[Knobs, Estimate]) -> Candidate | None:
    """The stock recipe at its best micro-batch by prediction."""
    fitting = [knobs for knobs, estimate in estimates.items() if is_stock(knobs) and estimate.fits]
    best = max(fitting, key=lambda knobs: speed(estimates[knobs]), default=None)
    return None if best is None else Candidate(knobs=best, estimate=estimates[best])


def smallest(estimates: dict[Knobs, Estimate]) -> Knobs:
    """The setting with the least predicted process peak."""
    return min(estimates, key=lambda knobs: estimates[knobs].process_peak_bytes)


def settled(outcome: Outcome, estimates: dict[Knobs, Estimate]) -> Candidate:
    """The setting of ``outcome`` with its estimate settled."""
    return Candidate(knobs=outcome.knobs, estimate=settle(estimates[outcome.knobs], outcome), outcome=outcome)


def ranked_by_speed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes that held without the allocator having to retry, fastest first, each setting once."""
    best: dict[Knobs, Outcome] = {}
    for outcome in outcomes:
        if held(outcome):
            best[outcome.knobs] = outcome
    return sorted(best.values(), key=measured_speed, reverse=True)


def measured_speed(outcome: Outcome) -> float:
    """Samples per second; zero when it did not get that far."""
    return outcome.samples_per_second or 0.0


def speed(estimate: Estimate) -> float:
    """Samples per second, or what orders settings where the GPU's rates are unknown."""
    return estimate.samples_per_second or -float(estimate.process_peak_bytes)
