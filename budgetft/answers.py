"""A plan's answers in words, for a terminal and for a page: how long, what becomes of the images, what more would cost."""

from budgetft.contract import Contract
from budgetft.duration import RunTime, duration_text, run_time, time_under
from budgetft.outcome import Estimate, Term
from budgetft.plan import FRAMES, CostRow, Pictures, Plan
from budgetft.units import GIB, format_gib
from budgetft.wording import pixels_words

PER = 1000
"""Examples whose time is told where nobody said how many there are."""
SMALL = GIB // 20
"""Bytes under which a part of the peak is told with the others."""


def time_text(estimate: Estimate, contract: Contract, examples: int | None, *, uncalibrated: bool) -> str:
    """``3 epochs = 188 steps, about 40 min (25 to 80 min; GPU not calibrated)``; of 1,000 examples where none are known."""
    known = examples is not None
    time = time_under(contract, estimate, examples) if known else _of_a_thousand(estimate, contract)
    if time is None:
        return "not known: no speed is known of this GPU"
    why = [time.range_text(), "GPU not calibrated" if uncalibrated else ""]
    notes = "; ".join(filter(None, why))
    if known:
        said = time.text().split(" (")[0]
    else:
        said = f"about {duration_text(time.seconds)} for each {PER:,} examples; --examples N tells that of a whole run"
    return f"{said} ({notes})" if notes else said


def _of_a_thousand(estimate: Estimate, contract: Contract) -> RunTime | None:
    return run_time(estimate, examples=PER, epochs=1, effective_batch=contract.effective_batch)


def is_uncalibrated(name: str | None) -> bool:
    """Whether the calibration called ``name`` serves GPUs that have none of their own."""
    return name is not None and name.split(" ")[0] == "assumed"


def pictures_text(pictures: Pictures, plan: Plan) -> str:
    """How many examples have images that are made smaller, and what it takes to keep them."""
    size = pixels_words(plan.contract.max_pixels)
    shrunk = f"those of {pictures.shrunk:,} of {pictures.examples:,} examples are shrunk to {size}"
    row = pictures.keeping
    if row is None:
        return f"{shrunk}; --max-pixels {pictures.pixels} keeps them, with a larger --max-length where examples get too long"
    most = int(row.value)
    does = f"keeps them ({pixels_words(most)})" if most == pictures.pixels else f"allows {pixels_words(most)}"
    return f"{shrunk}; --max-pixels {most} {does}: {_row_text(row, plan)}"


def _row_text(row: CostRow, plan: Plan) -> str:
    if row.samples_per_second is None:
        return f"does not fit ({row.evidence})"
    time = time_under(plan.contract, row, plan.workload.examples)
    took = f"about {duration_text(time.seconds)}, " if time else f"{row.speed_text()}, "
    return f"{took}{format_gib(row.process_peak_bytes)} ({row.evidence})"


def trade_off(row: CostRow, plan: Plan) -> str:
    """A row of the trade-offs: the value in words, its time or speed, and its peak."""
    value = f"{row.value} frames an example" if row.axis == FRAMES else f"--{row.axis.replace('_', '-')} {row.value}"
    if row.axis == "max_pixels":
        value += f" ({pixels_words(int(row.value))})"
    return f"{value}: {_row_text(row, plan)}" + (", the plan" if plan.is_own(row) else "")


def memory_text(terms: tuple[Term, ...]) -> str:
    """Where the bytes go, largest first; parts below 0.05 GiB together."""
    ordered = sorted(terms, key=lambda term: term.memory_bytes, reverse=True)
    large = [term for term in ordered if term.memory_bytes >= SMALL]
    rest = sum(term.memory_bytes for term in ordered) - sum(term.memory_bytes for term in large)
    parts = [f"{term.name} {term.memory_bytes / GIB:.2f}" for term in large]
    return ", ".join([*parts, *([f"other {rest / GIB:.2f}"] if rest >= GIB // 200 else [])]) + " GiB"


def rate(estimate: Estimate) -> str:
    """Examples per second, with where the number is from."""
    return f"{estimate.speed_text()} ({estimate.evidence})"


def compared(plan: Plan) -> str:
    """The plan beside what Hugging Face's Trainer does by default."""
    baseline = plan.baseline
    if baseline is None:
        return "Hugging Face Trainer defaults do not fit at any micro-batch"
    if baseline.knobs == plan.knobs:
        return "the plan is Hugging Face Trainer's defaults: nothing that was tried is faster and fits"
    peak = format_gib(baseline.estimate.process_peak_bytes)
    text = f"Hugging Face Trainer defaults: {peak}, {rate(baseline.estimate)}, micro-batch {baseline.knobs.micro_batch}"
    ratio = plan.over_baseline_text()
    return f"{text}; the plan is {ratio} as fast" if ratio else text
