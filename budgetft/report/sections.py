"""The sections that explain a plan: where the bytes go, what else was looked at, and the details."""

import shlex
from collections.abc import Iterable
from html import escape
from itertools import groupby
from pathlib import Path

from budgetft.answers import is_uncalibrated
from budgetft.duration import duration_text
from budgetft.goal import Goal, time_asked
from budgetft.host_gpus import launch_command
from budgetft.knobs import differences, is_stock
from budgetft.outcome import Estimate, Outcome
from budgetft.plan import Plan
from budgetft.report import memory_charts, setting_charts
from budgetft.report.data_chart import lengths_chart, lengths_of
from budgetft.report.goal_chart import goal_chart, values_words
from budgetft.report.html import definitions, figure, folded, note, swatch, table
from budgetft.report.memory_charts import BOTH, GROUPS, grouped
from budgetft.report.setting_charts import best_before, points_of
from budgetft.report.story import Probe, Story
from budgetft.report.verdict import ENDS, gpu_title, marked
from budgetft.shown import contract_text, shape_text
from budgetft.units import GIB, counted, format_gib
from budgetft.wording import setting_name, setting_value, settings_words, short_words

SMALL = GIB // 20
"""Bytes under which a part of the peak is told with the others: 0.05 GiB."""
NO_CALIBRATION = "none of this GPU: budgetft gpus --calibrate makes one there"
FEW = 8
"""Rows of a table that stands open; longer ones are folded."""

_SHOWN_AS = {"gpu": "GPU", "card": "GPU"}


def memory(story: Story) -> str:
    """The timeline of one micro-batch, and the parts of the peak in the words of its legend."""
    plan = story.plan
    parts = [note(story.timeline_note)]
    if story.moments:
        times = f"{plan.knobs.grad_accum} times" if plan.knobs.grad_accum > 1 else "once"
        traced = "" if plan.estimate.evidence == "predicted" else " The picture is predicted, from a trace of the step."
        parts.append(figure(lambda width: memory_charts.bytes_chart(story, width)))
        examples = counted(plan.knobs.micro_batch, "example")
        gap = f" The gap up to the peak is {GROUPS['allocator'][0]}."
        parts.append(note(f"One micro-batch of {examples}, from left to right; a step has it {times}.{gap}{traced}"))
    columns = {f"{plan.estimate.evidence}, GiB": plan.estimate}
    if story.predicted is not None and plan.estimate.evidence != "predicted":
        columns["predicted, GiB"] = story.predicted
    elif len(columns) == 1:
        columns = {"GiB": plan.estimate}
    return "".join(parts) + parts_table(columns) + folded("Every part", _terms_table(columns))


def parts_table(columns: dict[str, Estimate]) -> str:
    """The parts of each estimate's peak by the groups of the charts, those under 0.05 GiB together."""
    sums = {name: grouped(estimate) for name, estimate in columns.items()}
    known = [colour for colour in GROUPS if any(found.get(colour) for found in sums.values())]
    large = [colour for colour in known if any(abs(found.get(colour, 0)) >= SMALL for found in sums.values())]
    first = next(iter(sums.values()))
    rows = []
    for colour in sorted(large, key=lambda colour: -first.get(colour, 0)):
        both = colour == "kept"
        name = swatch(*(("kept", "temporary") if both else (colour,))) + escape(BOTH if both else GROUPS[colour][0])
        rows.append([name, *(f"{found.get(colour, 0) / GIB:.2f}" for found in sums.values())])
    small = [colour for colour in known if colour not in large]
    if small:
        told = ", ".join(BOTH if colour == "kept" else GROUPS[colour][0] for colour in small)
        rest = [sum(found.get(colour, 0) for colour in small) / GIB for found in sums.values()]
        rows.append([f"other ({escape(told)})", *(f"{size:.2f}" for size in rest)])
    rows.append(["peak GPU memory", *(f"{estimate.process_peak_bytes / GIB:.2f}" for estimate in columns.values())])
    return table(["at the peak", *columns], rows, numbers=range(1, 1 + len(columns)), total=True)


def _terms_table(columns: dict[str, Estimate]) -> str:
    names = list(dict.fromkeys(term.name for estimate in columns.values() for term in estimate.terms))
    first = next(iter(columns.values()))
    rows = [
        [escape(name), *(f"{estimate.term_bytes(name) / GIB:.2f}" for estimate in columns.values())]
        for name in sorted(names, key=lambda name: -first.term_bytes(name))
    ]
    return table(["part", *columns], rows, numbers=range(1, 1 + len(columns)))


def frontier(story: Story) -> str:
    """Speed against memory of the settings that are known, each listed by its label."""
    points = points_of(story)
    drawn = figure(lambda width: setting_charts.frontier_chart(story, width))
    if not drawn:
        return ""
    rows = [
        [
            f"<b>{escape(p.label)}</b>" if p.label == "plan" else escape(p.label),
            escape(short_words(p.knobs, story.plan.knobs)),
            f"{p.gib:.2f}",
            escape(f"{p.speed_text}{marked(p.evidence, story.plan)}"),
        ]
        for p in points
    ]
    names = ["", "settings", "peak, GiB", "examples/s"]
    listed = table(names, rows, numbers=(2, 3), blocks=True)
    return drawn + (listed if len(rows) <= FEW else folded(f"The {len(rows)} settings", listed))


def costs(story: Story) -> str:
    """What each step up of a training setting costs."""
    plan, parts = story.plan, []
    for axis, group in groupby(sorted(plan.price_list, key=lambda row: row.axis), key=lambda row: row.axis):
        rows = list(group)
        title = setting_charts.AXES.get(axis, axis)
        parts.append(f"<h3>{escape(title[0].upper() + title[1:])}</h3>")
        parts.append(figure(lambda width, rows=rows: setting_charts.cost_chart(rows, plan, width)))
    if parts and any(row.evidence != plan.estimate.evidence for row in plan.price_list):
        parts.append(note("Compare with care: the plan's own bar was run, the others are predicted."))
    elif parts:
        parts.append(note("Bars are examples per second."))
    return "".join(parts)


def goal_title(goal: Goal) -> str:
    return f"What ends within {time_asked(goal)}"


def goal_body(story: Story, goal: Goal) -> str:
    """The choices that a time leaves, drawn and listed."""
    once = f", and {duration_text(goal.one_time_seconds)} once for the feature cache" if goal.one_time_seconds else ""
    chosen = f"Chosen: {values_words(goal.values)}. " if goal.values else ""
    parts = [f"<p>{escape(f'{chosen}{goal.run.text()}{once}{marked(goal.run.evidence, story.plan)}.')}</p>"]
    if goal.late_at_its_slow_end:
        parts.append(note("At the slow end of its range it takes longer; --sure chooses what is in time there too."))
    parts.append(figure(lambda width: goal_chart(story, width)))
    if not goal.rows:
        return "".join(parts)
    parts.append(
        note("A line is the range that holds the true time in 8 of 10 cases. Listed: the largest in time, then larger.")
    )
    rows = [
        [
            escape(values_words(row.values)),
            escape(row.time_text()),
            "-" if row.process_peak_bytes is None else f"{row.process_peak_bytes / GIB:.2f}",
            "<b>chosen</b>" if goal.is_chosen(row) else escape(row.verdict),
        ]
        for row in goal.rows
    ]
    return "".join(parts) + table(["training settings", "time", "peak, GiB", ""], rows, numbers=(2,))


def baseline(story: Story) -> str:
    """The plan beside Hugging Face's defaults; nothing where those do not fit, or are the plan."""
    plan, other = story.plan, story.plan.baseline
    if other is None or other.knobs == plan.knobs:
        return ""
    sides = (("Hugging Face Trainer defaults", other.estimate, "stock"), ("plan", plan.estimate, "plan"))
    bars = [(name, e.samples_per_second or 0.0, e.speed_text() + marked(e.evidence, plan), colour) for name, e, colour in sides]
    rows = [
        [
            escape(setting_name(name)),
            escape(setting_value(name, getattr(other.knobs, name), story.layers)),
            escape(setting_value(name, value, story.layers)),
        ]
        for name, value in differences(plan.knobs, other.knobs).items()
    ]
    return (
        figure(lambda width: setting_charts.bars_chart(bars, width, "Examples per second"))
        + figure(lambda width: memory_charts.baseline_chart(story, width))
        + folded("Settings that differ", table(["setting", "Hugging Face Trainer defaults", "plan"], rows))
    )


def dataset(story: Story) -> str:
    """How long the examples are, and what becomes of their images."""
    plan, lengths = story.plan, lengths_of(story)
    count = plan.workload.examples
    if count is None:
        return ""
    parts = [figure(lambda width: lengths_chart(story, width))]
    told = [f"{Path(plan.data).name + ': ' if plan.data else ''}{counted(count, 'example')}"]
    if lengths and story.pixel_step is not None:
        longest = plan.workload.worst[0].total_tokens(story.pixel_step)
        some = "" if len(lengths) >= count else f" (of {len(lengths)} drawn at random)"
        told.append(f"{min(lengths):,} to {max(lengths):,} tokens{some}, the longest of all {longest:,}")
    heaviest = [f"The heaviest: {shape_text(plan.workload.worst[0])}"]
    if plan.pictures is not None and plan.pictures.shrunk:
        size = setting_value("max_pixels", plan.contract.max_pixels)
        heaviest.append(f"Images of {plan.pictures.shrunk:,} of {plan.pictures.examples:,} examples are shrunk to {size}")
    return "".join(parts) + f"<p>{escape('; '.join(told))}.</p>" + note(". ".join(heaviest) + ".")


def trials(story: Story) -> str:
    """Every trial beside its prediction, and what it taught; nothing where none was made."""
    if not story.probes:
        return ""
    outcomes = story.plan.evidence.outcomes
    rows = []
    for index, probe in enumerate(story.probes):
        outcome = probe.outcome
        changed = short_words(outcome.knobs) if index == 0 else _changed(story, outcomes[index - 1], outcome)
        state = f'<span class="tag {"ok" if outcome.fits else "failed"}">{escape(_ended(outcome))}</span>'
        rows.append([str(index + 1), escape(changed), _pair(probe), _speeds(probe), state, escape(lesson(story, index))])
    names = ["#", "settings changed", "peak, GiB", "examples/s", "ended", "taught"]
    earlier = [
        [
            escape(short_words(o.knobs, story.plan.knobs)),
            f"{o.process_peak_bytes / GIB:.2f}" if o.process_peak_bytes else "-",
            escape(_ended(o)),
        ]
        for o in story.earlier
    ]
    listed = table(names, rows, blocks=True)
    more = folded(story.ledger_note, table(["settings", "peak, GiB", "ended"], earlier, numbers=(1,)))
    return (
        figure(lambda width: setting_charts.probes_chart(story, width))
        + note(story.prediction_note)
        + (listed if len(rows) <= FEW else folded(f"The {len(rows)} trials", listed))
        + (more or note(story.ledger_note))
    )


def _ended(outcome: Outcome) -> str:
    return "fits" if outcome.fits else ENDS.get(outcome.status, outcome.status)


def _changed(story: Story, before: Outcome, outcome: Outcome) -> str:
    changes = {name: value for name, value in differences(outcome.knobs, before.knobs).items() if name != "grad_accum"}
    return (
        ", ".join(f"{setting_name(name)}: {setting_value(name, value, story.layers)}" for name, value in changes.items())
        or "nothing: the same again, in a fresh process"
    )


def _pair(probe: Probe) -> str:
    said, found = probe.prediction, probe.outcome.process_peak_bytes
    return _both(said and said.process_peak_bytes / GIB, found and found / GIB, probe.source)


def _speeds(probe: Probe) -> str:
    said = probe.prediction
    return _both(said and said.samples_per_second, probe.outcome.samples_per_second, probe.source)


def _both(predicted: float | None, found: float | None, source: str) -> str:
    cells = [(predicted, "predicted"), (found, source)]
    told = [f"{value:.2f} {word}" for value, word in cells if value is not None]
    return f'<span class="pair">{", <br>".join(map(escape, told)) or "-"}</span>'


def lesson(story: Story, index: int) -> str:
    """What the trial ``index`` added to what was known before it."""
    probe, outcomes = story.probes[index], story.plan.evidence.outcomes
    outcome = probe.outcome
    if not outcome.fits:
        return _failure(probe, story.plan)
    parts = [] if probe.peak_residual is None else [f"peak {probe.peak_residual:+.1%} against the prediction"]
    if outcome.alloc_retries:
        parts.append(f"the allocator had to retry {counted(outcome.alloc_retries, 'time')}: too tight to use")
    elif is_stock(outcome.knobs):
        parts.append("the baseline")
    elif outcome == story.plan.evidence.confirmed:
        parts.append("confirmed in a fresh process")
    else:
        before, speed = best_before(outcomes, index), outcome.samples_per_second or 0.0
        if before == 0:
            parts.append("the first setting to compare with")
        else:
            parts.append(f"best so far, {speed / before:.2f}x" if speed > before else f"{speed / before:.2f}x the best so far")
    return "; ".join(parts)


def _failure(probe: Probe, plan: Plan) -> str:
    outcome = probe.outcome
    where = f" in {outcome.phase}" if outcome.phase else ""
    said = probe.prediction
    if outcome.status not in ("oom", "over_budget"):
        return f"{ENDS.get(outcome.status, outcome.status)}{where}: {outcome.detail[:200]}".removesuffix(": ")
    text = f"does not fit: out of memory{where}" if outcome.status == "oom" else "does not fit: over the budget"
    if said is None:
        return text
    side = "as predicted" if said.process_peak_bytes > plan.gpu.budget_bytes else "although it was predicted to"
    return f"{text}, {side} ({format_gib(said.process_peak_bytes)} predicted)"


def next_commands(story: Story) -> list[tuple[str, str]]:
    """(command, what for) of what goes on from here, with the paths as they were given."""
    plan, path = story.plan, shlex.quote(str(story.plan_path))
    start = "budgetft" if plan.gpu.gpus == 1 else f"{launch_command(plan.gpu.gpus, share=plan.gpu.shared)} -m budgetft"
    data = "" if plan.data else " --data YOUR_DATA"
    if story.run is None:
        return [(f"{start} train --plan {path} --out runs/first{data}", "Next: train it")]
    run = shlex.quote(str(story.run))
    if story.summary is None:
        return [(f"{start} train --plan {path} --out {run}{data} --resume", "Next: resume it")]
    return [
        (f"budgetft predict --run {run} --data YOUR_DATA --out captions.jsonl", "Next: use it"),
        (f"budgetft merge {run} --out merged", "Or merge it, for transformers and vLLM"),
    ]


def details(story: Story) -> str:
    """Settings in words, what was kept fixed, and what it was made with."""
    plan = story.plan
    facts = [
        ("Settings", "; ".join(settings_words(plan.knobs, story.layers))),
        ("Kept fixed", contract_text(plan.contract)),
        ("GPU", gpu_title(plan) + ("; the frozen layers are sharded" if plan.gpu.shared else "")),
        ("Target modules", ", ".join(plan.contract.targets)),
        ("Vision features", plan.features.describe() if plan.features else ""),
        ("Peak memory by phase", "; ".join(_phases(plan))),
        ("Base model", f"{plan.model.base.describe()}: train takes no others" if plan.model.base else ""),
        ("Precision", plan.precision.describe() if plan.precision else ""),
        ("Calibration", NO_CALIBRATION if is_uncalibrated(plan.evidence.calibration) else plan.evidence.calibration or ""),
        ("Made with", ", ".join(f"{_SHOWN_AS.get(name, name)} {value}" for name, value in plan.environment.items())),
    ]
    return definitions(facts)


def _phases(plan: Plan) -> Iterable[str]:
    for each in plan.stages:
        said = each.describe(plan.gpu.budget_bytes)
        yield said.removesuffix(f" ({plan.estimate.evidence})")
