"""When nothing fits: the setting that needs least, the budget that would do, and the nearest change that would fit."""

from budgetft.errors import NothingFits
from budgetft.knobs import Knobs, describe
from budgetft.outcome import Estimate, Outcome
from budgetft.search.ranking import smallest
from budgetft.search.ways_out import Alternatives
from budgetft.units import format_gib


def nothing_fits(
    estimates: dict[Knobs, Estimate], tried: Outcome | None, uncertainty_share: float, alternatives: Alternatives
) -> NothingFits:
    """The error that says so. ``tried``: what a probe of the smallest setting found, if one was made."""
    job, knobs = alternatives.job, smallest(estimates)
    least = estimates[knobs]
    needed = round((1 + uncertainty_share) * (least.process_peak_bytes if tried is None else job.budget_bytes))
    parts = sorted(least.terms, key=lambda term: term.memory_bytes, reverse=True)
    names = ", ".join(f"{term.name} {format_gib(term.memory_bytes)}" for term in parts[:3])
    change = _change(least, alternatives)
    need = f"needs at least {format_gib(least.process_peak_bytes)}"
    if tried is not None:
        how = "held only with allocator retries" if tried.fits else f"ended as {tried.status} in phase {tried.phase}"
        need += f" by prediction, and a probe of that {how}"
    return NothingFits(
        f"nothing fits {format_gib(job.budget_bytes)} on {job.gpu.name}: {job.model.name} {need} ({describe(knobs)}): {names}",
        hint=f"the smallest budget that would work is about {format_gib(needed)} (predicted); or {change}",
    )


def _change(least: Estimate, alternatives: Alternatives) -> str:
    """What would fit, in words, each with its cost."""
    heavy = least.term_bytes("weights") > alternatives.job.budget_bytes
    why = " (its weights alone exceed the budget)" if heavy else ""
    ways = alternatives.find()
    if ways:
        return "; or ".join(way.text() for way in ways) + why
    return f"choose a smaller model{why}" if heavy else "lower --rank or --max-length, or choose a smaller model"
