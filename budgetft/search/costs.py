"""The trade-offs: the best setting at each further value of a range, by prediction, and where there is a GPU by a probe."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from budgetft.contract import Contract
from budgetft.data.shapes import with_frames
from budgetft.errors import NothingFits
from budgetft.knobs import is_stock
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.measure.probe import Prober
from budgetft.outcome import Estimate, Evidence
from budgetft.plan import FRAMES, Candidate, CostRow
from budgetft.predict.clock import Speeds
from budgetft.predict.estimator import Estimator
from budgetft.search.events import Event
from budgetft.search.planner import Choice, Planner
from budgetft.search.ranking import settle
from budgetft.search.study import held
from budgetft.workload import Workload, frames_label

COST_PROBES = 4
"""Probes that all trade-offs of a plan may take together, beside those of the search."""


@dataclass(kw_only=True)
class Step:
    """One row to be: the job at a value of an axis, and what is predicted to be best there (None: nothing fits)."""

    axis: str
    value: str
    job: Job | None = None
    """None: the plan itself, which is known."""
    best: Candidate | None = None
    evidence: Evidence = "predicted"

    def row(self) -> CostRow:
        estimate = None if self.best is None else self.best.estimate
        return CostRow(
            axis=self.axis,
            value=self.value,
            knobs=None if self.best is None else self.best.knobs,
            samples_per_second=estimate and estimate.samples_per_second,
            speed_low=estimate and estimate.speed_low,
            speed_high=estimate and estimate.speed_high,
            process_peak_bytes=estimate and estimate.process_peak_bytes,
            evidence=self.evidence,
        )


@dataclass(kw_only=True)
class StepsUp:
    """Pricing of ``ranges`` beside ``choice``, which was found for ``job``."""

    job: Job
    choice: Choice
    ranges: dict[str, list[int]]
    job_under: Callable[[Contract], Job]
    """The planning problem under another contract."""
    speeds: Speeds | None = None
    """What the search learned of the GPU's speed."""
    prober: Prober | None = None
    """Of ``job``; None, or one on the CPU: all rows are predicted."""
    ledger: Ledger | None = None
    on_event: Callable[[Event], None] = lambda event: None
    left: int = COST_PROBES
    steps: list[Step] = field(default_factory=list)

    def rows(self) -> tuple[CostRow, ...]:
        """One a value, the plan's own among them; each says where it is from."""
        for axis, values in self.ranges.items():
            self.steps += self._frames(values) if axis == FRAMES else self._values(axis, values)
        if self.prober is not None and self.job.device == "cuda":
            self._probe_some(self.prober)
        return tuple(step.row() for step in self.steps)

    def cost_of(self, axis: str, value: int) -> CostRow:
        """The row of one value of a contract's field, by prediction; nothing is probed for it."""
        return self._cost_of(axis, str(value), self.job_under(self.job.contract.replace(**{axis: value}))).row()

    def _values(self, axis: str, values: Sequence[int]) -> Iterable[Step]:
        yield self._own(axis, str(getattr(self.job.contract, axis)))
        agreed = self.job.contract
        follows = axis == "rank" and agreed.alpha == 2 * agreed.rank
        for value in values:
            changes = {axis: value, **({"alpha": 2 * value} if follows else {})}
            yield self._cost_of(axis, str(value), self.job_under(agreed.replace(**changes)))

    def _frames(self, counts: Sequence[int]) -> Iterable[Step]:
        """The number of frames an example is a fact of the data, not a minimum: the plan's own is somewhere among them."""
        workload = self.job.workload
        for count, video in frame_steps(workload, counts):
            value = frames_label(count, video=video)
            if (count, video) == (workload.most_frames, workload.is_video):
                yield self._own(FRAMES, value)
                continue
            other = with_frames(workload, count, self.job.model, video=video)
            yield self._cost_of(FRAMES, value, self.job_under(self.job.contract).replace(workload=other))

    def _own(self, axis: str, value: str) -> Step:
        winner = self.choice.winner
        return Step(axis=axis, value=value, best=winner, evidence=winner.estimate.evidence)

    def _cost_of(self, axis: str, value: str, job: Job) -> Step:
        """By prediction, with the vision and the type of the plan."""
        self.on_event(Event(stage="trace", text=f"cost of {axis} {value}"))
        like = self.choice.winner.knobs
        planner = Planner(
            job=job,
            estimator=Estimator(job, speeds=self.speeds),
            vision="cached" if like.vision == "cached" else "frozen",
            base_precision=like.base_precision,
            allocator=like.allocator,
            with_stock=is_stock(like),
        )
        try:
            return Step(axis=axis, value=value, job=job, best=planner.plan().winner)
        except NothingFits:
            return Step(axis=axis, value=value, job=job)

    def _probe_some(self, prober: Prober) -> None:
        """The next step of every axis first, then the one after: those are the ones that a user would take."""
        axes = [[step for step in self.steps if step.axis == axis and step.job is not None] for axis in self.ranges]
        order = [step for turn in zip_longest(*axes) for step in turn if step is not None and step.best is not None]
        for step in order:
            if self.left <= 0:
                left = sum(each.evidence == "predicted" for each in order)
                self.on_event(Event(stage="cost", text=f"{left} rows stay predicted: {COST_PROBES} may be probed"))
                return
            self._probe(prober, step)

    def _probe(self, prober: Prober, step: Step) -> None:
        assert step.job is not None
        assert step.best is not None
        ours, knobs, said = self.job, step.best.knobs, step.best.estimate
        job = step.job.replace(device=ours.device, host=ours.host, evidence=ours.evidence)
        outcome = None if self.ledger is None else self.ledger.find(job, knobs, prober.stack)
        known = outcome is not None
        if outcome is None:
            self._tell(said, step)
            prober.rebind(job)
            outcome = prober.probe(knobs)
            self.left -= 1
            if self.ledger is not None:
                self.ledger.append(job, outcome)
        event = Event(
            stage="cost",
            text=f"{step.axis} {step.value}",
            number=COST_PROBES - self.left,
            most=COST_PROBES,
            knobs=knobs,
            estimate=said,
            outcome=outcome,
            from_ledger=known,
        )
        self.on_event(event)
        if held(outcome):
            step.best, step.evidence = Candidate(knobs=knobs, estimate=settle(said, outcome), outcome=outcome), outcome.evidence

    def _tell(self, said: Estimate, step: Step) -> None:
        text = f"trying the cost of {step.axis} {step.value}: predicted {said.speed_text()}"
        self.on_event(Event(stage="cost", text=text))


def frame_steps(workload: Workload, counts: Sequence[int]) -> list[tuple[int, bool]]:
    """``counts`` and the frames that ``workload`` has, each with whether as a video: as both where the data is video."""
    own = (workload.most_frames, workload.is_video)
    videos = [(count, True) for count in counts if count > 1 and workload.is_video]
    return sorted({own, *videos, *((count, False) for count in counts)})
