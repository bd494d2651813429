"""When nothing fits: the setting that needs least, the budget that would do, and the nearest change that would fit."""

from collections.abc import Callable
from dataclasses import dataclass

from budgetft.errors import NothingFits
from budgetft.knobs import Knobs, describe
from budgetft.measure.job import Job
from budgetft.outcome import Estimate, Outcome
from budgetft.predict.estimator import Estimator
from budgetft.search.ranking import smallest
from budgetft.units import format_gib

MOST_CARDS = 8
"""That one machine has."""


@dataclass(frozen=True, kw_only=True)
class Alternatives:
    """What else may be asked for than ``job``: jobs like it, of which ``grid`` says what would be tried."""

    job: Job
    grid: Callable[[Job], list[Knobs]]
    make_estimator: Callable[[Job], Estimator]

    def fits(self, job: Job) -> bool:
        """Whether any setting of ``job`` is predicted to fit."""
        estimator = self.make_estimator(job)
        return any(estimator.estimate(knobs).fits for knobs in self.grid(job))

    def more_cards(self) -> int | None:
        """The fewest cards, of the doubles of their number, that are predicted to hold the job with its layers shared."""
        cards = 2 * self.job.cards
        while cards <= min(MOST_CARDS, self.job.contract.effective_batch):
            if self.fits(self.job.replace(cards=cards, shared=True, device="cuda")):
                return cards
            cards *= 2
        return None

    def fewer_frames(self) -> int | None:
        """The most images an example (or frames of its video), of the halves of their number, that are predicted to fit."""
        count, video = self.job.workload.most_frames // 2, self.job.workload.is_video
        while count >= 1:
            if self.fits(self.job.replace(workload=self.job.workload.with_frames(count, self.job.model, video=video))):
                return count
            count //= 2
        return None


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
    """The nearest that would fit, in words."""
    job, fewer = alternatives.job, alternatives.fewer_frames()
    if least.term_bytes("weights") > job.budget_bytes:
        change = "choose a smaller model: its weights alone exceed the budget"
    elif fewer is not None:
        kind = "frames of a video" if job.workload.is_video else "images"
        change = f"make examples of {fewer} instead of {job.workload.most_frames} {kind}: that fits (predicted)"
    else:
        change = "lower --max-pixels, --rank or --max-length, or choose a smaller model"
    if (cards := alternatives.more_cards()) is not None:
        change += f"; or share the frozen layers out between {cards} such cards, --cards {cards}: that fits (predicted)"
    return change
