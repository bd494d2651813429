"""A plan from a request: plan where trials run, tell what steps up would cost, and write down the proof."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from budgetft.contract import Contract
from budgetft.errors import BudgetftError, NothingFits, UsageError
from budgetft.gpu import Gpu
from budgetft.knobs import Precision as Type
from budgetft.knobs import computed_in
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.measure.probe import Prober
from budgetft.model import Model
from budgetft.plan import CostRow, Plan, Proof, Target, refer
from budgetft.precision import Precision
from budgetft.predict.estimator import Estimator
from budgetft.predict.machine import known_machine, measure_machine
from budgetft.search.answers import with_answers
from budgetft.search.costs import StepsUp
from budgetft.search.events import Event
from budgetft.search.features import Weighed, chosen_features, weigh
from budgetft.search.overflows import Search, planned_precision
from budgetft.search.place import Place, check_packages, environment, find_place
from budgetft.search.planner import Choice, Planner
from budgetft.search.ranking import speed
from budgetft.search.space import base_precision, padding_of
from budgetft.search.study import SamplerName
from budgetft.search.transfer import Lesson, Transferred
from budgetft.weights import Checkpoint, base_here
from budgetft.workload import Workload

WORTH_SHARING = 1.1
"""Times as fast as with the whole base on each GPU, from which its layers are shared out: no less can be told beforehand."""


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """Everything that ``budgetft plan`` was asked."""

    gpu: Gpu
    budget_bytes: int
    display_bytes: int = 0
    """What the default budget leaves to a display on the GPU."""
    gpus: int = 1
    """Several are planned for without probes, which one process makes."""
    shared: bool | None = None
    """Several GPUs share the frozen decoder layers out, or each holds the whole base; None: whichever is faster and fits."""
    model: Model
    contract: Contract
    workload_under: Callable[[Contract], Workload]
    """The shapes of the examples under a contract: fewer pixels, smaller images."""
    ranges: dict[str, list[int]] = field(default_factory=dict)
    """Further values of contract fields, whose cost is told."""
    data: str | None = None
    cache: str | None = None
    """Consider cached vision, with its features in this folder or in one of the tool's (``auto``)."""
    probe: Literal["auto", "always", "never"] = "auto"
    max_probes: int = 20
    sampler: SamplerName = "residual"
    storage: str = "sqlite:///:memory:"
    ledger: Path | None = None
    on_event: Callable[[Event], None] = lambda event: None
    lessons: Sequence[Lesson] | None = None
    """What probes elsewhere found, for a plan that is ported; None: nothing is known beforehand."""
    origin: str = ""
    """Of a ported plan, in words: where its evidence is from."""
    base_precision: Type | None = None
    """None: what the GPU runs natively."""
    deterministic: bool = False
    """Every run of the plan on one GPU has the same bits; what that costs is measured where there is a GPU."""
    fp32_blocks: tuple[str, ...] = ()
    """Blocks that are known to overflow fp16; looked for anew where the weights are at hand."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found, of ``request`` as it was searched."""

    request: PlanRequest
    job: Job
    choice: Choice
    estimator: Estimator | Transferred
    weighed: Weighed | None
    costs: tuple[CostRow, ...]
    cost: str = ""
    """Of computing the same bits each time, in words."""


def make_plan(request: PlanRequest) -> Plan:
    """Plan as requested. Raises ``NothingFits`` or another ``BudgetftError``; every finished probe stays in the ledger."""
    started = time.monotonic()
    if request.gpus > request.contract.effective_batch:
        raise UsageError(
            f"--gpus {request.gpus}: a step has {request.contract.effective_batch} examples to share",
            hint="raise --effective-batch, or plan for fewer GPUs",
        )
    place = find_place(request)
    check_packages(request.contract, place)
    checkpoint = base_here(request.model.weights or request.model.hub_id)
    precision = precision_of(request, place, checkpoint)
    if precision is not None:
        request = replace(request, fp32_blocks=precision.fp32_blocks)
    either = request.gpus > 1 and request.shared is None
    found = _whole_or_shared(request, place) if either else _search(request, place)
    plan = _plan(found, place, started, checkpoint, precision)
    if request.cache is not None and found.weighed is not None and plan.knobs.vision == "cached":
        features = chosen_features(request.cache, found.job, request.data, found.weighed, plan.knobs.base_precision)
        plan = plan.replace(features=features)
    at_hand = checkpoint is not None
    steps_up = _steps_up(replace(request, ranges={}), found.job, found.choice, None)
    data = None if request.lessons is not None else request.data  # a ported plan is of data that need not be here
    return with_answers(plan, steps_up, data=data, at_hand=at_hand)


def precision_of(request: PlanRequest, place: Place | None, checkpoint: Checkpoint | None) -> Precision | None:
    """What overflows fp16 in the weights, where they are at hand and something is computed in fp16."""
    job = make_job(request, request.contract, place)
    chosen = request.base_precision or base_precision(job)
    if computed_in(chosen) != "fp16" and not request.contract.allow_nf4:
        return None

    def tell(text: str) -> None:
        request.on_event(Event(stage="trace", text=text))

    if checkpoint is None:
        return None
    search = Search(
        model=request.model,
        contract=request.contract,
        checkpoint=checkpoint,
        data=None if request.data is None else Path(request.data),
        workload=job.workload,
        device=job.device if place is not None else "cpu",
    )
    return planned_precision(search, tell)


def _whole_or_shared(request: PlanRequest, place: Place | None) -> Found:
    """For several GPUs: the whole base on each where it fits, unless sharing its layers out is clearly faster."""
    found: list[Found] = []
    for shared in (False, True):
        try:
            found.append(_search(replace(request, shared=shared), place))
        except NothingFits:
            if shared and not found:
                raise
    whole, *others = found
    faster = (
        each for each in others if speed(each.choice.winner.estimate) > WORTH_SHARING * speed(whole.choice.winner.estimate)
    )
    return next(faster, whole)


def _search(request: PlanRequest, place: Place | None) -> Found:
    job = make_job(request, request.contract, place)
    measure_first(request, job, place)
    estimator = make_estimator(request, job, place)
    weighed = None if request.cache is None else weigh(request.cache, job, estimator, request.data)
    if weighed is not None:
        request.on_event(Event(stage="trace", text=weighed.text))
    planner = Planner(
        job=job,
        estimator=estimator,
        on_event=request.on_event,
        vision="frozen" if weighed is None else weighed.vision,
        allocator="expandable" if place is None else place.allocator,
        sampler=request.sampler,
        storage=request.storage,
        max_probes=request.max_probes,
        probe_baseline=request.lessons is None,
        base_precision=request.base_precision,
    )
    if place is not None:
        with Prober(job, stack=place.stack) as prober:
            planner.prober = prober
            planner.ledger = None if request.ledger is None else Ledger(request.ledger)
            choice = planner.plan()
            cost = _cost_of_determinism(request, job, choice, planner)
            costs = _steps_up(request, job, choice, planner).rows()
    else:
        choice, cost = planner.plan(), ""
        costs = _steps_up(request, job, choice, planner).rows()
    return Found(request=request, job=job, choice=choice, estimator=estimator, weighed=weighed, costs=costs, cost=cost)


def _cost_of_determinism(request: PlanRequest, job: Job, choice: Choice, planner: Planner) -> str:
    """How much slower the winner is than without, by one probe more; in words."""
    speed_with = choice.winner.estimate.samples_per_second
    if not request.deterministic or planner.prober is None or not speed_with:
        return ""
    outcome = planner.prober.probe(choice.winner.knobs.replace(deterministic=False))
    if planner.ledger is not None:
        planner.ledger.append(job, outcome)
    if not outcome.samples_per_second:
        return ""
    share = speed_with / outcome.samples_per_second - 1
    text = f"; deterministic: {speed_with:.2f} examples/s, {outcome.samples_per_second:.2f} without ({share:+.0%})"
    request.on_event(Event(stage="confirm", text=text.removeprefix("; ")))
    return text


def _steps_up(request: PlanRequest, job: Job, choice: Choice, planner: Planner | None) -> StepsUp:
    return StepsUp(
        job=job,
        choice=choice,
        ranges=request.ranges,
        job_under=lambda contract: make_job(request, contract, None),
        speeds=choice.speeds,
        prober=None if planner is None else planner.prober,
        ledger=None if planner is None else planner.ledger,
        on_event=request.on_event,
    )


def measure_first(request: PlanRequest, job: Job, place: Place | None) -> None:
    """Before the first probe on a GPU: what it and its host do in ten seconds, unless that is known already."""
    if place is None or place.device != "cuda" or place.stack is None:
        return
    machine = known_machine(place.stack)
    if machine is None:
        text = "measuring the GPU and its host: launches, products, bandwidth, copies; some ten seconds, once"
        request.on_event(Event(stage="trace", text=text))
        try:
            machine = measure_machine(place.stack, job.host or job.gpu)
        except BudgetftError as error:
            request.on_event(Event(stage="trace", text=f"{error.message}: going on with what is known of such GPUs"))
            return
    for warning in machine.warnings():
        request.on_event(Event(stage="trace", text=f"{warning}: is the GPU shared, or throttling? speeds are less sure"))


def make_estimator(request: PlanRequest, job: Job, place: Place | None) -> Estimator | Transferred:
    """The estimator that the request is planned with."""
    estimator = Estimator(job, on_trace=lambda text: request.on_event(Event(stage="trace", text=text)))
    if request.lessons is None:
        return estimator
    gpu = None if place is None or place.stack is None else place.stack.gpu
    return Transferred(estimator, request.lessons, gpu=gpu)


def make_job(request: PlanRequest, contract: Contract, place: Place | None) -> Job:
    """The planning problem under ``contract``, with what a probe at ``place`` counts as."""
    return Job(
        gpu=request.gpu,
        budget_bytes=request.budget_bytes,
        gpus=request.gpus,
        shared=bool(request.shared),
        model=request.model,
        contract=contract,
        fp32_blocks=request.fp32_blocks,
        deterministic=request.deterministic,
        workload=request.workload_under(contract),
        device="cuda" if place is None else place.device,
        host=None if place is None else place.host,
        evidence="predicted" if place is None else place.evidence,
    )


def _plan(
    found: Found, place: Place | None, started: float, checkpoint: Checkpoint | None, precision: Precision | None
) -> Plan:
    from budgetft.predict.stages import stage_peaks  # loads torch

    request, job, choice, calibration = found.request, found.job, found.choice, found.estimator.calibration
    winner = choice.winner
    unprobed = (
        f"traced on fake tensors, calibration {calibration.name!r}, +- {calibration.uncertainty_share:.1%}; no GPU was used"
        + (f"; layers travel at {calibration.link_gb_per_s:g} GB/s (assumed)" if job.shared else "")
    )
    return Plan(
        gpu=Target(
            name=job.gpu.name,
            budget_bytes=job.budget_bytes,
            display_bytes=request.display_bytes,
            profile=job.gpu,
            gpus=job.gpus,
            shared=job.shared,
        ),
        model=refer(job.model, None if checkpoint is None else checkpoint.base),
        contract=job.contract,
        knobs=winner.knobs,
        estimate=winner.estimate,
        evidence=Proof(
            kind="predicted" if place is None else place.evidence,
            outcomes=choice.outcomes,
            confirmed=choice.confirmed,
            wall_seconds=round(time.monotonic() - started, 1),
            statement=request.origin + (unprobed if place is None else place.statement) + found.cost,
            predictions=choice.predictions,
            workers=choice.workers,
            calibration=calibration.name,
            uncertainty_share=found.estimator.uncertainty_of(winner.knobs),
        ),
        baseline=choice.baseline,
        over_baseline=_over_baseline(found),
        stages=stage_peaks(job, winner.knobs, winner.estimate),
        price_list=found.costs,
        runners_up=choice.runners_up,
        workload=job.workload,
        padding=padding_of(job, winner.knobs.micro_batch),
        precision=precision and precision.shortened(),
        data=request.data,
        environment=environment(place),
    )


def _over_baseline(found: Found) -> tuple[float, float] | None:
    """Where one of the two speeds is predicted."""
    winner, baseline = found.choice.winner, found.choice.baseline
    if baseline is None or "predicted" not in (winner.estimate.evidence, baseline.estimate.evidence):
        return None
    if found.job.device == "cpu" and found.choice.outcomes:
        return None  # both were timed on the CPU
    return found.estimator.ratio_range(winner.knobs, baseline.knobs)
