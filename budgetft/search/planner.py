"""From a job to a plan: predict, probe what is worth probing, confirm the winner in a fresh process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from optuna.study import Study
from optuna.trial import TrialState

from budgetft.errors import BudgetftError, NothingFits
from budgetft.knobs import Knobs, Precision, Vision, is_stock
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.measure.probe import Prober
from budgetft.outcome import Estimate, Outcome, Term
from budgetft.plan import Candidate
from budgetft.predict.estimator import STATIC_TERMS, Estimator
from budgetft.search.sampler import WORTHWHILE, ResidualSampler, distributions
from budgetft.search.space import settings, stock_settings
from budgetft.search.study import (
    SamplerName,
    enqueue,
    held,
    held_study,
    knobs_of,
    make_sampler,
    open_study,
    study_name,
    tell,
    tell_refused,
    told,
)
from budgetft.search.transfer import Transferred
from budgetft.units import format_gib

Stage = Literal["trace", "baseline", "search", "confirm"]
PATIENCE = 2
"""Choices in a row that are not worth a probe before the search stops."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Progress, for whoever shows it."""

    stage: Stage
    text: str = ""
    number: int = 0
    """Of the probe, from 1."""
    most: int = 0
    """Probes that planning may make in all."""
    knobs: Knobs | None = None
    """What is probed; None when the event is not of a probe."""
    estimate: Estimate | None = None
    outcome: Outcome | None = None
    from_ledger: bool = False


@dataclass(kw_only=True)
class Choice:
    """What planning found."""

    winner: Candidate
    baseline: Candidate | None
    runners_up: tuple[Candidate, ...]
    outcomes: tuple[Outcome, ...] = ()
    predictions: tuple[Estimate, ...] = ()
    """Of each outcome, without its terms."""
    confirmed: Outcome | None = None


@dataclass(kw_only=True)
class Planner:
    """Planning of one job. With no ``prober`` the plan is predicted only."""

    job: Job
    estimator: Estimator | Transferred
    on_event: Callable[[Event], None] = lambda event: None
    prober: Prober | None = None
    ledger: Ledger | None = None
    vision: Vision = "frozen"
    sampler: SamplerName = "residual"
    storage: str = "sqlite:///:memory:"
    max_probes: int = 20
    make_estimator: Callable[[Job], Estimator] = Estimator
    """For jobs beside the planned one."""
    probe_baseline: bool = True
    base_precision: Precision | None = None
    """None: what the card runs natively."""
    outcomes: list[Outcome] = field(default_factory=list)

    def plan(self) -> Choice:
        """Raises ``NothingFits`` with the smallest budget that would work."""
        grid, stock = self._wanted(settings(self.job, self.vision)), self._wanted(stock_settings(self.job))
        estimates = {knobs: self.estimator.estimate(knobs) for knobs in [*grid, *stock]}
        if self.prober is None:
            return self._predicted(grid, stock, estimates)
        self._refuse_hopeless(estimates)
        with held_study(self._study_name(), self.storage):
            study = self._study([*grid, *stock], estimates)
            self._recall(study, estimates)
            if self.probe_baseline:
                self._probe_baseline(study, stock, estimates)
            self._search(study, grid, estimates)
            if not any(outcome.fits for outcome in self.outcomes) and self._probe_least(study, estimates):
                self._search(study, grid, estimates)
            return self._confirmed(estimates)

    def _wanted(self, grid: list[Knobs]) -> list[Knobs]:
        if self.base_precision is None:
            return grid
        return [knobs.replace(base_precision=self.base_precision) for knobs in grid]

    # Without probes

    def _predicted(self, grid: Sequence[Knobs], stock: Sequence[Knobs], estimates: dict[Knobs, Estimate]) -> Choice:
        fitting = [knobs for knobs in (*grid, *stock) if estimates[knobs].fits]
        if not fitting:
            raise self._nothing_fits(estimates)
        ranked = sorted(fitting, key=lambda knobs: _speed(estimates[knobs]), reverse=True)
        others = [Candidate(knobs=knobs, estimate=estimates[knobs]) for knobs in ranked[1:4]]
        return Choice(
            winner=Candidate(knobs=ranked[0], estimate=estimates[ranked[0]]),
            baseline=_predicted_baseline(estimates),
            runners_up=tuple(others),
        )

    def _nothing_fits(self, estimates: dict[Knobs, Estimate]) -> NothingFits:
        knobs = _smallest(estimates)
        least, tried, margin = estimates[knobs], self._known(knobs), 1 + self.estimator.calibration.uncertainty_share
        needed = round(margin * (least.process_peak_bytes if tried is None else self.job.budget_bytes))
        parts = sorted(least.terms, key=lambda term: term.memory_bytes, reverse=True)
        names = ", ".join(f"{term.name} {format_gib(term.memory_bytes)}" for term in parts[:3])
        weights = next((term.memory_bytes for term in least.terms if term.name == "weights"), 0)
        fewer = self._fewer_images()
        change = (
            "choose a smaller model: its weights alone exceed the budget"
            if weights > self.job.budget_bytes
            else f"make examples of {fewer} instead of {self.job.workload.most_images} images: that fits (predicted)"
            if fewer is not None
            else "lower --max-pixels, --rank or --max-length, or choose a smaller model"
        )
        need = f"needs at least {format_gib(least.process_peak_bytes)}"
        if tried is not None:
            how = "held only with allocator retries" if tried.fits else f"ended as {tried.status} in phase {tried.phase}"
            need += f" by prediction, and a probe of that {how}"
        return NothingFits(
            f"nothing fits {format_gib(self.job.budget_bytes)} on {self.job.gpu.name}: {self.job.model.name} {need}"
            f" ({describe(knobs)}): {names}",
            hint=f"the smallest budget that would work is about {format_gib(needed)} (predicted); or {change}",
        )

    def _fewer_images(self) -> int | None:
        """The most images an example, of the halves of its number, at which a setting is predicted to fit."""
        count = self.job.workload.most_images // 2
        while count >= 1:
            workload = self.job.workload.with_images(count, self.job.model.pixel_step)
            job = self.job.replace(workload=workload)
            estimator = self.make_estimator(job)
            if any(estimator.estimate(knobs).fits for knobs in settings(job)):
                return count
            count //= 2
        return None

    def _refuse_hopeless(self, estimates: dict[Knobs, Estimate]) -> None:
        """No probe can help when the tensors alone, which a trace knows exactly, are over the budget."""
        if min(estimate.tensor_peak_bytes for estimate in estimates.values()) > self.job.budget_bytes:
            raise self._nothing_fits(estimates)

    # With probes

    def _study(self, grid: Sequence[Knobs], estimates: dict[Knobs, Estimate]) -> Study:
        sampler = make_sampler(
            self.sampler,
            grid,
            [estimates[knobs] for knobs in grid],
            budget_bytes=self.job.budget_bytes,
            seed=self.job.contract.seed,
            uncertainty_share=max(0.005, self.estimator.calibration.uncertainty_share),
        )
        return open_study(self._study_name(), self.storage, sampler)

    def _study_name(self) -> str:
        stack = None if self.prober is None else self.prober.stack
        return study_name(self.job, stack, self.sampler, vision=self.vision, base_precision=self.base_precision)

    def _recall(self, study: Study, estimates: dict[Knobs, Estimate]) -> None:
        """What an earlier run of this study found: the sampler will not ask for it again."""
        for outcome in told(study):
            if outcome.knobs in estimates and self._known(outcome.knobs) is None:
                self._take(self._in_ledger(outcome.knobs) or outcome, estimates[outcome.knobs], "search", known=True)

    def _probe_baseline(self, study: Study, stock: Sequence[Knobs], estimates: dict[Knobs, Estimate]) -> None:
        """The stock recipe from its largest predicted micro-batch up while it fits, or down until it does."""
        sizes = [knobs for knobs in stock if estimates[knobs].tensor_peak_bytes <= self.job.budget_bytes]
        if not sizes:
            return
        start = max((i for i, knobs in enumerate(sizes) if estimates[knobs].fits), default=0)
        fitted = self._run(study, sizes[start], estimates, stage="baseline").fits
        if fitted and start + 1 < len(sizes):
            nearly = estimates[sizes[start + 1]].reserved_peak_bytes <= self.job.budget_bytes
            if nearly:
                self._run(study, sizes[start + 1], estimates, stage="baseline")
        while not fitted and start > 0:
            start -= 1
            fitted = self._run(study, sizes[start], estimates, stage="baseline").fits

    def _search(self, study: Study, grid: Sequence[Knobs], estimates: dict[Knobs, Estimate]) -> None:
        space = distributions(list(estimates))
        idle, asked = 0, 0
        while len(self.outcomes) < self.max_probes - 1 and idle < PATIENCE and asked < 10 * self.max_probes:
            asked += 1
            if isinstance(study.sampler, ResidualSampler):
                chosen = study.sampler.choose(study.get_trials(deepcopy=False))
                if chosen is None:
                    return
                idle = idle + 1 if study.sampler.expected_gain < WORTHWHILE else 0
                if idle >= PATIENCE:
                    return
            trial = study.ask(space)
            knobs = knobs_of(trial, grid[0], self.job.contract.effective_batch)
            estimate = estimates.get(knobs)
            if estimate is None or estimate.tensor_peak_bytes > self.job.budget_bytes:
                tell_refused(study, trial)  # not a valid setting, or known not to fit without asking a card
                continue
            tell(study, trial, self._probe(knobs, estimate, "search"), estimate)

    def _probe_least(self, study: Study, estimates: dict[Knobs, Estimate]) -> bool:
        """Before giving up, the smallest setting, which the sampler was not sure enough of; whether it fits."""
        least = _smallest(estimates)
        if estimates[least].tensor_peak_bytes > self.job.budget_bytes:
            return False
        return self._run(study, least, estimates, stage="search").fits

    def _run(self, study: Study, knobs: Knobs, estimates: dict[Knobs, Estimate], *, stage: Stage) -> Outcome:
        enqueue(study, knobs)
        outcome = self._probe(knobs, estimates[knobs], stage)
        trial = study.ask(distributions(list(estimates)))
        if knobs_of(trial, knobs, self.job.contract.effective_batch) == knobs:
            tell(study, trial, outcome, estimates[knobs])
        else:  # it was in the study already
            study.tell(trial, state=TrialState.FAIL)
        return outcome

    def _probe(self, knobs: Knobs, estimate: Estimate, stage: Stage, *, fresh: bool = False) -> Outcome:
        assert self.prober is not None
        number = len(self.outcomes) + 1
        if not fresh:
            taken = self._known(knobs)
            if taken is not None:
                return taken
            earlier = self._in_ledger(knobs)
            if earlier is not None:
                return self._take(earlier, estimate, stage, known=True)
        self.on_event(Event(stage=stage, number=number, most=self.max_probes, knobs=knobs, estimate=estimate))
        outcome = self.prober.probe(knobs, fresh=fresh)
        if self.ledger is not None:
            self.ledger.append(self.job, outcome)
        return self._take(outcome, estimate, stage, known=False)

    def _known(self, knobs: Knobs) -> Outcome | None:
        """The newest outcome of ``knobs`` in this plan; crashes and time-outs are tried again."""
        final = (o for o in reversed(self.outcomes) if o.knobs == knobs and o.status not in ("crash", "timeout"))
        return next(final, None)

    def _in_ledger(self, knobs: Knobs) -> Outcome | None:
        if self.ledger is None or self.prober is None:
            return None
        return self.ledger.find(self.job, knobs, self.prober.stack)

    def _take(self, outcome: Outcome, estimate: Estimate, stage: Stage, *, known: bool) -> Outcome:
        self.outcomes.append(outcome)
        self.on_event(
            Event(
                stage=stage,
                number=len(self.outcomes),
                most=self.max_probes,
                knobs=outcome.knobs,
                estimate=estimate,
                outcome=outcome,
                from_ledger=known,
            )
        )
        return outcome

    def _confirmed(self, estimates: dict[Knobs, Estimate]) -> Choice:
        ranked = _ranked(self.outcomes)
        if not ranked:
            raise self._failed_everywhere(estimates)
        tried = tuple(self.outcomes)
        confirmed = self._confirm(ranked[:3], estimates)
        stock = max((o for o in tried if is_stock(o.knobs) and o.fits), key=_measured_speed, default=None)
        baseline = _predicted_baseline(estimates) if stock is None and not self.probe_baseline else None
        asked_twice = [outcome.knobs for outcome in self.outcomes[len(tried) :]]
        others = [o for o in ranked if o.knobs not in asked_twice][:3]
        return Choice(
            winner=_settled(confirmed, estimates),
            baseline=baseline if stock is None else _settled(stock, estimates),
            runners_up=tuple(_settled(outcome, estimates) for outcome in others),
            outcomes=tuple(self.outcomes),
            predictions=tuple(estimates[outcome.knobs].replace(terms=()) for outcome in self.outcomes),
            confirmed=confirmed,
        )

    def _confirm(self, ranked: Sequence[Outcome], estimates: dict[Knobs, Estimate]) -> Outcome:
        """The first of ``ranked`` that holds in a fresh process."""
        last = ""
        for outcome in ranked:
            confirmed = self._probe(outcome.knobs, estimates[outcome.knobs], "confirm", fresh=True)
            if held(confirmed):
                return confirmed
            last = f"{confirmed.status} ({confirmed.detail or f'{confirmed.alloc_retries} allocator retries'})"
        raise BudgetftError(
            f"none of the {len(ranked)} best settings held in a fresh process; the last: {last}",
            hint="other processes on the card? lower --budget by a few hundred MiB and plan again",
        )

    def _failed_everywhere(self, estimates: dict[Knobs, Estimate]) -> BudgetftError:
        crashes = [o for o in self.outcomes if o.status in ("crash", "timeout", "nonfinite")]
        if crashes:
            last = crashes[-1]
            return BudgetftError(
                f"no probe succeeded; the last ended as {last.status} in phase {last.phase}: {last.detail}",
                hint="run budgetft doctor to check the environment",
            )
        return self._nothing_fits(estimates)


def describe(knobs: Knobs) -> str:
    """The knobs in one line."""
    kind = "stock" if is_stock(knobs) else f"{knobs.loss}, {knobs.attention}, {knobs.allocator}"
    if knobs.vision == "cached":
        kind += ", cached vision"
    levers = {
        "nf4": knobs.base_precision == "nf4",
        knobs.batching: knobs.batching != "padded",
        knobs.optimizer: knobs.optimizer != "adamw",
        "activations on the host": knobs.offload == "activations",
    }
    unusual = "".join(f", {name}" for name, used in levers.items() if used)
    return f"micro_batch {knobs.micro_batch}, checkpointed {knobs.checkpointed_layers}, {kind}{unusual}"


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
        fits=outcome.fits,
        terms=terms,
        evidence=outcome.evidence,
    )


def _predicted_baseline(estimates: dict[Knobs, Estimate]) -> Candidate | None:
    """The stock recipe at its best micro-batch by prediction."""
    fitting = [knobs for knobs, estimate in estimates.items() if is_stock(knobs) and estimate.fits]
    best = max(fitting, key=lambda knobs: _speed(estimates[knobs]), default=None)
    return None if best is None else Candidate(knobs=best, estimate=estimates[best])


def _smallest(estimates: dict[Knobs, Estimate]) -> Knobs:
    return min(estimates, key=lambda knobs: estimates[knobs].process_peak_bytes)


def _settled(outcome: Outcome, estimates: dict[Knobs, Estimate]) -> Candidate:
    return Candidate(knobs=outcome.knobs, estimate=settle(estimates[outcome.knobs], outcome), outcome=outcome)


def _ranked(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes that held without the allocator having to retry, fastest first, each setting once."""
    best: dict[Knobs, Outcome] = {}
    for outcome in outcomes:
        if held(outcome):
            best[outcome.knobs] = outcome
    return sorted(best.values(), key=_measured_speed, reverse=True)


def _measured_speed(outcome: Outcome) -> float:
    return outcome.samples_per_second or 0.0


def _speed(estimate: Estimate) -> float:
    return estimate.samples_per_second or -float(estimate.process_peak_bytes)
