"""The fastest setting by prediction alone, some of its knobs given, and how it compares with the stock recipe."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import Model
from budgetft.outcome import speed_text
from budgetft.plan import Candidate, knob_problems
from budgetft.predict.estimator import Estimator
from budgetft.results import Estimated
from budgetft.search.space import every_setting, stock_settings


def fastest(estimator: Estimator, given: dict[str, Any]) -> Candidate:
    """The fastest setting with the ``given`` knobs that is predicted to fit; when none does, the smallest.

    Raises ``UsageError`` when the given knobs cannot be run under the job's contract on its GPU.
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
    grid, contract, family = every_setting(job), job.contract, job.model.family
    asked = Knobs.make(**{**dict(grid[0]), **given})
    check_sizes(asked, given, contract, job.model)
    if "micro_batch" in given:
        given = {"grad_accum": contract.effective_batch // asked.micro_batch, **given}
    wanted = list(dict.fromkeys(knobs.replace(**given) for knobs in grid))
    able = [knobs for knobs in wanted if not knob_problems(knobs, contract, job.gpu, family)]
    if not able:
        raise UsageError("; ".join(min((knob_problems(knobs, contract, job.gpu, family) for knobs in wanted), key=len)))
    return able


def check_sizes(asked: Knobs, given: Iterable[str], contract: Contract, model: Model) -> None:
    """Raise ``UsageError`` where a number among the ``given`` knobs cannot be with this contract and model."""
    batch = contract.effective_batch
    if asked.micro_batch > batch:
        raise UsageError(
            f"micro_batch {asked.micro_batch} is above the effective batch {batch}",
            hint=f"take a smaller micro-batch, or raise the effective batch: --effective-batch {asked.micro_batch}",
        )
    if asked.checkpointed_layers > model.layers:
        raise UsageError(f"checkpointed_layers is 0 to {model.layers} for {model.name}, not {asked.checkpointed_layers}")
    alone = {"micro_batch", "grad_accum"} & set(given)
    for name in alone if len(alone) == 1 else ():
        if batch % getattr(asked, name):
            whole = ", ".join(str(size) for size in range(1, batch + 1) if batch % size == 0)
            raise UsageError(f"{name} {getattr(asked, name)} does not divide the effective batch {batch}: {whole} do")


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
        return f"{where}: plan {speed} examples/s; the stock recipe does not fit"
    low, high = estimator.ratio_range(best.knobs, stock.knobs)
    ratio = speed_text((low * high) ** 0.5, low, high, " times")
    return f"{where}: stock {stock.estimate.speed_text('')}, plan {speed} examples/s, {ratio} as fast"
