"""Plans and estimates for people: the reader's questions in order, one line each, readable in a log file too."""

from collections import Counter
from typing import TYPE_CHECKING

from budgetft.answers import compared, is_uncalibrated, memory_text, pictures_text, rate, time_text, trade_off
from budgetft.cli.colour import paint
from budgetft.cli.lines import put
from budgetft.cli.show_goal import goal_lines
from budgetft.contract import Contract
from budgetft.duration import RunTime, time_under
from budgetft.gpu import Gpu
from budgetft.host_gpus import launch_command
from budgetft.outcome import Evidence
from budgetft.plan import Plan
from budgetft.shown import contract_text
from budgetft.units import format_gib
from budgetft.wording import room_words, settings_words

if TYPE_CHECKING:
    from budgetft.results import Estimated

KINDS = {
    "predicted": "predicted, nothing was run",
    "emulated": "emulated: run on another GPU, limited to stand in",
    "measured": "measured",
}


def print_estimate(
    found: "Estimated", *, gpu: Gpu, layers: int, display_bytes: int = 0, price_per_hour: float | None = None
) -> None:
    """One estimate on stdout; ``layers`` are those of the language model."""
    from budgetft.predict.calibrate import FOREIGN_STACK_SHARE

    estimate, uncalibrated = found.estimate, is_uncalibrated(found.calibration)
    _title(found.model, found.contract, gpu)
    _budget(found.budget_bytes, display_bytes, estimate.evidence)
    _line("Fits" if estimate.fits else "Too much", room_words(estimate, found.budget_bytes, found.uncertainty_share))
    if estimate.fits:
        _line("Time", time_text(estimate, found.contract, found.examples, uncalibrated=uncalibrated))
        _price(time_under(found.contract, estimate, found.examples), price_per_hour)
        _line("Speed", rate(estimate))
    _line("Settings", "; ".join(settings_words(found.knobs, layers)))
    _line("Kept fixed", contract_text(found.contract))
    _line("Memory", memory_text(estimate.terms))
    _line("Calibration", "none of this GPU: budgetft gpus --calibrate makes one there" if uncalibrated else found.calibration)
    if found.traced_on:
        wider = f"not what is installed here: {FOREIGN_STACK_SHARE:.0%} wider; `plan` traces anew"
        _line("Traced on", f"{found.traced_on}, {wider}")


def print_ways_out(ways: list[str]) -> None:
    """What would fit instead; where nothing would, how to go on."""
    for number, way in enumerate(ways):
        _line("" if number else "Instead", way)
    if not ways:
        _line(
            "Instead",
            "lower --rank or --max-length, or choose a smaller model or a larger GPU: budgetft fit shows what runs where",
        )


def print_plan(plan: Plan, path: str, *, examples: int | None = None, price_per_hour: float | None = None) -> None:
    """The plan on stdout: whether it fits, how long it takes, what becomes of the images, what to run next, and why."""
    estimate, proof, examples = plan.estimate, plan.evidence, examples or plan.workload.examples
    uncalibrated = is_uncalibrated(proof.calibration) and estimate.evidence == "predicted"
    _title(plan.model.name, plan.contract, plan.gpu.profile, plan.gpu.gpus)
    _budget(plan.gpu.budget_bytes, plan.gpu.display_bytes, estimate.evidence)
    _line("Fits", room_words(estimate, plan.gpu.budget_bytes, proof.uncertainty_share))
    _line("Time", time_text(estimate, plan.contract, examples, uncalibrated=uncalibrated))
    _price(plan.run_time(examples), price_per_hour)
    _line("Speed", rate(estimate))
    if plan.pictures is not None and plan.pictures.shrunk:
        _line("Images", pictures_text(plan.pictures, plan))
    _line("Settings", "; ".join(settings_words(plan.knobs, plan.model.layers)))
    _line("Kept fixed", contract_text(plan.contract))
    _line("Baseline", compared(plan))
    for name, text in _facts(plan):
        _line(name, text)
    for row in plan.price_list:
        _line("Trade-off" if row is plan.price_list[0] else "", trade_off(row, plan))
    for line in goal_lines(plan):
        put(line)
    start = "budgetft" if plan.gpu.gpus == 1 else f"{launch_command(plan.gpu.gpus, share=plan.gpu.shared)} -m budgetft"
    put(f"\nwritten to {path}; why: budgetft report {path}")
    put(f"next: {start} train --plan {path} --out runs/first")


def _facts(plan: Plan) -> list[tuple[str, str]]:
    """What fewer readers ask."""
    proof, found = plan.evidence, []
    if plan.features is not None:
        found.append(("Features", plan.features.describe()))
    if plan.once:
        found.append(("Once", "; ".join(cost.text() for cost in plan.once)))
    if plan.stages:
        found.append(("Phases", "; ".join(each.describe(plan.gpu.budget_bytes) for each in plan.stages)))
    if plan.gpu.gpus > 1:
        base = "the frozen layers are sharded over them" if plan.gpu.shared else "each holds the whole base model"
        found.append(("GPUs", f"{plan.gpu.gpus}, each with that budget; {base}"))
    if plan.precision is not None:
        found.append(("Precision", plan.precision.describe()))
    if plan.model.base is not None:
        found.append(("Weights", f"{plan.model.base.describe()}: train takes no others"))
    if plan.padding is not None and plan.padding.padded > 0:
        padding = f"{plan.padding.padded:.1%} of the tokens in random order, {plan.padding.bucketed:.1%} grouped by length"
        found.append(("Padding", f"{padding} (by {plan.padding.examples} examples)"))
    found.append(("Memory", memory_text(plan.estimate.terms)))
    found.append(("Evidence", f"{proof.kind}: {proof.statement}"))
    if proof.workers:
        found.append(("Trials", ", ".join(f"{count} by {worker}" for worker, count in Counter(proof.workers).most_common())))
    return found


def _title(model: str, contract: Contract, gpu: Gpu, gpus: int = 1) -> None:
    several = f"{gpus} x " if gpus > 1 else ""
    name = f"{model} · LoRA rank {contract.rank} · {several}{gpu.title.removeprefix('NVIDIA ')}"
    put(paint(name, "bold"))


def _budget(budget_bytes: int, display_bytes: int, evidence: Evidence) -> None:
    kept = f", after {format_gib(display_bytes)} for the display" if display_bytes else ""
    put(f"{KINDS[evidence]}; budget {format_gib(budget_bytes)}{kept}\n")


def _line(name: str, text: str) -> None:
    if not text:
        return
    kind = {"Fits": "good", "Too much": "bad"}.get(name)
    shown = f"{name:<11}"
    put(f"  {paint(shown, kind) if kind else shown} {text}", hang=14)


def _price(time: RunTime | None, price_per_hour: float | None) -> None:
    if price_per_hour is not None:
        unknown = "not known: give the number of examples (--examples N)"
        _line("Cost", f"{time.price_text(price_per_hour)} at {price_per_hour:g} an hour" if time else unknown)
