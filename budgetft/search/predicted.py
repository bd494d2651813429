"""The fastest setting by prediction alone, some of its knobs given, and how it compares with the stock recipe."""

import math
from collections.abc import Sequence
from typing import Any

from budgetft.errors import UsageError
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.outcome import speed_text
from budgetft.plan import Candidate, knob_problems
from budgetft.predict.estimator import Estimator
from budgetft.results import Estimated
from budgetft.search.space import settings, stock_settings


def fastest(estimator: Estimator, given: dict[str, Any]) -> Candidate:
    """The fastest setting with the ``given`` knobs that is predicted to fit; when none does, the smallest.

    Raises ``UsageError`` when the given knobs cannot be run under the job's contract on its card.
    """
    return fastest_of(estimator, settings_with(estimator.job, given))


def fastest_of(estimator: Estimator, wanted: Sequence[Knobs], *, most_bytes: float = math.inf) -> Candidate:
    """As :func:`fastest`, of the settings ``wanted``. ``most_bytes``: that a process peak may have, whatever the budget."""
    seconds = estimator.clock(wanted).seconds(estimator.speeds)
    for _, knobs in sorted(zip(seconds, wanted, strict=True), key=lambda each: each[0]):
        if not estimator.may_fit(knobs) or estimator.least_bytes(knobs) > most_bytes:
            continue
        if (estimate := estimator.estimate(knobs)).fits and estimate.process_peak_bytes <= most_bytes:
            return Candidate(knobs=knobs, estimate=estimate)
    smallest: Candidate | None = None
    for knobs in sorted(wanted, key=estimator.least_bytes):
        if smallest is not None and estimator.least_bytes(knobs) >= smallest.estimate.process_peak_bytes:
            break
        candidate = Candidate(knobs=knobs, estimate=estimator.estimate(knobs))
        if smallest is None or candidate.estimate.process_peak_bytes < smallest.estimate.process_peak_bytes:
            smallest = candidate
    assert smallest is not None  # something is wanted
    return smallest


def estimated(estimator: Estimator, given: dict[str, Any]) -> Estimated:
    """As :func:`fastest`, with all that the numbers are of."""
    found, job = fastest(estimator, given), estimator.job
    return Estimated(
        knobs=found.knobs,
        estimate=found.estimate,
        gpu=job.gpu.name,
        model=job.model.name,
        budget_bytes=job.budget_bytes,
        contract=job.contract,
        example=job.workload.worst[0],
        examples=job.workload.examples,
        calibration=estimator.calibration.name,
        uncertainty_share=estimator.uncertainty_of(found.knobs),
        traced_on=estimator.foreign.get(estimator.combination(found.knobs)),
    )


def settings_with(job: Job, given: dict[str, Any]) -> list[Knobs]:
    """Every setting of the grid with the ``given`` knobs in place of its own."""
    grid, contract, layers = settings(job), job.contract, job.model.layers
    asked = Knobs.make(**{**dict(grid[0]), **given})
    if asked.micro_batch > contract.effective_batch:
        raise UsageError(
            f"micro_batch {asked.micro_batch} is more than the effective batch {contract.effective_batch}",
            hint="take a smaller micro-batch, or raise the effective batch",
        )
    if "micro_batch" in given:
        given = {"grad_accum": contract.effective_batch // asked.micro_batch, **given}
    wanted = list(dict.fromkeys(knobs.replace(**given) for knobs in grid))
    wanted = [knobs for knobs in wanted if not knob_problems(knobs, contract, job.gpu)]
    if not wanted or any(knobs.checkpointed_layers > layers for knobs in wanted):
        problems = knob_problems(grid[0].replace(**given), contract, job.gpu)
        if asked.checkpointed_layers > layers:
            problems.append(f"checkpointed_layers {asked.checkpointed_layers} is more than the {layers} of {job.model.name}")
        raise UsageError("; ".join(problems))
    return wanted


def expected_text(job: Job) -> str:
    """What the planned GPU itself is predicted to do, whatever stood in for it: stock, plan and their ratio, each a range.

    Raises ``BudgetftError`` when the model cannot be traced.
    """
    from budgetft.search.ranking import predicted_baseline  # loads optuna

    alone = job.replace(host=None, evidence="predicted", device="cuda")
    estimator = Estimator(alone, at_once=True)
    best = fastest(estimator, {})
    stock = predicted_baseline({knobs: estimator.estimate(knobs) for knobs in stock_settings(alone)})
    speed = best.estimate.speed_text("")
    where = f"a {job.gpu.name} itself (predicted)"
    if stock is None:
        return f"{where}: plan {speed} samples/s; the stock recipe does not fit"
    low, high = estimator.ratio_range(best.knobs, stock.knobs)
    ratio = speed_text((low * high) ** 0.5, low, high, " times")
    return f"{where}: stock {stock.estimate.speed_text('')}, plan {speed} samples/s, {ratio} as fast"
