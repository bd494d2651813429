"""What a reader wants to know first, in plain words: does it fit, how long, how fast, how sure, and what more would cost."""

from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from budgetft.answers import compared, is_uncalibrated, pictures_text, time_text, trade_off
from budgetft.duration import HOUR, duration_text
from budgetft.outcome import Evidence
from budgetft.plan import Plan
from budgetft.report.goal_chart import values_words
from budgetft.report.story import Story
from budgetft.units import GIB, counted, format_gib
from budgetft.wording import room_words

Kind = Literal["good", "close", "bad"]


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The verdict in a sentence or two; ``kind`` gives its colour."""

    kind: Kind
    text: str


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question of a reader and its answer."""

    question: str
    answer: str


def headline(story: Story) -> Headline:
    """Of a run how it went, else whether the plan fits. No number is called measured that is emulated or predicted."""
    return _run_headline(story) if story.run else plan_headline(story.plan)


def plan_headline(plan: Plan) -> Headline:
    """Whether it fits, and what that is known from."""
    estimate, budget = plan.estimate, plan.gpu.budget_bytes
    if not estimate.fits:
        return Headline(kind="close", text=f"Too close: {room_words(estimate, budget, plan.evidence.uncertainty_share)}.")
    peak = estimate.process_peak_bytes
    room = f"{peak / GIB:.2f} of {format_gib(budget)} ({format_gib(budget - peak)} to spare)"
    if estimate.evidence == "predicted":
        return Headline(kind="good", text=f"Fits, predicted: {room}. Not yet run on a {gpu_title(plan)}.")
    if estimate.evidence == "measured":
        return Headline(kind="good", text=f"It fits, measured: {room}.")
    return Headline(kind="good", text=f"It fits, emulated (measured on {_host(plan)} limited to {format_gib(budget)}): {room}.")


def _run_headline(story: Story) -> Headline:
    done, records, budget, peak = story.summary, story.records, story.plan.gpu.budget_bytes, story.run_peak_bytes
    if peak is None:
        return Headline(kind="close", text="Not started: no step is in its log.")
    evidence = done.evidence if done else story.plan.estimate.evidence
    held = f"peak {peak / GIB:.2f} of {format_gib(budget)} ({HOW[evidence]})"
    took = duration_text(story.train_seconds)
    if story.stopped:
        return Headline(kind="bad", text=f"Stopped after {_steps(story)}, {held}. {story.stopped}")
    if peak > budget:
        return Headline(kind="bad", text=f"Over the budget: {held}, {counted(len(records), 'step')} in {took}.")
    if done is None:
        return Headline(kind="close", text=f"Not finished: {_steps(story)} in {took}, {_so_far(peak, budget)}.")
    early = ", ended early because the eval loss stopped falling" if done.ended_early else ""
    return Headline(kind="good", text=f"Finished: {counted(done.steps, 'step')} in {took}{early}, {held}.{_troubles(story)}")


def _so_far(peak: int, budget: int) -> str:
    return f"peak so far {peak / GIB:.2f} of {format_gib(budget)}"


def _steps(story: Story) -> str:
    last = story.records[-1]
    return f"{last.step:,} of {counted(last.steps, 'step')}"


MARKED: dict[Kind, str] = {"good": "fits", "close": "look closer", "bad": "does not fit"}
"""A verdict in a word."""
HOW: dict[Evidence, str] = {
    "predicted": "counted on the CPU",
    "emulated": "emulated",
    "measured": "measured",
}
"""Where the bytes of a run are from; one on the CPU counts those of its tensors."""


def _troubles(story: Story) -> str:
    done = story.summary
    assert done is not None
    told = []
    if done.ooms:
        told.append(f"Memory ran out {counted(done.ooms, 'time')}; those steps were done again in smaller micro-batches.")
    if done.skipped_steps:
        told.append(f"{counted(done.skipped_steps, 'step')} skipped: not finite.")
    return "".join(f" {each}" for each in told)


def gpu_title(plan: Plan) -> str:
    """``GeForce RTX 3060 12 GB``."""
    several = f"{plan.gpu.gpus} x " if plan.gpu.gpus > 1 else ""
    return several + plan.gpu.profile.title.removeprefix("NVIDIA ")


def _host(plan: Plan) -> str:
    return (plan.made_on or "another GPU").removeprefix("NVIDIA ")


def marked(evidence: Evidence, plan: Plan) -> str:
    """`` (predicted)`` on a number that is known from something else than the plan's own; nothing where the page says so."""
    return "" if evidence == plan.estimate.evidence else f" ({evidence})"


def tiles(story: Story) -> list[tuple[str, str, str]]:
    """The numbers that a reader wants first: (what, how much, and what that is), for the top of the page."""
    return _run_tiles(story) if story.run and story.records else _plan_tiles(story.plan)


def _plan_tiles(plan: Plan) -> list[tuple[str, str, str]]:
    estimate, time = plan.estimate, plan.run_time()
    found = [("Peak GPU memory", format_gib(estimate.process_peak_bytes), f"of {format_gib(plan.gpu.budget_bytes)}")]
    if time is not None:
        between = time.range_text()
        found.append(("Time", duration_text(time.seconds), time.text().split(",")[0] + (f"; {between}" if between else "")))
    if estimate.samples_per_second:
        found.append(("Speed", estimate.speed_text(""), f"examples/s{_images(plan)}"))
    if ratio := plan.over_baseline_text():
        found.append(("Faster", ratio.removesuffix(" times") + "x", "than Hugging Face Trainer defaults"))
    elif plan.baseline is None:
        found.append(("Baseline", "does not fit", "Hugging Face Trainer defaults"))
    return found


def _images(plan: Plan) -> str:
    """How many images an example has, where that makes another number of images per second."""
    if plan.workload.is_video:
        return f", a video of {counted(plan.workload.most_frames, 'frame')} each"
    mean = fmean(len(shape.images) for shape in plan.workload.typical)
    if mean == 1:
        return ", 1 image each"
    return f", {mean:.3g} images each on average" if mean else ""


def _run_tiles(story: Story) -> list[tuple[str, str, str]]:
    records, plan = story.records, story.plan
    peak, time = story.run_peak_bytes, plan.run_time()
    found = [("Peak GPU memory", format_gib(peak), f"of {format_gib(plan.gpu.budget_bytes)}")]
    per_step = time.seconds / time.steps if time else None
    said = f"; {duration_text(per_step * len(records))} planned" if per_step and plan.estimate.evidence != "predicted" else ""
    found.append(("Time", duration_text(story.train_seconds), f"for {counted(len(records), 'step')}{said}"))
    found.append(("Speed", f"{story.run_speed:.2f}", "examples/s, median step"))
    found.append(_loss_tile(story))
    return found


def _loss_tile(story: Story) -> tuple[str, str, str]:
    held = [(record.heldout_loss, record.step) for record in story.records if record.heldout_loss is not None]
    if held:
        best, step = min(held)
        last = "" if (best, step) == held[-1] else f"; {held[-1][0]:.4f} at the end"
        return "Eval loss", f"{best:.4f}", f"after step {step:,}{last}"
    losses = [record.loss for record in story.records if record.loss is not None]
    return ("Loss", f"{losses[-1]:.4f}", f"from {losses[0]:.4f}") if losses else ("Loss", "none", "no step was finite")


def verdict(story: Story) -> list[Answer]:
    """A page's answers in words, the headline first. Of a run they are about the run."""
    if story.run:
        found = [("How did it go?", headline(story).text), ("What was measured?", _run_measured(story))]
    else:
        found = [
            ("Does it fit?", headline(story).text),
            ("How long?", _time(story.plan)),
            ("How fast?", _speed(story.plan)),
            ("What was measured?", _measured(story.plan)),
            ("How sure is it?", _sure(story)),
            (MORE, _more(story.plan)),
        ]
    return [Answer(question=question, answer=answer) for question, answer in found if answer]


MORE = "What would more resolution or rank cost?"


def _run_measured(story: Story) -> str:
    done = story.summary
    if done is None:
        return ""
    stack = done.stack
    return f"Everything: it {done.note} (torch {stack.torch}, transformers {stack.transformers}, peft {stack.peft})."


def _time(plan: Plan) -> str:
    uncalibrated = is_uncalibrated(plan.evidence.calibration) and plan.estimate.evidence == "predicted"
    text = time_text(plan.estimate, plan.contract, plan.workload.examples, uncalibrated=uncalibrated)
    parts = [f"{text[0].upper()}{text[1:]}."]
    if plan.once:
        parts.append(f"Once: {'; '.join(cost.text() for cost in plan.once)}.")
    if plan.pictures is not None and plan.pictures.shrunk:
        said = pictures_text(plan.pictures, plan)
        parts.append(f"Images: {said.removesuffix(' (predicted)') if plan.estimate.evidence == 'predicted' else said}.")
    return " ".join(parts)


def _speed(plan: Plan) -> str:
    estimate, baseline = plan.estimate, plan.baseline
    if estimate.samples_per_second is None:
        return f"Not known: the rates of the {gpu_title(plan)} are not in its profile."
    text = estimate.speed_text()
    if estimate.evidence == "emulated":
        text += f" on the {_host(plan)} (emulated), not on a {gpu_title(plan)}"
    elif estimate.evidence == "predicted" and plan.evidence.outcomes:
        text += f", timed on a CPU: it says nothing of the speed of a {gpu_title(plan)}"
    elif estimate.evidence == "predicted" and estimate.speed_low:
        text += ": the true speed is in this range in 8 of 10 cases"
    if baseline is None or baseline.knobs == plan.knobs:
        said = compared(plan)
        return f"{text}. {said[0].upper()}{said[1:]}."
    if not baseline.estimate.samples_per_second:
        return f"{text}."
    return (
        f"{text}. Hugging Face Trainer defaults, at their best micro-batch ({baseline.knobs.micro_batch}), do"
        f" {baseline.estimate.speed_text()}{marked(baseline.estimate.evidence, plan)}:"
        f" the plan is {plan.over_baseline_text()} as fast."
    )


def _measured(plan: Plan) -> str:
    outcomes = plan.evidence.outcomes
    if not outcomes:
        return "Nothing yet. On a machine with this GPU, budgetft plan runs a few short trials."
    failed = [outcome.status for outcome in outcomes if not outcome.fits]
    ends = "; ".join(
        f"{failed.count(status)} of {len(outcomes)} {ENDS.get(status, f'ended as {status}')}" for status in sorted(set(failed))
    )
    seconds = sum(outcome.wall_seconds for outcome in outcomes)
    stack = outcomes[-1].stack
    versions = f", torch {stack.torch}, transformers {stack.transformers}, peft {stack.peft}" if stack else ""
    where = stack.gpu if stack else "a GPU that was not recorded"
    said = plan.evidence.statement
    kind = "" if said.startswith(plan.evidence.kind) else f"{plan.evidence.kind}: "
    return (
        f"{counted(len(outcomes), 'trial')} of the real step in {duration_text(seconds)} on {where}{versions}"
        f"; {ends or 'all ended well'}. {f'{kind}{said}'[0].upper()}{f'{kind}{said}'[1:]}."
    )


ENDS = {
    "oom": "ran out of memory",
    "over_budget": "went over the budget",
    "nonfinite": "had a loss that was not finite",
    "timeout": "took too long",
    "crash": "crashed",
}
"""How trials end that do not end well."""


def _sure(story: Story) -> str:
    plan = story.plan
    errors = [abs(residual) for probe in story.probes if (residual := probe.peak_residual) is not None]
    share = plan.gpu.budget_bytes / max(1, plan.estimate.process_peak_bytes) - 1
    if not plan.evidence.outcomes:
        typical = plan.evidence.uncertainty_share
        error = f"; the typical error is {typical:.0%}" if typical else ""
        low = f"The prediction could be {share:.1%} too low and it would still fit{error}."
        return low if share < 1 else f"Even {share + 1:.0f} times the predicted peak would fit{error}."
    text = f"The peak could be {f'{share:.1%} higher' if share < 1 else f'{share + 1:.0f} times as high'} and still fit."
    text += " Training stops at the budget."
    if errors:
        when = "before them" if plan.evidence.predictions else "again after them"
        text = (
            f"In {counted(len(errors), 'trial')} that fit, the peak predicted {when} was off by {fmean(errors):.1%} on average,"
            f" {max(errors):.1%} at worst. {text}"
        )
    text += _repeated(plan)
    if plan.evidence.kind == "emulated":
        text += f" Memory carries over to a {gpu_title(plan)}; speed does not, and its best setting may differ."
    return text


def _repeated(plan: Plan) -> str:
    """How far apart the speeds of the plan's setting are, when it was timed more than once."""
    timed = [o.samples_per_second for o in plan.evidence.outcomes if o.knobs == plan.knobs and o.samples_per_second]
    if len(timed) < 2:
        return ""
    low, high = min(timed), max(timed)
    where = "on the CPU" if plan.evidence.kind == "predicted" else plan.evidence.kind
    return f" Timed {len(timed)} times, the plan's setting ran at {low:.2f} to {high:.2f} examples/s ({where})."


def _more(plan: Plan) -> str:
    contract = plan.contract
    if plan.goal is not None and plan.goal.values:
        chosen, limit = values_words(plan.goal.values), duration_text(plan.goal.hours * HOUR)
        return f"Chosen for a run within {limit}: {chosen}. What else is possible is listed above."
    others = [row for row in plan.price_list if not plan.is_own(row)]
    if not others:
        pixels = f"{contract.max_pixels}..{4 * contract.max_pixels}"
        return f"Plan again with --rank {contract.rank}..{4 * contract.rank} or --max-pixels {pixels} to see."
    return "; ".join(_cost(trade_off(row, plan), plan) for row in others) + "."


def _cost(text: str, plan: Plan) -> str:
    return text.removesuffix(" (predicted)") if plan.estimate.evidence == "predicted" else text
