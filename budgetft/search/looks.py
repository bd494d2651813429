"""What a run of one contract is predicted to take: looked at once each, the memory models of a size shared by all ranks."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from budgetft.contract import Contract
from budgetft.data.shapes import with_frames
from budgetft.duration import HOUR, RunTime, time_under
from budgetft.errors import BudgetftError, UsageError
from budgetft.goal import Values, contract_with
from budgetft.knobs import Knobs, Vision
from budgetft.measure.job import Job
from budgetft.plan import FRAMES, Candidate, Features
from budgetft.predict.estimator import Estimator
from budgetft.search.events import Event
from budgetft.search.features import survey, tower_seconds
from budgetft.search.place import Place
from budgetft.search.predicted import fastest_of
from budgetft.search.ranking import speed
from budgetft.search.run import WORTH_SHARING, PlanRequest, make_job
from budgetft.search.space import settings
from budgetft.workload import Workload

NEVER = float("inf")
MakeEstimator = Callable[[Job, Callable[[str], None]], Estimator]
"""Of a job; the second is told of traces."""


def traced_estimator(job: Job, on_trace: Callable[[str], None]) -> Estimator:
    """As planning has it."""
    return Estimator(job, on_trace=on_trace)


@dataclass(frozen=True, kw_only=True)
class Look:
    """One contract by prediction: its fastest setting that fits (where none does, the one that needs least)."""

    values: dict[str, int]
    candidate: Candidate | None = None
    """None, as ``run``, where no example fits the contract: ``problem`` says why."""
    run: RunTime | None = None
    once: float = 0.0
    """Seconds before the first step, where the plan would have a feature cache."""
    memory_share: float = NEVER
    """Of the budget that the process peak takes at the upper end of its interval."""
    problem: str = ""

    @property
    def fits(self) -> bool:
        return self.candidate is not None and self.candidate.estimate.fits

    def seconds(self, *, sure: bool = False, factor: float = 1.0) -> float:
        """Of the whole run: the middle, or the slow end (``sure``), the steps corrected by ``factor``."""
        if self.run is None:
            return NEVER
        return factor * ((self.run.high_seconds if sure else None) or self.run.seconds) + self.once


@dataclass(kw_only=True)
class Looks:
    """Looks at the contracts of ``planning`` with values of ``fields`` in the place of its own."""

    planning: PlanRequest
    fields: tuple[str, ...]
    examples: int | None
    """In one epoch; None: those of the data."""
    place: Place | None
    """Where probes run, if their seconds are to be predicted too; None: the planned GPU itself is predicted."""
    traced: bool = False
    """Whether a memory model had to be traced, which takes many seconds."""
    make_estimator: MakeEstimator = traced_estimator
    known: dict[Values, Look] = field(default_factory=dict)
    _workloads: dict[tuple[int, int], Workload] = field(default_factory=dict)
    _surveys: dict[int, tuple[Features, int]] = field(default_factory=dict)

    def at(self, values: Values) -> Look:
        """The look at ``values``; where no run of it is possible, as of examples that are too long, it has the problem."""
        if values not in self.known:
            try:
                self.known[values] = self._looked(values)
            except BudgetftError as error:
                self.known[values] = Look(values=self.named(values), problem=error.message.splitlines()[0])
        return self.known[values]

    def first(self, values: Values) -> Look:
        """As :meth:`at`, but what makes a run impossible is raised."""
        self.known[values] = self._looked(values)
        return self.known[values]

    def named(self, values: Values) -> dict[str, int]:
        """``values`` by field."""
        return dict(zip(self.fields, values, strict=True))

    def request(self, values: Values) -> PlanRequest:
        """The planning of that contract, without ranges. Data with other frames is still to be made: it is named by none."""
        contract = contract_with(self.planning.contract, self.named(values))
        workload = self.workload(values)
        data = self.planning.data if self.data_frames(values) is None else None
        known = {(contract.max_pixels, contract.max_length): workload}

        def under(other: Contract) -> Workload:
            """That of this contract is known, frames that are still to be made included."""
            return known.get((other.max_pixels, other.max_length)) or self.planning.workload_under(other)

        return replace(self.planning, contract=contract, ranges={}, workload_under=under, data=data)

    def data_frames(self, values: Values) -> int | None:
        """Frames of the examples as they are, where ``values`` ask for others."""
        wanted, own = self.named(values).get(FRAMES), self._measured(values).most_frames
        return None if wanted is None or wanted == own else own

    def workload(self, values: Values) -> Workload:
        """The shapes of the examples under that contract. Raises ``UsageError`` where one is longer than it allows."""
        measured, contract = self._measured(values), contract_with(self.planning.contract, self.named(values))
        wanted = self.named(values).get(FRAMES)
        if wanted is None or wanted == measured.most_frames:
            return measured
        longest, model, tokens = contract.max_length, self.planning.model, wanted
        if wanted <= longest:
            made = with_frames(measured, wanted, model, video=measured.is_video and wanted > 1)
            tokens = made.worst[0].total_tokens(model.pixel_step)
            if tokens <= longest:
                return made
        raise UsageError(
            f"examples of {wanted} frames have {tokens} tokens or more, over --max-length {longest}",
            hint="raise --max-length, or lower --max-pixels or --frames-per-example",
        )

    def _measured(self, values: Values) -> Workload:
        contract = contract_with(self.planning.contract, self.named(values))
        key = contract.max_pixels, contract.max_length
        if key not in self._workloads:
            self._workloads[key] = self.planning.workload_under(contract)
        return self._workloads[key]

    def estimator(self, job: Job) -> Estimator:
        """Of ``job``; tells of traces."""
        return self.make_estimator(job, self._on_trace)

    def _on_trace(self, text: str) -> None:
        self.traced = True
        self.planning.on_event(Event(stage="trace", text=text))

    def grid(self, job: Job, vision: Vision = "frozen") -> list[Knobs]:
        """What planning would try."""
        return settings(job, vision, allocator="expandable" if self.place is None else self.place.allocator)

    def _looked(self, values: Values) -> Look:
        request = self.request(values)
        if request.gpus == 1 or request.shared is not None:
            return self._quickest(values, request)
        whole, shared = (self._quickest(values, replace(request, shared=shared)) for shared in (False, True))
        assert whole.candidate is not None
        assert shared.candidate is not None
        faster = speed(shared.candidate.estimate) > WORTH_SHARING * speed(whole.candidate.estimate)
        return shared if shared.fits and (faster or not whole.fits) else whole

    def _quickest(self, values: Values, request: PlanRequest) -> Look:
        """With the vision that the whole run is shorter with."""
        job = make_job(request, request.contract, self.place)
        frozen = self._with_vision(values, job, request, "frozen", 0.0)
        if request.cache is None:
            return frozen
        once = self._once(job, request)
        cached = self._with_vision(values, job, request, "cached", once)
        return cached if cached.fits and (not frozen.fits or cached.seconds() < frozen.seconds()) else frozen

    def _once(self, job: Job, request: PlanRequest) -> float:
        assert request.cache is not None
        pixels = request.contract.max_pixels
        if pixels not in self._surveys:
            self._surveys[pixels] = survey(request.cache, job, request.data)
        seconds = tower_seconds(job, self.estimator(job), self._surveys[pixels][1])
        return seconds or 0.0

    def _with_vision(self, values: Values, job: Job, request: PlanRequest, vision: Vision, once: float) -> Look:
        estimator = self.estimator(job)
        best = fastest_of(estimator, self.grid(job, vision))
        room = 1 + estimator.uncertainty_of(best.knobs)
        return Look(
            values=self.named(values),
            candidate=best,
            run=time_under(request.contract, best.estimate, self.count(job.workload)),
            once=once,
            memory_share=room * best.estimate.process_peak_bytes / job.budget_bytes,
        )

    def count(self, workload: Workload) -> int | None:
        """Examples of one epoch."""
        return workload.examples if self.examples is None else self.examples


def miss(look: Look, hours: float, *, sure: bool, factor: float = 1.0) -> float:
    """The share by which the run of ``look`` is over the time or over the budget, whichever is more; 0 or less: possible."""
    over = look.seconds(sure=sure, factor=factor) / (hours * HOUR) - 1
    return over if look.fits else max(over, look.memory_share - 1, 1e-9)


def planned_time(looks: Looks, values: Values, knobs: Knobs, contract: Contract) -> RunTime | None:
    """The predicted time of ``knobs`` under the contract at ``values``."""
    request = looks.request(values)
    job = make_job(request, contract, looks.place)
    return time_under(contract, looks.estimator(job).estimate(knobs), looks.count(job.workload))
