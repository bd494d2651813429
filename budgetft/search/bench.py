"""The stock recipe beside the plan: one card, one contract, one run, every path measured in turn."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from budgetft.contract import Contract
from budgetft.errors import BudgetftError, UsageError
from budgetft.knobs import Knobs
from budgetft.measure.ledger import Ledger
from budgetft.measure.probe import Prober
from budgetft.outcome import Evidence, Outcome, Stack
from budgetft.plan import Plan
from budgetft.search.planner import Event
from budgetft.search.run import Place, PlanRequest, find_place, make_job, make_plan
from budgetft.value import Value
from budgetft.workload import Workload

Path_ = Literal["stock", "planned", "planned, cached features"]


class Row(Value):
    """One path at one image size. Speeds are medians over the probes of this run; the peak is the highest of them."""

    path: Path_
    width: int
    height: int
    contract: Contract
    knobs: Knobs
    samples_per_second: float
    speeds: tuple[float, ...]
    ratio_to_stock: float | None
    """None when the stock recipe fits at no micro-batch."""
    process_peak_bytes: int
    evidence: Evidence


class Bench(Value):
    """What ``budgetft bench`` writes."""

    gpu: str
    budget_bytes: int
    model: str
    statement: str
    stack: Stack
    wall_seconds: float
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True)
class Size:
    """One image size and the workload of examples that have it."""

    width: int
    height: int
    contract: Contract
    workload: Workload


def run_bench(
    request: PlanRequest,
    sizes: Sequence[Size],
    *,
    cached: bool,
    rounds: int,
    on_rows: Callable[[Bench], None] = lambda bench: None,
) -> Bench:
    """Plan every size, then probe the stock recipe and the plans ``rounds`` times in turn, each time in a fresh process.

    ``on_rows`` gets what there is after each size. Raises ``UsageError`` where there is no card.
    """
    place = find_place(request)
    if place is None or place.stack is None:
        raise UsageError("no CUDA card here: there is nothing to measure", hint="--probe always measures on the CPU")
    started = time.monotonic()
    rows: list[Row] = []
    stack, statement = place.stack, place.statement

    def so_far() -> Bench:
        return Bench(
            gpu=request.gpu.name,
            budget_bytes=request.budget_bytes,
            model=request.model.name,
            statement=statement,
            stack=stack,
            wall_seconds=round(time.monotonic() - started, 1),
            rows=tuple(rows),
        )

    for size in sizes:
        rows += _measure(request, size, place, cached=cached, rounds=rounds)
        on_rows(so_far())
    return so_far()


def _measure(request: PlanRequest, size: Size, place: Place, *, cached: bool, rounds: int) -> list[Row]:
    sized = replace(request, contract=size.contract, workload_under=lambda contract: size.workload)
    found: dict[Path_, Knobs] = {}
    outcomes: dict[Path_, list[Outcome]] = {}
    paths: list[tuple[Path_, str | None]] = [("planned", None)]
    if cached:
        paths.append(("planned, cached features", "auto"))
    for path, cache in paths:
        plan = make_plan(replace(sized, cache=cache))
        if plan.baseline is not None:
            found.setdefault("stock", plan.baseline.knobs)
            outcomes.setdefault("stock", _of(plan, plan.baseline.knobs))
        found[path], outcomes[path] = plan.knobs, _of(plan, plan.knobs)
    job = make_job(sized, size.contract, place)
    ledger = None if sized.ledger is None else Ledger(sized.ledger)
    with Prober(job, stack=place.stack) as prober:
        for _ in range(rounds):
            for path, knobs in found.items():
                sized.on_event(Event(stage="confirm", text=f"{path}, {size.width}x{size.height}"))
                outcome = prober.probe(knobs, fresh=True)
                if ledger is not None:
                    ledger.append(job, outcome)
                outcomes[path].append(outcome)
    return _rows(size, found, outcomes)


def _of(plan: Plan, knobs: Knobs) -> list[Outcome]:
    """What the plan's probes found for ``knobs``."""
    return [outcome for outcome in plan.evidence.outcomes if outcome.knobs == knobs and outcome.fits]


def _rows(size: Size, found: dict[Path_, Knobs], outcomes: dict[Path_, list[Outcome]]) -> list[Row]:
    speeds: dict[Path_, list[float]] = {
        path: [o.samples_per_second for o in outcomes[path] if o.fits and o.samples_per_second] for path in found
    }
    silent: list[Path_] = [path for path in found if not speeds[path]]
    if silent:
        last = outcomes[silent[0]][-1] if outcomes[silent[0]] else None
        raise BudgetftError(f"no probe of {silent[0]} succeeded: {'none was made' if last is None else last.detail}")
    stock = median(speeds["stock"]) if "stock" in speeds else None
    return [
        Row(
            path=path,
            width=size.width,
            height=size.height,
            contract=size.contract,
            knobs=knobs,
            samples_per_second=median(speeds[path]),
            speeds=tuple(speeds[path]),
            ratio_to_stock=None if stock is None else median(speeds[path]) / stock,
            process_peak_bytes=max(outcome.process_peak_bytes or 0 for outcome in outcomes[path]),
            evidence=next(outcome.evidence for outcome in outcomes[path] if outcome.fits),
        )
        for path, knobs in found.items()
    ]
