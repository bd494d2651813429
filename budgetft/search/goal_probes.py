"""Contracts tried by probes, in the order of preference: an Optuna study with two constraints, memory and time."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from optuna.distributions import CategoricalDistribution
from optuna.samplers import RandomSampler
from optuna.study import Study
from optuna.trial import TrialState, create_trial

from budgetft.duration import HOUR, RunTime, time_under
from budgetft.goal import NAMES, Values, values_text
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.measure.probe import Prober
from budgetft.outcome import Evidence, Outcome
from budgetft.plan import Candidate
from budgetft.search.events import Event
from budgetft.search.looks import NEVER, Looks
from budgetft.search.place import Place
from budgetft.search.predicted import fastest_of
from budgetft.search.ranking import settle
from budgetft.search.run import make_job, measure_first
from budgetft.search.storage import held_study
from budgetft.search.study import CONSTRAINT, held, open_study

if TYPE_CHECKING:
    from budgetft.search.goal import GoalRequest

TIME_CONSTRAINT = "over_time_share"
"""Seconds of the run over those asked for, less one: feasible at zero and below."""
GOAL_PROBES = 4
"""That choosing a contract may take; planning it has the rest."""
FEWEST_PROBES = 3
"""That planning is left: the baseline, one of the search, the confirmation."""
LIGHTER = 0.93
"""Of a predicted peak that turned out not to fit, what the second try at a contract may have."""
FINAL = ("ok", "oom", "over_budget")
"""Outcomes that say something of a contract; others are of the machine."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a probe or planning found of a contract."""

    fits: bool
    run: RunTime | None
    once: float
    peak_bytes: int | None = None
    evidence: Evidence = "predicted"

    def seconds(self, *, sure: bool) -> float:
        """Of the whole run."""
        if self.run is None:
            return NEVER
        return ((self.run.high_seconds if sure else None) or self.run.seconds) + self.once


@dataclass(kw_only=True)
class Probing:
    """Probes of contracts of ``looks``, each by the setting that is predicted to be its fastest."""

    looks: Looks
    ladders: Sequence[Sequence[int]]
    place: Place
    prober: Prober
    study: Study
    hours: float
    sure: bool
    most: int
    ledger: Ledger | None = None
    made: int = 0
    """Probes that were made, those found in the ledger aside."""
    tried: dict[Values, Tried] = field(default_factory=dict)
    _ratios: list[float] = field(default_factory=list)

    @classmethod
    @contextmanager
    def opened(
        cls, looks: Looks, ladders: Sequence[Sequence[int]], place: Place, request: "GoalRequest"
    ) -> Iterator["Probing"]:
        """With a prober at ``place`` and the study of this goal in the storage of the request."""
        planning = looks.planning
        job = make_job(planning, planning.contract, place)
        measure_first(planning, job, place)
        facts = [job.fingerprint(), looks.fields, ladders, request.hours, request.sure, request.examples]
        facts.append(None if place.stack is None else place.stack.model_dump())
        name = f"goal-{planning.model.name}-{planning.gpu.name}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
        with held_study(name, planning.storage), request.make_prober(job, stack=place.stack) as prober:
            yield cls(
                looks=looks,
                ladders=ladders,
                place=place,
                prober=prober,
                study=open_study(name, planning.storage, RandomSampler(seed=planning.contract.seed)),
                hours=request.hours,
                sure=request.sure,
                most=min(GOAL_PROBES, planning.max_probes - FEWEST_PROBES),
                ledger=None if planning.ledger is None else Ledger(planning.ledger),
            )

    @property
    def measures_time(self) -> bool:
        """Elsewhere a probe tells of memory only: seconds on another GPU or the CPU are not the planned GPU's."""
        return self.place.evidence == "measured"

    @property
    def factor(self) -> float:
        """By which runs took longer than predicted; 1 before any was timed."""
        return math.exp(fmean(self._ratios)) if self._ratios else 1.0

    def choose(self, choose: Callable[[], Values | None]) -> None:
        """Probe what ``choose`` says until it has been probed, or no probe is left. Where nothing is believed possible for
        lack of time alone, and time is measured, the smallest contract is probed."""
        least = tuple(ladder[0] for ladder in self.ladders)
        while self.made < self.most:
            values = choose()
            if values is None and self.measures_time and self.looks.at(least).fits:
                values = least
            if values is None or values in self.tried:
                return
            if not self._try(values):
                return

    def _try(self, values: Values) -> bool:
        """Whether anything was learned of the contract."""
        request, look = self.looks.request(values), self.looks.at(values)
        assert look.candidate is not None
        job, candidate = make_job(request, request.contract, self.place), look.candidate
        outcome = self._probed(values, job, candidate)
        if not held(outcome) and outcome.status in FINAL and self.made < self.most:
            lighter = self._lighter(candidate, job)
            if lighter is not None:
                candidate, outcome = lighter, self._probed(values, job, lighter)
        if outcome.status not in FINAL:
            return False
        tried = self._settled(candidate, outcome, job, look.once)
        self.tried[values] = tried
        self._tell_study(values, outcome, tried)
        return True

    def _probed(self, values: Values, job: Job, candidate: Candidate) -> Outcome:
        knobs, said = candidate.knobs, candidate.estimate
        known = None if self.ledger is None else self.ledger.find(job, knobs, self.prober.stack)
        name = values_text(self.looks.named(values))
        if known is None:
            text = f"probing {name}: predicted {said.speed_text()}"
            self.looks.planning.on_event(Event(stage="cost", text=text))
            self.prober.rebind(job)
            outcome = self.prober.probe(knobs)
            self.made += 1
            if self.ledger is not None:
                self.ledger.append(job, outcome)
        else:
            outcome = known
        event = Event(
            stage="cost", text=name, number=self.made, most=self.most, knobs=knobs, estimate=said, outcome=outcome,
            from_ledger=known is not None,
        )  # fmt: skip
        self.looks.planning.on_event(event)
        return outcome

    def _lighter(self, candidate: Candidate, job: Job) -> Candidate | None:
        """The fastest setting of the same contract that needs clearly less."""
        most = LIGHTER * candidate.estimate.process_peak_bytes
        vision = "cached" if candidate.knobs.vision == "cached" else "frozen"
        alone = job if self.looks.place is not None else job.replace(host=None, evidence="predicted")
        found = fastest_of(self.looks.estimator(alone), self.looks.grid(alone, vision), most_bytes=most)
        return found if found.estimate.fits and found.estimate.process_peak_bytes <= most else None

    def _settled(self, candidate: Candidate, outcome: Outcome, job: Job, once: float) -> Tried:
        said, count = candidate.estimate, self.looks.count(job.workload)
        fits = held(outcome)
        run = time_under(job.contract, said, count)
        if fits and self.measures_time and outcome.samples_per_second and said.samples_per_second:
            self._ratios.append(math.log(said.samples_per_second / outcome.samples_per_second))
            run = time_under(job.contract, settle(said, outcome), count)
        peak = outcome.process_peak_bytes or said.process_peak_bytes
        return Tried(fits=fits, run=run, once=once, peak_bytes=peak, evidence=outcome.evidence)

    def _tell_study(self, values: Values, outcome: Outcome, tried: Tried) -> None:
        """A finished trial: its value is the place in the order of preference, so that the best feasible one is the choice."""
        params = {NAMES[name]: value for name, value in self.looks.named(values).items()}
        if any(trial.params == params for trial in self.study.get_trials(deepcopy=False)):
            return  # from an earlier run of the same command, whose outcomes are in the ledger
        over = (outcome.process_peak_bytes or 0) / outcome.budget_bytes - 1
        seconds = tried.seconds(sure=self.sure)
        attributes: dict[str, Any] = {"status": outcome.status, "evidence": outcome.evidence, "seconds": seconds}
        self.study.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=float(self._order(values)),
                params=params,
                distributions={
                    NAMES[name]: CategoricalDistribution(list(ladder))
                    for name, ladder in zip(self.looks.fields, self.ladders, strict=True)
                },
                constraints={
                    CONSTRAINT: min(over, 0.0) if tried.fits else max(over, 0.02),
                    TIME_CONSTRAINT: seconds / (self.hours * HOUR) - 1,
                },
                user_attrs={**attributes, "outcome": outcome.model_dump_json()},
            )
        )

    def _order(self, values: Values) -> int:
        """The place of ``values`` among all combinations."""
        place = 0
        for value, ladder in zip(values, self.ladders, strict=True):
            place = place * len(ladder) + list(ladder).index(value)
        return place
