"""The stock recipe beside the plan: one GPU, one contract, one run, every path measured in turn."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from pydantic import Field

from budgetft.contract import Contract
from budgetft.errors import BudgetftError, UsageError
from budgetft.knobs import Knobs
from budgetft.measure.ledger import Ledger
from budgetft.measure.probe import Prober
from budgetft.outcome import Evidence, Outcome, Stack
from budgetft.plan import Plan
from budgetft.search.events import Event
from budgetft.search.place import Place, find_place
from budgetft.search.predicted import expected_text
from budgetft.search.run import PlanRequest, make_job, make_plan
from budgetft.value import Value
from budgetft.workload import Workload

Path_ = Literal["stock", "planned", "planned, cached features"]
VERSIONS = ("gpu", "driver", "torch", "transformers", "peft")
"""Of a stack, what every row repeats."""


class Row(Value):
    """One path at one image size. Speeds are medians over the probes of this run; the peak is the highest of them.

    What rows of before lack is None: a row says by itself what was run, and on what.
    """

    path: Path_
    width: int
    height: int
    micro_batch: int | None = None
    samples_per_second: float
    ratio_to_stock: float | None
    """None when the stock recipe fits at no micro-batch."""
    process_peak_bytes: int
    evidence: Evidence
    speeds: tuple[float, ...]
    knobs: Knobs
    contract: Contract | None = None
    gpu: str | None = None
    driver: str | None = None
    torch: str | None = None
    transformers: str | None = None
    peft: str | None = None


class Bench(Value):
    """What ``budgetft bench`` writes."""

    contract: Contract | None = Field(default=None, exclude_if=lambda contract: contract is None)
    """Of all rows, in files of before each had its own."""
    gpu: str
    budget_bytes: int
    model: str
    statement: str
    stack: Stack
    wall_seconds: float
    expected: tuple[str, ...] = Field(default=(), exclude_if=lambda expected: not expected)
    """Of an emulated bench: what the planned GPU itself is predicted to do at each image size, in words."""
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
    plan: Callable[[PlanRequest], Plan] = make_plan,
    prober: Callable[..., Prober] = Prober,
) -> Bench:
    """Plan every size, then probe the stock recipe and the plans ``rounds`` times in turn, each time in a fresh process.

    What the ledger recalls of earlier runs may guide the planning; only probes of this run count. ``on_rows`` gets what
    there is after each size. Raises ``UsageError`` where there is no GPU, or with no round at all.
    """
    if rounds < 1:
        raise UsageError(f"{rounds} rounds: a path may have been probed in earlier runs only", hint="make at least one")
    place = find_place(request)
    if place is None or place.stack is None:
        raise UsageError("no CUDA GPU here: there is nothing to measure", hint="--trials always measures on the CPU")
    started = time.monotonic()
    rows: list[Row] = []
    expected: list[str] = []
    stack, statement = place.stack, place.statement

    def so_far() -> Bench:
        return Bench(
            gpu=request.gpu.name,
            budget_bytes=request.budget_bytes,
            model=request.model.name,
            statement=statement,
            stack=stack,
            wall_seconds=round(time.monotonic() - started, 1),
            expected=tuple(expected),
            rows=tuple(rows),
        )

    for size in sizes:
        if place.evidence == "emulated":
            sized = replace(request, workload_under=lambda contract, size=size: size.workload)
            job = make_job(sized, size.contract, None)
            expected.append(f"{size.width}x{size.height}, {expected_text(job)}")
        rows += _measure(request, size, place, cached=cached, rounds=rounds, make=plan, start=prober)
        on_rows(so_far())
    return so_far()


def _measure(
    request: PlanRequest,
    size: Size,
    place: Place,
    *,
    cached: bool,
    rounds: int,
    make: Callable[[PlanRequest], Plan],
    start: Callable[..., Prober],
) -> list[Row]:
    measured: list[Outcome] = []

    def listen(event: Event) -> None:
        if event.outcome is not None and not event.from_ledger:
            measured.append(event.outcome)
        request.on_event(event)

    sized = replace(request, contract=size.contract, workload_under=lambda contract: size.workload, on_event=listen)
    found: dict[Path_, Knobs] = {}
    paths: list[tuple[Path_, str | None]] = [("planned", None)]
    if cached:
        paths.append(("planned, cached features", "auto"))
    for path, cache in paths:
        plan = make(replace(sized, cache=cache))
        if plan.baseline is not None:
            found.setdefault("stock", plan.baseline.knobs)
        found[path] = plan.knobs
    job = make_job(sized, size.contract, place)
    ledger = None if sized.ledger is None else Ledger(sized.ledger)
    with start(job, stack=place.stack) as prober:
        for _ in range(rounds):
            for path, knobs in found.items():
                request.on_event(Event(stage="confirm", text=f"{path}, {size.width}x{size.height}"))
                outcome = prober.probe(knobs, fresh=True)
                if ledger is not None:
                    ledger.append(job, outcome)
                measured.append(outcome)
    outcomes: dict[Path_, list[Outcome]] = {
        path: [outcome for outcome in measured if outcome.knobs == knobs] for path, knobs in found.items()
    }
    return _rows(size, found, outcomes, place.stack)


def _rows(size: Size, found: dict[Path_, Knobs], outcomes: dict[Path_, list[Outcome]], stack: Stack | None = None) -> list[Row]:
    speeds: dict[Path_, list[float]] = {
        path: [o.samples_per_second for o in outcomes[path] if o.fits and o.samples_per_second] for path in found
    }
    silent: list[Path_] = [path for path in found if not speeds[path]]
    if silent:
        last = outcomes[silent[0]][-1] if outcomes[silent[0]] else None
        raise BudgetftError(f"no probe of {silent[0]} succeeded: {'none was made' if last is None else last.detail}")
    stock = median(speeds["stock"]) if "stock" in speeds else None
    versions = {} if stack is None else {name: getattr(stack, name) for name in VERSIONS}
    return [
        Row(
            path=path,
            width=size.width,
            height=size.height,
            micro_batch=knobs.micro_batch,
            samples_per_second=median(speeds[path]),
            ratio_to_stock=None if stock is None else median(speeds[path]) / stock,
            process_peak_bytes=max(outcome.process_peak_bytes or 0 for outcome in outcomes[path]),
            evidence=next(outcome.evidence for outcome in outcomes[path] if outcome.fits),
            speeds=tuple(speeds[path]),
            knobs=knobs,
            contract=size.contract,
            **versions,
        )
        for path, knobs in found.items()
    ]
