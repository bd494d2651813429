"""What a reader wants to know first, in plain words: will it fit, how fast, what was measured on what, how sure, what else."""

from dataclasses import dataclass
from statistics import fmean

from budgetft.answers import is_uncalibrated, pictures_text, time_text
from budgetft.duration import HOUR, duration_text
from budgetft.goal import values_text
from budgetft.plan import CostRow, Plan
from budgetft.report.charts import short
from budgetft.report.gather import Story
from budgetft.units import format_gib


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question of a reader and its answer."""

    question: str
    answer: str


def verdict(story: Story) -> list[Answer]:
    """The answers of a page's head. No number is called measured that is emulated or predicted."""
    return [
        Answer(question="Will it fit?", answer=_fits(story)),
        Answer(question="How long?", answer=_time(story)),
        Answer(question="How fast?", answer=_speed(story.plan)),
        Answer(question="What was really measured, and on what?", answer=_measured(story)),
        Answer(question="How sure is it?", answer=_sure(story)),
        Answer(question="What would have to be given up for more?", answer=_more(story.plan)),
    ]


def headline(plan: Plan) -> str:
    """The verdict in one sentence."""
    estimate = plan.estimate
    room = f"{format_gib(estimate.process_peak_bytes)} of {format_gib(plan.gpu.budget_bytes)}"
    speed = "" if estimate.samples_per_second is None else f" at {estimate.speed_text()}"
    word = {
        "measured": "It fits",
        "emulated": "It fits on a stand-in GPU",
        "predicted": "It should fit",
    }[estimate.evidence]
    return f"{word}: {room}{speed} ({estimate.evidence})."


def _fits(story: Story) -> str:
    plan, estimate = story.plan, story.plan.estimate
    budget, peak = plan.gpu.budget_bytes, estimate.process_peak_bytes
    room = f"{format_gib(peak)} of the budget of {format_gib(budget)}, which leaves {format_gib(budget - peak)}"
    if estimate.evidence == "predicted":
        text = f"By prediction, yes: the process is computed to need {room}. No {plan.gpu.name} took part."
    else:
        where = "on a" if estimate.evidence == "measured" else "on a GPU that stood in for the"
        again = "confirmed in a fresh process" if plan.evidence.confirmed is not None else "not confirmed in a fresh process"
        text = f"Yes, {where} {plan.gpu.name}: the worst batch made the process hold {room} ({estimate.evidence}, {again})."
    return f"{text} {_run_peak(story)}".strip()


def _time(story: Story) -> str:
    plan = story.plan
    proof = plan.evidence
    uncalibrated = is_uncalibrated(proof.calibration) and plan.estimate.evidence == "predicted"
    text = time_text(plan.estimate, plan.contract, plan.workload.examples, uncalibrated=uncalibrated)
    parts = [f"{text[0].upper()}{text[1:]}, {plan.estimate.evidence}."]
    if plan.once:
        parts.append(f"Once: {'; '.join(cost.text() for cost in plan.once)}.")
    if plan.pictures is not None and plan.pictures.shrunk:
        parts.append(f"Images: {pictures_text(plan.pictures, plan)}.")
    if story.summary is not None:
        parts.append(f"The run took {duration_text(story.summary.train_seconds)} for {story.summary.steps:,} steps.")
    return " ".join(parts)


def tiles(plan: Plan) -> list[tuple[str, str, str]]:
    """The four numbers that a reader wants first: (what, how much, and what that is), for the top of the page."""
    estimate, time = plan.estimate, plan.run_time()
    budget = format_gib(plan.gpu.budget_bytes)
    found = [("Peak GPU memory", format_gib(estimate.process_peak_bytes), f"of {budget}, {estimate.evidence}")]
    if time is not None:
        between = time.range_text()
        found.append(("Time", duration_text(time.seconds), time.text().split(",")[0] + (f"; {between}" if between else "")))
    if estimate.samples_per_second:
        found.append(("Speed", estimate.speed_text(""), f"examples/s, {estimate.evidence}"))
    if ratio := plan.over_baseline_text():
        found.append(("Faster", ratio.removesuffix(" times") + "x", "than Hugging Face Trainer defaults"))
    return found


def _run_peak(story: Story) -> str:
    if not story.records:
        return ""
    peak, budget = max(record.process_peak_bytes for record in story.records), story.plan.gpu.budget_bytes
    kind = story.summary.evidence if story.summary else "not finished; its evidence is written at the end"
    side = f"inside its budget of {format_gib(budget)}" if peak <= budget else f"OVER its budget of {format_gib(budget)}"
    return f"The run peaked at {format_gib(peak)} in {len(story.records)} steps, {side} ({kind})."


def _speed(plan: Plan) -> str:
    estimate, baseline = plan.estimate, plan.baseline
    if estimate.samples_per_second is None:
        return f"Not known: the rates of the {plan.gpu.name} are not in its profile and nothing was timed."
    text = f"{estimate.speed_text()} ({estimate.evidence})"
    if estimate.evidence == "emulated":
        text += f"; that is the speed of {plan.environment.get('gpu', 'another GPU')}, not of a {plan.gpu.name}"
    if estimate.evidence == "predicted" and plan.evidence.outcomes:
        text += f"; it was timed on a CPU and says nothing of the speed of a {plan.gpu.name}"
    elif estimate.evidence == "predicted":
        text += "; the range holds the true speed with 80 %, by what is known of such GPUs"
    if baseline is None:
        return text + ". The stock recipe does not fit at any micro-batch."
    if baseline.knobs == plan.knobs:
        return text + ". It is the stock recipe: nothing that was tried is faster and fits."
    if not baseline.estimate.samples_per_second:
        return text + "."
    return (
        f"{text}. The stock recipe at its best micro-batch ({baseline.knobs.micro_batch}) does"
        f" {baseline.estimate.speed_text()} ({baseline.estimate.evidence}): the plan is {plan.over_baseline_text()} as fast."
    )


def _measured(story: Story) -> str:
    plan, outcomes = story.plan, story.plan.evidence.outcomes
    if not outcomes:
        return f"Nothing was run for this plan: {plan.evidence.statement}."
    failed = [outcome.status for outcome in outcomes if not outcome.fits]
    ends = ", ".join(f"{failed.count(status)} ended as {status}" for status in sorted(set(failed))) or "all ended well"
    seconds = sum(outcome.wall_seconds for outcome in outcomes)
    stack = outcomes[-1].stack
    versions = f", torch {stack.torch}, transformers {stack.transformers}, peft {stack.peft}" if stack else ""
    gpu = stack.gpu if stack else "a GPU that was not recorded"
    return (
        f"{len(outcomes)} probes of the real step ({ends}), {seconds:.0f} seconds, on {gpu}{versions}."
        f" They count as {plan.evidence.kind}: {plan.evidence.statement}."
    )


def _sure(story: Story) -> str:
    errors = [abs(residual) for probe in story.probes if (residual := probe.peak_residual) is not None]
    room = _room(story.plan)
    if not story.plan.evidence.outcomes:
        return (
            f"As sure as the prediction: {story.plan.evidence.statement}."
            f" The peak may be {room} higher than predicted before the budget is reached."
        )
    text = f"The peak may grow by {room} before the budget is reached, and training stops at the budget."
    if errors:
        when = "before them" if story.plan.evidence.predictions else "again now, after them"
        text = (
            f"Process peaks of the {len(errors)} probes that ended well, predicted {when}, were off by {fmean(errors):.1%}"
            f" on average, {max(errors):.1%} at worst. {text}"
        )
    text += _repeated(story.plan)
    if story.plan.evidence.kind == "emulated":
        text += f" Bytes carry over to the {story.plan.gpu.name} better than seconds; its best setting may differ."
    return text


def _room(plan: Plan) -> str:
    share = plan.gpu.budget_bytes / max(1, plan.estimate.process_peak_bytes) - 1
    return f"{share:.1%}" if share < 1 else f"{share:.0f} times its size"


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
    kept = (
        f"Nothing was given up: images up to {contract.max_pixels} pixels, {contract.max_length} tokens, rank {contract.rank}"
        f" and effective batch {contract.effective_batch} are as asked."
    )
    if plan.goal is not None and plan.goal.values:
        chosen, limit = values_text(plan.goal.values), duration_text(plan.goal.hours * HOUR)
        return f"For a run within {limit}, {chosen} was chosen; what else is possible is listed below."
    cost_of = [_cost_of(row, plan) for row in plan.price_list if not plan.is_own(row)]
    if cost_of:
        return f"{kept} " + " ".join(cost_of)
    faster = [c for c in plan.runners_up if (c.estimate.samples_per_second or 0) > 0]
    near = f" The next best setting ({short(faster[0].knobs)}) is slower or needs more." if faster else ""
    pixels = f"{max(784, contract.max_pixels // 4)}..{contract.max_pixels}"
    return (
        f"{kept}{near} No range was asked for, so no price is known: plan again with, for example,"
        f" --rank {contract.rank}..{4 * contract.rank} or --max-pixels {pixels}."
    )


def _cost_of(row: CostRow, plan: Plan) -> str:
    if row.samples_per_second is None:
        return f"{row.axis} {row.value} does not fit ({row.evidence})."
    needs = f"{row.speed_text()}, {format_gib(row.process_peak_bytes)}"
    text = f"{row.axis} {row.value}: {needs} ({row.evidence})."
    own = next((r for r in plan.price_list if r.axis == row.axis and plan.is_own(r)), row)
    if own is not row and own.samples_per_second and not plan.evidence.outcomes:
        text = text.removesuffix(".") + f", {row.samples_per_second / own.samples_per_second - 1:+.0%} against the plan."
    return text
