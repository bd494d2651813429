"""A plan for another GPU from the evidence of one that was made: what carries over, what changes, and why."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from budgetft.errors import NothingFits, UsageError
from budgetft.gpu import Gpu, all_gpus
from budgetft.knobs import Knobs, Precision, differences, shown
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.model import Model
from budgetft.outcome import Estimate, Outcome
from budgetft.plan import Plan
from budgetft.predict.estimator import Estimator
from budgetft.search.events import Event
from budgetft.search.place import find_place
from budgetft.search.run import PlanRequest, make_estimator, make_job, make_plan
from budgetft.search.space import in_precision, settings
from budgetft.search.transfer import Transferred, describe_lessons, learn, plan_evidence
from budgetft.units import MIB, format_gib
from budgetft.value import Value

MOST_PROBES = 3
"""Two that may still teach something, and the confirmation in a fresh process; one that fails is made up for."""


class Change(Value):
    """One knob that the new plan has otherwise."""

    knob: str
    before: str
    after: str
    reason: str


class Port(Value):
    """A ported plan, and how it came to be."""

    plan: Plan
    changes: tuple[Change, ...]
    carried: str
    """What was learned from the old plan's probes, in words."""
    predicted: Estimate
    """Of the new knobs, before any probe for the new GPU."""
    uncertainty_share: float
    """Half-width of the interval around the predicted process peak, as a share of it."""
    old_knobs_there: Estimate
    """The old plan's knobs on the new GPU, with its kernels."""


@dataclass(frozen=True, kw_only=True)
class PortRequest:
    """Everything that ``budgetft port`` was asked."""

    plan: Plan
    model: Model
    gpu: Gpu
    budget_bytes: int
    display_bytes: int = 0
    precision: Literal["keep", "native"] = "keep"
    """``keep``: what the plan computes in; ``native``: what the new GPU runs natively."""
    probe: Literal["auto", "always", "never"] = "auto"
    storage: str = "sqlite:///:memory:"
    ledger: Path | None = None
    on_event: Callable[[Event], None] = lambda event: None


def port_plan(request: PortRequest) -> Port:
    """The plan for ``request.gpu``. Raises ``UsageError`` when its contract cannot run there, ``NothingFits`` when no
    setting fits, with what to give up."""
    plan = request.plan
    lessons = learn(_evidence(request))
    planning = PlanRequest(
        gpu=request.gpu,
        budget_bytes=request.budget_bytes,
        display_bytes=request.display_bytes,
        gpus=plan.gpu.gpus,
        shared=plan.gpu.shared,
        model=request.model,
        contract=plan.contract,
        workload_under=lambda contract: plan.workload,
        ranges=_rank_ranges(plan),
        data=plan.data,
        cache=_cache(request),
        probe=request.probe,
        max_probes=MOST_PROBES,
        storage=request.storage,
        ledger=request.ledger,
        on_event=request.on_event,
        lessons=lessons,
        origin=f"ported from {plan.gpu.name} ({plan.evidence.kind}); ",
        base_precision=_precision(request),
        fp32_blocks=plan.knobs.fp32_blocks,
        deterministic=plan.knobs.deterministic,
    )
    try:
        made = make_plan(planning)
    except NothingFits as error:
        raise NothingFits(
            f"the plan for {plan.gpu.name} cannot be ported: {error.message}", hint=_give_up(planning, error)
        ) from None
    estimator = _estimator(planning)
    return Port(
        plan=made,
        changes=tuple(explain(plan.knobs, made.knobs, estimator)),
        old_knobs_there=estimator.estimate(_there(plan.knobs, made.knobs)),
        carried=describe_lessons(lessons),
        predicted=estimator.estimate(made.knobs),
        uncertainty_share=estimator.uncertainty_share,
    )


def explain(before: Knobs, after: Knobs, estimator: Estimator | Transferred) -> list[Change]:
    """Each knob that changes, with what that change alone does to bytes and seconds on the new GPU."""
    gpu, there = estimator.job.gpu, _there(before, after)
    changes = []
    for name in differences(after, before):
        if name == "attention":
            reason = f"the fastest kernel that runs at compute capability {gpu.compute_capability}"
        elif name == "base_precision":
            reason = f"what {gpu.name} runs natively, as was asked for; it changes the numerics of what is learned"
        elif name == "grad_accum":
            reason = "follows from micro_batch: the effective batch stays"
        elif name == "batching" and after.micro_batch == 1:
            reason = "follows from micro_batch: one example is not padded"
        else:
            accumulated = {"grad_accum": after.grad_accum} if name == "micro_batch" else {}
            alone = there.replace(**{name: getattr(after, name)}, **accumulated)
            reason = _effect(estimator.estimate(there), estimator.estimate(alone))
        changes.append(Change(knob=name, before=shown(getattr(before, name)), after=shown(getattr(after, name)), reason=reason))
    return changes


def _there(before: Knobs, after: Knobs) -> Knobs:
    """The old knobs with the new GPU's kernels."""
    return before.replace(attention=after.attention, base_precision=after.base_precision)


def _effect(before: Estimate, after: Estimate) -> str:
    """What a change does to the process peak, to which of its terms most, and to the speed."""
    grown = after.process_peak_bytes - before.process_peak_bytes
    was, now = ({term.name: term.memory_bytes for term in estimate.terms} for estimate in (before, after))
    moved = max(was | now, key=lambda name: abs(now.get(name, 0) - was.get(name, 0)))
    text = f"alone it {'takes' if grown > 0 else 'frees'} {format_gib(abs(grown))}, most of it {moved}"
    if abs(grown) < MIB:
        text = "alone it takes and frees nothing"
    if before.samples_per_second and after.samples_per_second:
        gained = round(100 * (after.samples_per_second / before.samples_per_second - 1))
        text += f", and makes {gained:+d} % examples/s (predicted)" if gained else ", and the speed stays (predicted)"
    return text


def _evidence(request: PortRequest) -> list[tuple[Job, Outcome]]:
    """The plan's probes, and those of the ledger that did the same work on any GPU under any budget."""
    plan, model = request.plan, request.model
    pairs = plan_evidence(plan, model)
    if request.ledger is None or not request.ledger.is_file():
        return pairs
    known = [outcome for _, outcome in pairs]
    for job, outcome in Ledger(request.ledger).rows():
        same = job.model.config == model.config and (job.contract, job.workload) == (plan.contract, plan.workload)
        if same and outcome not in known:
            pairs.append((job, outcome))
    return pairs


def _precision(request: PortRequest) -> Precision | None:
    """What to compute in; None for what the GPU runs natively. Never another than the plan's in silence."""
    kept, gpu = request.plan.knobs.base_precision, request.gpu
    if request.precision == "native":
        return None
    if kept == "bf16" and not gpu.native_bf16:
        raise UsageError(
            f"the plan computes in bf16, which {gpu.name} (compute capability {gpu.compute_capability}) only emulates;"
            " another type changes the numerics of what is learned, so it is not chosen in silence",
            hint="the nearest is fp16 with a gradient scaler: port with --precision native",
        )
    return kept


def _cache(request: PortRequest) -> str | None:
    """The folder of the plan's vision features, which are of its type; None where another type is computed in."""
    features, native = request.plan.features, request.gpu.base_precision
    return None if features is None or request.plan.knobs.base_precision != native else features.folder


def _rank_ranges(plan: Plan) -> dict[str, list[int]]:
    """The ranks that the old plan had costs of beyond its own; other axes need the data again."""
    ranks = [int(row.value) for row in plan.price_list if row.axis == "rank" and int(row.value) > plan.contract.rank]
    return {"rank": ranks} if ranks else {}


def _estimator(planning: PlanRequest) -> Transferred:
    place = find_place(planning)
    estimator = make_estimator(planning, make_job(planning, planning.contract, place), place)
    assert isinstance(estimator, Transferred)
    return estimator


def _give_up(planning: PlanRequest, error: NothingFits) -> str:
    """What would have to change for the plan to run: the smallest setting's needs, the rank's share, and larger GPUs."""
    estimator = _estimator(planning)
    job = estimator.job
    grid = [in_precision(job, knobs, planning.base_precision or knobs.base_precision) for knobs in settings(job)]
    least = min(map(estimator.estimate, grid), key=lambda estimate: estimate.process_peak_bytes)
    needed = least.process_peak_bytes * (1 + estimator.uncertainty_share)
    ranked = sum(term.memory_bytes for term in least.terms if term.name in ("adapter", "gradients", "optimizer"))
    bf16 = planning.base_precision == "bf16"
    enough = [gpu for gpu in all_gpus() if gpu.budget_bytes >= needed and (gpu.native_bf16 or not bf16)]
    gpus = ", ".join(gpu.name for gpu in sorted(enough, key=lambda gpu: gpu.memory_mib)[:4])
    larger = f"; GPUs with a default budget that is enough: {gpus}" if gpus else ""
    return f"{error.hint}; half the rank would free about {format_gib(ranked // 2)}{larger}"
