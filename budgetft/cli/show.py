"""Plans and estimates for people: plain lines, readable in a log file and without colour."""

import json
from collections import Counter
from typing import TYPE_CHECKING

from budgetft.cards import launch_command
from budgetft.knobs import Knobs, describe
from budgetft.outcome import Estimate
from budgetft.plan import Plan
from budgetft.units import format_gib

if TYPE_CHECKING:
    from budgetft.predict.estimator import Estimator


def print_estimate(
    knobs: Knobs, estimate: Estimate, *, estimator: "Estimator", display_bytes: int = 0, json_output: bool
) -> None:
    """One estimate on stdout."""
    from budgetft.predict.calibrate import FOREIGN_STACK_SHARE

    job, share = estimator.job, estimator.uncertainty_of(knobs)
    traced_on = estimator.foreign.get(estimator.combination(knobs))
    if json_output:
        about = {
            "model": job.model.name,
            "gpu": job.gpu.name,
            "budget_bytes": job.budget_bytes,
            "display_bytes": display_bytes,
            "knobs": knobs.model_dump(mode="json"),
            "uncertainty_share": share,
            "calibration": estimator.calibration.name,
            "traced_on": traced_on,
        }
        print(json.dumps({**estimate.model_dump(mode="json"), **about}, indent=2))
        return
    print(f"{job.model.name} on {job.gpu.name}, budget {_budget(job.budget_bytes, display_bytes)}: predicted, nothing was run")
    print(f"  knobs         {describe(knobs)}")
    verdict = "fits" if estimate.fits else "does not fit"
    print(f"  process peak  {format_gib(estimate.process_peak_bytes)} +- {share:.0%}: {verdict}")
    print(f"  speed         {rate(estimate)}")
    print(f"  calibration   {estimator.calibration.name}")
    if traced_on:
        print(f"  traced on     {traced_on}, not what is installed here: {FOREIGN_STACK_SHARE:.0%} wider; `plan` traces anew")
    print_terms(estimate)


def _budget(budget_bytes: int, display_bytes: int) -> str:
    kept = f" (keeps {format_gib(display_bytes)} for the display)" if display_bytes else ""
    return format_gib(budget_bytes) + kept


def print_terms(estimate: Estimate) -> None:
    """Where the bytes go, largest first."""
    print("  where the bytes go")
    for term in sorted(estimate.terms, key=lambda term: term.memory_bytes, reverse=True):
        print(f"    {format_gib(term.memory_bytes):>11}  {term.name}")


def rate(estimate: Estimate) -> str:
    """Samples per second, with where the number is from."""
    return f"{estimate.speed_text()} ({estimate.evidence})"


def print_plan(plan: Plan, path: str) -> None:
    """The plan on stdout: what to run, what it needs, how sure it is, and what to do next."""
    estimate = plan.estimate
    cards = plan.gpu.cards
    base = "that share the frozen layers out" if plan.gpu.shared else "with the whole base"
    budget = _budget(plan.gpu.budget_bytes, plan.gpu.display_bytes)
    several = f", each of {cards} cards {base}" if cards > 1 else ""
    print(f"plan for {plan.model.name} on {plan.gpu.name}, budget {budget}{several}")
    print(f"  evidence      {plan.evidence.kind}: {plan.evidence.statement}")
    if plan.evidence.workers:
        made = Counter(plan.evidence.workers).most_common()
        print(f"  probes        {', '.join(f'{count} by {worker}' for worker, count in made)}")
    print(f"  run           {describe(plan.knobs)}, {plan.knobs.grad_accum} micro-batches per step")
    print(f"  process peak  {format_gib(estimate.process_peak_bytes)} ({estimate.evidence})")
    if plan.stages:
        print(f"  stages        {'; '.join(each.describe(plan.gpu.budget_bytes) for each in plan.stages)}")
    print(f"  speed         {rate(estimate)}")
    print(f"  stock recipe  {_compared(plan)}")
    if plan.precision is not None:
        print(f"  precision     {plan.precision.describe()}")
    if plan.model.base is not None:
        print(f"  weights       {plan.model.base.describe()}: train takes no others")
    if plan.features is not None:
        print(f"  features      {plan.features.describe()}")
    if plan.padding is not None and plan.padding.padded > 0:
        print(
            f"  padding       {plan.padding.padded:.1%} of the tokens in the order drawn, {plan.padding.bucketed:.1%} bucketed"
            f" (by {plan.padding.examples} examples)"
        )
    print_terms(estimate)
    for row in plan.price_list:
        print(
            f"  price         {row.axis} {row.value}: {row.speed_text()}, {format_gib(row.process_peak_bytes)} ({row.evidence})"
        )
    start = "budgetft" if cards == 1 else f"{launch_command(cards, share=plan.gpu.shared)} -m budgetft"
    print(f"\nwritten to {path}; next: {start} train --plan {path} --out runs/first")


def _compared(plan: Plan) -> str:
    baseline = plan.baseline
    if baseline is None:
        return "does not fit at any micro-batch"
    if baseline.knobs == plan.knobs:
        return "the plan is the stock recipe: nothing that was tried is faster and fits"
    peak = format_gib(baseline.estimate.process_peak_bytes)
    text = f"{rate(baseline.estimate)}, {peak}, micro_batch {baseline.knobs.micro_batch}"
    ratio = plan.over_baseline_text()
    return f"{text}; the plan is {ratio} as fast" if ratio else text
