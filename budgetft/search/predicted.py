"""The fastest setting by prediction alone, some of its knobs given, and how it compares with the stock recipe."""

from typing import Any

from budgetft.errors import UsageError
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.outcome import speed_text
from budgetft.plan import Candidate, knob_problems
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings, stock_settings


def fastest(estimator: Estimator, given: dict[str, Any]) -> Candidate:
    """The fastest setting with the ``given`` knobs that is predicted to fit; when none does, the smallest.

    Raises ``UsageError`` when the given knobs cannot be run under the job's contract on its card.
    """
    wanted = _wanted(estimator.job, given)
    seconds = estimator.clock(wanted).seconds(estimator.speeds)
    for _, knobs in sorted(zip(seconds, wanted, strict=True), key=lambda each: each[0]):
        if estimator.may_fit(knobs) and (estimate := estimator.estimate(knobs)).fits:
            return Candidate(knobs=knobs, estimate=estimate)
    smallest: Candidate | None = None
    for knobs in sorted(wanted, key=estimator.least_bytes):
        if smallest is not None and estimator.least_bytes(knobs) >= smallest.estimate.process_peak_bytes:
            break
        candidate = Candidate(knobs=knobs, estimate=estimator.estimate(knobs))
        if smallest is None or candidate.estimate.process_peak_bytes < smallest.estimate.process_peak_bytes:
            smallest = candidate
    assert smallest is not None  # _wanted refuses to want nothing
    return smallest


def _wanted(job: Job, given: dict[str, Any]) -> list[Knobs]:
    """Every setting of the grid with the ``given`` knobs in place of its own."""
    grid, contract, layers = settings(job), job.contract, job.model.layers
    if given.get("micro_batch", 0) > contract.effective_batch:
        raise UsageError(
            f"micro_batch {given['micro_batch']} is above the effective batch {contract.effective_batch}",
            hint=f"--effective-batch {given['micro_batch']} trains with larger steps",
        )
    if given.get("checkpointed_layers", 0) > layers:
        raise UsageError(f"checkpointed_layers is 0 to {layers} for {job.model.name}, not {given['checkpointed_layers']}")
    for name in {"micro_batch", "grad_accum"} & set(given):
        if len({"micro_batch", "grad_accum"} & set(given)) == 1 and given[name] > 0 and contract.effective_batch % given[name]:
            whole = ", ".join(
                str(size) for size in range(1, contract.effective_batch + 1) if not contract.effective_batch % size
            )
            raise UsageError(f"{name} {given[name]} does not divide the effective batch {contract.effective_batch}: {whole} do")
    if "micro_batch" in given:
        given = {"grad_accum": contract.effective_batch // max(1, given["micro_batch"]), **given}
    Knobs.make(**{**dict(grid[0]), **given})
    wanted = list(dict.fromkeys(knobs.replace(**given) for knobs in grid))
    able = [knobs for knobs in wanted if not knob_problems(knobs, contract, job.gpu)]
    if not able:
        raise UsageError("; ".join(min((knob_problems(knobs, contract, job.gpu) for knobs in wanted), key=len)))
    return able


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
