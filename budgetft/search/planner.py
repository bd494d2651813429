"""From a job to a plan: predict, probe what is worth probing, confirm the winner in a fresh process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from optuna.study import Study
from optuna.trial import Trial

from budgetft.errors import BudgetftError, NothingFits, UsageError
from budgetft.knobs import Allocator, Knobs, Precision, Vision, is_stock
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.measure.probe import Prober
from budgetft.outcome import Estimate, Outcome
from budgetft.plan import Candidate
from budgetft.predict.clock import Speeds
from budgetft.predict.estimator import Estimator
from budgetft.predict.learn import FREE_OFFSET, OFFSET, Learner, learned_speeds
from budgetft.search.claims import Claims
from budgetft.search.events import Event, Stage
from budgetft.search.minimum import nothing_fits
from budgetft.search.ranking import measured_speed, predicted_baseline, ranked_by_speed, settled, smallest, speed
from budgetft.search.sampler import AGAIN, CONFIRM, TRIES, ResidualSampler, distributions, log_seconds, places
from budgetft.search.space import in_precision, settings, stock_settings
from budgetft.search.storage import held_study, is_shared
from budgetft.search.study import SamplerName, held, knobs_of, make_sampler, open_study, study_name, tell_refused, told
from budgetft.search.transfer import Transferred
from budgetft.search.ways_out import Alternatives

LEFT_FOR_SEARCH = 2
"""Probes that the baseline leaves, besides the one that confirms."""


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
    speeds: Speeds | None = None
    """What is believed of the GPU's speed after the probes; None where there is no time model of it."""
    workers: tuple[str, ...] = ()
    """Who made each outcome, where several may have shared the work."""


@dataclass(kw_only=True)
class Planner:
    """Planning of one job. With no ``prober`` the plan is predicted only."""

    job: Job
    estimator: Estimator | Transferred
    on_event: Callable[[Event], None] = lambda event: None
    prober: Prober | None = None
    ledger: Ledger | None = None
    vision: Vision = "frozen"
    allocator: Allocator = "expandable"
    """That the place has; see :func:`budgetft.search.space.settings`."""
    sampler: SamplerName = "residual"
    storage: str = "sqlite:///:memory:"
    max_probes: int = 20
    make_estimator: Callable[[Job], Estimator] = Estimator
    """For jobs beside the planned one."""
    probe_baseline: bool = True
    with_stock: bool = True
    """Whether the stock recipe is weighed too. It needs a memory model of its own, which is traced at every other rank."""
    base_precision: Precision | None = None
    """None: what the GPU runs natively."""
    make_claims: Callable[..., Claims] = Claims
    outcomes: list[Outcome] = field(default_factory=list)
    confirmations: list[Outcome] = field(default_factory=list)
    """Those of ``outcomes`` that are of a probe made again."""

    def plan(self) -> Choice:
        """Raises ``NothingFits`` with the smallest budget that would work."""
        grid, stock = (
            self._wanted(settings(self.job, self.vision, allocator=self.allocator)),
            self._wanted(stock_settings(self.job)) if self.with_stock else [],
        )
        estimates = {knobs: self.estimator.estimate(knobs) for knobs in [*grid, *stock]}
        if self.prober is None:
            return self._predicted(grid, stock, estimates)
        self._refuse_hopeless(estimates)
        if is_shared(self.storage) and self.sampler != "residual":
            raise UsageError(
                f"sampler {self.sampler!r} cannot be shared by several workers",
                hint="leave --sampler out, or give a --storage of this worker's own: sqlite:///FILE",
            )
        with held_study(self._study_name(), self.storage):
            study = self._study([*grid, *stock], estimates)
            claims = self.make_claims(study, distributions([*grid, *stock]), shared=is_shared(self.storage))
            while True:
                self._explore(claims, grid, stock, estimates)
                choice = self._confirmed(claims, estimates)
                if not self._recall(claims, estimates) and not claims.others():
                    return choice

    def _wanted(self, grid: list[Knobs]) -> list[Knobs]:
        if self.base_precision is None:
            return grid
        return [in_precision(self.job, knobs, self.base_precision) for knobs in grid]

    # Without probes

    def _predicted(self, grid: Sequence[Knobs], stock: Sequence[Knobs], estimates: dict[Knobs, Estimate]) -> Choice:
        fitting = [knobs for knobs in (*grid, *stock) if estimates[knobs].fits]
        if not fitting:
            raise self._nothing_fits(estimates)
        ranked = sorted(fitting, key=lambda knobs: speed(estimates[knobs]), reverse=True)
        others = [Candidate(knobs=knobs, estimate=estimates[knobs]) for knobs in ranked[1:4]]
        return Choice(
            winner=Candidate(knobs=ranked[0], estimate=estimates[ranked[0]]),
            baseline=predicted_baseline(estimates),
            runners_up=tuple(others),
        )

    def _nothing_fits(self, estimates: dict[Knobs, Estimate]) -> NothingFits:
        tried = self._known(smallest(estimates))
        alternatives = Alternatives(job=self.job, grid=self._other_grid, make_estimator=self.make_estimator)
        return nothing_fits(estimates, tried, self.estimator.calibration.uncertainty_share, alternatives)

    def _other_grid(self, job: Job, vision: Vision) -> list[Knobs]:
        """What would be tried of another job, in the plan's own type or, where it has leave for that, in 4 bits."""
        vision = "cached" if self.vision == "cached" else vision
        return (
            settings(job, vision, allocator=self.allocator) if job.contract.allow_nf4 else self._wanted(settings(job, vision))
        )

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
            learner=self._learner(grid, estimates),
        )
        return open_study(self._study_name(), self.storage, sampler)

    def _learner(self, grid: Sequence[Knobs], estimates: dict[Knobs, Estimate]) -> Learner | None:
        """What learns of the speed of ``grid``. On the CPU's byte meter seconds are not of the GPU that is known of."""
        clock = self.estimator.clock(grid)
        if clock is None:
            return None
        seconds = log_seconds([estimates[knobs] for knobs in grid])
        offset = FREE_OFFSET if self.job.device == "cpu" else OFFSET
        return Learner(places(grid), seconds, clock=clock, speeds=self.estimator.speeds, offset=offset)

    def _learned_speeds(self, claims: Claims) -> Speeds | None:
        sampler = claims.study.sampler
        known = self.job.device == "cuda" and self.estimator.clock([self.outcomes[0].knobs]) is not None
        if not known or not isinstance(sampler, ResidualSampler):
            return None
        learned = sampler.learned(claims.study.get_trials(deepcopy=False))
        return learned_speeds(self.estimator.speeds, learned, f"{len(self.outcomes)} probes of this job")

    def _study_name(self) -> str:
        stack = None if self.prober is None else self.prober.stack
        return study_name(self.job, stack, self.sampler, vision=self.vision, base_precision=self.base_precision)

    def _recall(self, claims: Claims, estimates: dict[Knobs, Estimate]) -> bool:
        """Take what an earlier run of this study or another worker found, and say whether there was any."""
        found = [o for o in told(claims.study) if o.knobs in estimates and self._known(o.knobs) is None]
        origins = claims.origins() if found and claims.shared else {}
        for outcome in found:
            newer = self._in_ledger(outcome.knobs) or outcome
            if claims.shared and (newer in origins or held(newer)):  # of two that held, all workers take the same
                newer = outcome
            self._take(newer, estimates[outcome.knobs], "search", known=True)
        return bool(found)

    def _explore(self, claims: Claims, grid: Sequence[Knobs], stock: Sequence[Knobs], estimates: dict[Knobs, Estimate]) -> None:
        """Probe until nothing is worth it any more, and no other worker is at it either."""
        while True:
            self._recall(claims, estimates)
            if self.probe_baseline:
                self._probe_baseline(claims, stock, estimates)
            self._search(claims, grid, estimates)
            if not any(outcome.fits for outcome in self.outcomes) and self._probe_least(claims, estimates):
                self._search(claims, grid, estimates)
            if not claims.wait(lambda text: self.on_event(Event(stage="search", text=text))):
                return

    def _probe_baseline(self, claims: Claims, stock: Sequence[Knobs], estimates: dict[Knobs, Estimate]) -> None:
        """The stock recipe from its largest predicted micro-batch up while it fits, or down until it does.

        Two probes are left for the search, however few there are.
        """
        most = max(1, self.max_probes - 1 - LEFT_FOR_SEARCH)
        sizes = [knobs for knobs in stock if estimates[knobs].tensor_peak_bytes <= self.job.budget_bytes]
        if not sizes:
            return
        start = max((i for i, knobs in enumerate(sizes) if estimates[knobs].fits), default=0)
        found = self._run(claims, sizes[start], estimates, stage="baseline")
        if found is not None and found.fits and start + 1 < len(sizes):
            nearly = estimates[sizes[start + 1]].reserved_peak_bytes <= self.job.budget_bytes
            if nearly and len(self.outcomes) < most:
                self._run(claims, sizes[start + 1], estimates, stage="baseline")
        while found is not None and not found.fits and start > 0 and len(self.outcomes) < most:
            start -= 1
            found = self._run(claims, sizes[start], estimates, stage="baseline")

    def _search(self, claims: Claims, grid: Sequence[Knobs], estimates: dict[Knobs, Estimate]) -> None:
        study = claims.study
        for _ in range(10 * self.max_probes):
            self._recall(claims, estimates)
            others = claims.others()
            if len(self.outcomes) + len(others) >= self.max_probes - 1:
                return
            if isinstance(study.sampler, ResidualSampler):
                left = self.max_probes - 1 - len(self.outcomes) - len(others)
                proposal = study.sampler.propose(study.get_trials(deepcopy=False), left=left)
                if proposal is None:
                    return
                knobs, again = proposal.knobs, proposal.times > 0
                trial = claims.take(knobs, purpose=f"{AGAIN}-{proposal.times}" if again else "search")
                if trial is None:  # another worker was quicker
                    continue
            else:
                trial, again = study.ask(claims.space), False
                knobs = knobs_of(trial, grid[0], self.job.contract.effective_batch)
            estimate = estimates.get(knobs)
            if estimate is None or estimate.tensor_peak_bytes > self.job.budget_bytes:
                tell_refused(study, trial)  # not a valid setting, or known not to fit without asking a GPU
                continue
            self._work(claims, trial, knobs, estimate, "search", again=again)

    def _probe_least(self, claims: Claims, estimates: dict[Knobs, Estimate]) -> bool:
        """Before giving up, the smallest setting, which the sampler was not sure enough of; whether it fits."""
        least = smallest(estimates)
        if estimates[least].tensor_peak_bytes > self.job.budget_bytes:
            return False
        found = self._run(claims, least, estimates, stage="search")
        return found is not None and found.fits

    def _run(self, claims: Claims, knobs: Knobs, estimates: dict[Knobs, Estimate], *, stage: Stage) -> Outcome | None:
        """What is known of ``knobs``, or a probe of them; None while another worker probes them."""
        known = self._known(knobs)
        if known is not None:
            return known
        failed = [outcome for outcome in self.outcomes if outcome.knobs == knobs]
        if len(failed) >= TRIES:  # or two workers would try in turns for ever, each after the other's failure
            return failed[-1]
        trial = claims.take(knobs)
        if trial is None:
            self._recall(claims, estimates)
            return self._known(knobs)
        return self._work(claims, trial, knobs, estimates[knobs], stage)

    def _work(
        self,
        claims: Claims,
        trial: Trial,
        knobs: Knobs,
        estimate: Estimate,
        stage: Stage,
        *,
        fresh: bool = False,
        again: bool = False,
    ) -> Outcome:
        """Probe what ``trial`` claims, and tell the study."""
        with claims.working(trial):
            outcome = self._probe(knobs, estimate, stage, fresh=fresh, again=again)
        claims.tell(trial, outcome, estimate)
        return outcome

    def _probe(self, knobs: Knobs, estimate: Estimate, stage: Stage, *, fresh: bool = False, again: bool = False) -> Outcome:
        """``fresh``: in a new process; ``again``: though it is known, in the same process."""
        assert self.prober is not None
        number = len(self.outcomes) + 1
        if not fresh and not again:
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

    def _confirmed(self, claims: Claims, estimates: dict[Knobs, Estimate]) -> Choice:
        tried = [outcome for outcome in self.outcomes if outcome not in self.confirmations]
        ranked = self._ranked(claims, tried)
        if not ranked:
            raise self._failed_everywhere(estimates)
        confirmed = self._confirm(claims, ranked[:3], estimates)
        stock = max((o for o in tried if is_stock(o.knobs) and o.fits), key=measured_speed, default=None)
        baseline = predicted_baseline(estimates) if stock is None and not self.probe_baseline else None
        asked_twice = [outcome.knobs for outcome in self.confirmations]
        others = [o for o in ranked if o.knobs not in asked_twice][:3]
        origins = claims.origins() if claims.shared else {}
        outcomes = sorted(self.outcomes, key=lambda outcome: origins.get(outcome, (-1, ""))[0])
        return Choice(
            winner=settled(confirmed, estimates),
            baseline=baseline if stock is None else settled(stock, estimates),
            runners_up=tuple(settled(outcome, estimates) for outcome in others),
            outcomes=tuple(outcomes),
            predictions=tuple(estimates[outcome.knobs].replace(terms=()) for outcome in outcomes),
            confirmed=confirmed,
            speeds=self._learned_speeds(claims),
            workers=tuple(origins.get(o, (-1, claims.worker))[1] for o in outcomes) if claims.shared else (),
        )

    def _ranked(self, claims: Claims, tried: Sequence[Outcome]) -> list[Outcome]:
        """What held, each setting once, the best first: by what is expected of it where the sampler learns, else as read."""
        ranked, sampler = ranked_by_speed(tried), claims.study.sampler
        if not isinstance(sampler, ResidualSampler):
            return ranked
        order = {knobs: place for place, knobs in enumerate(sampler.ranking(claims.study.get_trials(deepcopy=False)))}
        return sorted(ranked, key=lambda outcome: order.get(outcome.knobs, len(order)))

    def _confirm(self, claims: Claims, ranked: Sequence[Outcome], estimates: dict[Knobs, Estimate]) -> Outcome:
        """The first of ``ranked`` that holds in a fresh process."""
        last = ""
        for outcome in ranked:
            confirmed = self._again(claims, outcome.knobs, estimates[outcome.knobs])
            if confirmed not in self.confirmations:
                self.confirmations.append(confirmed)
            if held(confirmed):
                return confirmed
            last = f"{confirmed.status} ({confirmed.detail or f'{confirmed.alloc_retries} allocator retries'})"
        raise BudgetftError(
            f"none of the {len(ranked)} best settings held in a fresh process; the last: {last}",
            hint="other processes on the GPU? lower --budget by a few hundred MiB and plan again",
        )

    def _again(self, claims: Claims, knobs: Knobs, estimate: Estimate) -> Outcome:
        """A probe of ``knobs`` in a fresh process: this worker's, or that of another who shares the study."""
        if not claims.shared:
            return self._probe(knobs, estimate, CONFIRM, fresh=True)
        while True:
            found = claims.confirmation(knobs)
            if found is not None:
                return found if found in self.confirmations else self._take(found, estimate, CONFIRM, known=True)
            trial = claims.take(knobs, purpose=CONFIRM)
            if trial is not None:
                return self._work(claims, trial, knobs, estimate, CONFIRM, fresh=True)
            claims.wait(lambda text: self.on_event(Event(stage=CONFIRM, text=text)))

    def _failed_everywhere(self, estimates: dict[Knobs, Estimate]) -> BudgetftError:
        crashes = [o for o in self.outcomes if o.status in ("crash", "timeout", "nonfinite")]
        if crashes:
            last = crashes[-1]
            return BudgetftError(
                f"no probe succeeded; the last ended as {last.status} in phase {last.phase}: {last.detail}",
                hint="run budgetft doctor to check the environment",
            )
        return self._nothing_fits(estimates)
