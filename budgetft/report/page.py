"""The page: one self-contained HTML file, and its charts as PNG beside it."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from budgetft.duration import duration_text
from budgetft.errors import UsageError
from budgetft.goal import Goal, time_asked, values_text
from budgetft.knobs import Knobs, differences, is_stock, shown
from budgetft.outcome import Estimate, Outcome
from budgetft.plan import Plan, write_text_atomically
from budgetft.report import charts
from budgetft.report.charts import best_before, short
from budgetft.report.drawing import Drawing
from budgetft.report.gather import Probe, Story
from budgetft.report.goal_chart import goal_chart
from budgetft.report.verdict import headline, tiles, verdict
from budgetft.units import GIB, format_gib

WIDE, NARROW = 800, 340
"""Widths that charts are drawn for: a page, and a phone."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the page may load and run: nothing."""
FIGURES: dict[str, Callable[[Story, float], Drawing | None]] = {
    "bytes": charts.bytes_chart,
    "probes": charts.probes_chart,
    "goal": goal_chart,
    "frontier": charts.frontier_chart,
    "stock": charts.stock_chart,
    "training": charts.training_chart,
}


def write_report(story: Story, path: Path) -> list[Path]:
    """Write the page to ``path`` and each chart to ``<name>-<chart>.png`` beside it; returns what was written."""
    write_text_atomically(path, html_page(story))
    written = [path]
    for name, draw in FIGURES.items():
        drawing = draw(story, WIDE)
        if drawing is not None:
            image = path.with_name(f"{path.stem}-{name}.png")
            try:
                drawing.write_png(image)
            except OSError as error:
                raise UsageError(f"cannot write {image}: {error.strerror or error}") from None
            written.append(image)
    return written


def html_page(story: Story) -> str:
    """The whole page. Every text from a file is escaped; nothing is loaded from anywhere and no script runs."""
    plan = story.plan
    title = f"{plan.model.name} on {plan.gpu.name}"
    sections = (
        _section("verdict", "Verdict", _definitions((a.question, a.answer) for a in verdict(story))),
        *([_section("goal", _goal_title(plan.goal), _goal(story, plan.goal))] if plan.goal is not None else []),
        _section("bytes", "Where the bytes go", _bytes(story)),
        _section("probes", "Predicted against probed", _probes(story)),
        _section("taught", "What each probe taught", _taught(story)),
        _section("frontier", "Speed, memory and what more would cost", _frontier(story)),
        _section("stock", "The stock recipe beside the plan", _stock(story)),
        _section("training", "Training", _training(story)),
        _section("setup", "What exactly this is about", _setup(story)),
    )
    header = (
        f"<header><h1>{escape(title)}, budget {format_gib(plan.gpu.budget_bytes)}</h1>\n"
        f'<p class="lead">{escape(headline(plan))}</p>\n{_tiles(plan)}</header>\n'
    )
    return document(f"{title}: memory plan", header + "\n".join(sections), "style.css")


def _tiles(plan: Plan) -> str:
    cells = "".join(
        f"<div><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(what)}</small></div>"
        for name, value, what in tiles(plan)
    )
    return f'<div class="tiles">{cells}</div>'


def document(title: str, body: str, *styles: str, script: str = "") -> str:
    """A whole page of ``body``, which is HTML already, with ``styles`` of this folder in it, and at its end ``script``: with
    one, that and no other may run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed, last = (f"; script-src 'sha256-{digest}'", f"<script>{script}</script>\n") if script else ("", "")
    style = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in styles)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}{allowed}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n{last}</body>\n</html>\n"
    )


def _section(name: str, title: str, body: str) -> str:
    return f'<section id="{name}">\n<h2>{title}</h2>\n{body}\n</section>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs) + "</dl>"


def _figure(draw: Callable[[float], Drawing | None]) -> str:
    """A chart twice, for a page and for a phone; the style shows one of them."""
    drawings = (draw(WIDE), draw(NARROW))
    drawn = "".join(d.svg(class_name=name) for d, name in zip(drawings, ("wide", "narrow"), strict=True) if d)
    return f"<figure>{drawn}</figure>" if drawn else ""


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = (), blocks: bool = False) -> str:
    """Cells are HTML already. With ``blocks``, on a phone each row becomes a block, and each cell tells its column."""
    kinds = [' class="number"' if column in numbers else "" for column in range(len(names))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(names, kinds, strict=True))
    body = ""
    for row in rows:
        cells = zip(names, kinds, row, strict=True)
        body += "<tr>" + "".join(f'<td{kind} data-name="{escape(name)}">{cell}</td>' for name, kind, cell in cells) + "</tr>"
    kind = ' class="blocks"' if blocks else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _goal_title(goal: Goal) -> str:
    return f"What ends within {time_asked(goal)}"


def _goal(story: Story, goal: Goal) -> str:
    once = f", and {duration_text(goal.one_time_seconds)} once for the feature cache" if goal.one_time_seconds else ""
    chosen = f"Chosen: {values_text(goal.values)}. " if goal.values else ""
    parts = [f"<p>{escape(f'{chosen}{goal.run.text()}{once} ({goal.run.evidence}).')}</p>"]
    if goal.late_at_its_slow_end:
        parts.append(_note("At the slow end of its range it takes longer; --sure chooses what is in time there too."))
    parts.append(_figure(lambda width: goal_chart(story, width)))
    if not goal.rows:
        return "".join(parts)
    parts.append(
        _note("Lines hold the true time with 80 %. Listed: what is in time and as large as can be, and what is larger.")
    )
    rows = [
        [
            escape(values_text(row.values)),
            escape(row.time_text()),
            "-" if row.process_peak_bytes is None else f"{row.process_peak_bytes / GIB:.2f}",
            "<b>chosen</b>" if goal.is_chosen(row) else escape(row.verdict),
        ]
        for row in goal.rows
    ]
    return "".join(parts) + _table(["contract", "time", "peak, GiB", ""], rows, numbers=(2,))


def _bytes(story: Story) -> str:
    plan = story.plan
    parts = [_note(story.timeline_note)]
    if story.moments:
        parts.append(_figure(lambda width: charts.bytes_chart(story, width)))
        times = f"{plan.knobs.grad_accum} times" if plan.knobs.grad_accum > 1 else "once"
        reading = f"One micro-batch of {plan.knobs.micro_batch} examples from left to right, run {times} per step."
        parts.append(_note(f"{reading} What lies between the tensors and the process peak is the caching allocator's."))
    columns = {f"{plan.estimate.evidence}, GiB": plan.estimate}
    if story.predicted is not None and plan.estimate.evidence != "predicted":
        columns["predicted, GiB"] = story.predicted
    names = list(dict.fromkeys(term.name for estimate in columns.values() for term in estimate.terms))
    rows = [
        [escape(name), *(_gib_of(estimate, name) for estimate in columns.values())]
        for name in sorted(names, key=lambda name: -plan.estimate.term_bytes(name))
    ]
    total = ["<b>process peak</b>", *(f"{e.process_peak_bytes / GIB:.2f}" for e in columns.values())]
    return "".join(parts) + _table(["at the peak", *columns], [*rows, total], numbers=range(1, 1 + len(columns)))


def _gib_of(estimate: Estimate, name: str) -> str:
    return f"{estimate.term_bytes(name) / GIB:.2f}" if any(term.name == name for term in estimate.terms) else "-"


def _probes(story: Story) -> str:
    if not story.probes:
        return f"<p>Nothing was probed: every number here is predicted ({escape(story.plan.evidence.statement)}).</p>"
    return _figure(lambda width: charts.probes_chart(story, width)) + _note(story.prediction_note)


def _taught(story: Story) -> str:
    if not story.probes:
        return "<p>No probe was made. On a machine with a GPU, <code>budgetft plan --probe auto</code> makes them.</p>"
    outcomes = story.plan.evidence.outcomes
    rows = []
    for index, probe in enumerate(story.probes):
        outcome = probe.outcome
        changed = short(outcome.knobs) if index == 0 else _changed(outcome.knobs, outcomes[index - 1].knobs)
        state = f'<span class="tag {"ok" if outcome.fits else "failed"}">{escape(outcome.status)}</span>'
        rows.append(
            [str(index + 1), escape(changed), _pair(probe), _speeds(probe), state, escape(lesson(story, index))],
        )
    names = ["#", "knobs changed", "process peak, GiB", "examples/s", "ended", "taught"]
    earlier = [
        [escape(short(o.knobs)), f"{o.process_peak_bytes / GIB:.2f}" if o.process_peak_bytes else "-", escape(o.status)]
        for o in story.earlier
    ]
    more = _table(["earlier probes of this job", "process peak, GiB", "ended"], earlier, numbers=(1,)) if earlier else ""
    return _table(names, rows, blocks=True) + _note(story.ledger_note) + more


def _changed(knobs: Knobs, before: Knobs) -> str:
    changes = {name: value for name, value in differences(knobs, before).items() if name != "grad_accum"}
    return (
        ", ".join(f"{name} {shown(value)}" for name, value in changes.items()) or "nothing: the same again, in a fresh process"
    )


def _pair(probe: Probe) -> str:
    said, found = probe.prediction, probe.outcome.process_peak_bytes
    return _both(said and said.process_peak_bytes / GIB, found and found / GIB, probe.source)


def _speeds(probe: Probe) -> str:
    said = probe.prediction
    return _both(said and said.samples_per_second, probe.outcome.samples_per_second, probe.source)


def _both(predicted: float | None, found: float | None, source: str) -> str:
    cells = [(predicted, "predicted"), (found, source)]
    lines = [f"no {word} figure" if value is None else f"{value:.2f} {word}" for value, word in cells]
    return f'<span class="pair">{escape(lines[0])}<br>{escape(lines[1])}</span>'


def lesson(story: Story, index: int) -> str:
    """What the probe ``index`` added to what was known before it."""
    probe, outcomes = story.probes[index], story.plan.evidence.outcomes
    outcome = probe.outcome
    if not outcome.fits:
        return _failure(probe, story.plan)
    parts = [] if probe.peak_residual is None else [f"peak {probe.peak_residual:+.1%} against the prediction"]
    if outcome.alloc_retries:
        parts.append(f"the allocator had to retry {outcome.alloc_retries} times: too tight to use")
    elif is_stock(outcome.knobs):
        parts.append("the stock recipe, as the baseline")
    elif outcome == story.plan.evidence.confirmed:
        parts.append("confirmed in a fresh process")
    else:
        before, speed = best_before(outcomes, index), outcome.samples_per_second or 0.0
        if before == 0:
            parts.append("the first setting to be compared with")
        else:
            parts.append(f"best so far, {speed / before:.2f}x" if speed > before else f"{speed / before:.2f}x the best so far")
    return "; ".join(parts)


def _failure(probe: Probe, plan: Plan) -> str:
    outcome: Outcome = probe.outcome
    where = f" in {outcome.phase}" if outcome.phase else ""
    said = probe.prediction
    if outcome.status not in ("oom", "over_budget"):
        return f"{outcome.status}{where}: {outcome.detail[:200]}"
    text = f"does not fit: out of memory{where}" if outcome.status == "oom" else "does not fit: over the budget"
    if said is None:
        return text
    side = "as predicted" if said.process_peak_bytes > plan.gpu.budget_bytes else "although it was predicted to"
    return f"{text}, {side} ({format_gib(said.process_peak_bytes)} predicted)"


def _frontier(story: Story) -> str:
    parts = [_figure(lambda width: charts.frontier_chart(story, width))]
    rows = sorted(story.plan.price_list, key=lambda row: row.axis)
    for axis, group in groupby(rows, key=lambda row: row.axis):
        cost_of = list(group)
        parts.append(f"<h3>{escape(axis)}</h3>")
        parts.append(_figure(lambda width, cost_of=cost_of: charts.cost_chart(cost_of, story.plan, width)))
    if not rows and story.plan.goal is None:
        parts.append(_note("No range was asked for (--rank LOW..HIGH, --max-pixels LOW..HIGH), so there is no price list."))
    elif story.probes:
        parts.append(_note("The plan's own bar is what was probed, the others are predicted: compare them with care."))
    return "".join(parts)


def _stock(story: Story) -> str:
    plan, baseline = story.plan, story.plan.baseline
    if baseline is None:
        return "<p>The stock recipe does not fit at any micro-batch.</p>"
    bars = [
        (name, e.samples_per_second or 0.0, f"{_rate(e)} ({e.evidence})", colour)
        for name, e, colour in (("stock recipe", baseline.estimate, "stock"), ("plan", plan.estimate, "plan"))
    ]
    knobs = [
        [escape(name), escape(shown(getattr(baseline.knobs, name))), escape(shown(value))]
        for name, value in differences(plan.knobs, baseline.knobs).items()
    ]
    return (
        _figure(lambda width: charts.bars_chart(bars, width, "Examples per second"))
        + _figure(lambda width: charts.stock_chart(story, width))
        + _table(["knob", "stock recipe", "plan"], knobs)
    )


def _rate(estimate: Estimate) -> str:
    return estimate.speed_text()


def _training(story: Story) -> str:
    if len(story.records) < 2:
        return _note(
            story.run_note or "This is the report of a plan; that of a run (budgetft report RUN) shows its curves here."
        )
    done = story.summary
    parts = [_figure(lambda width: charts.training_chart(story, width)), _note(story.run_note)]
    skipped = sum(not record.finite for record in story.records)
    early = ", ended early: the held-out loss did not fall any more" if done is not None and done.ended_early else ""
    facts = [("steps", f"{len(story.records)} of {story.records[-1].steps}, {skipped} skipped as not finite{early}")]
    if done is not None:
        over = "OVER the budget" if done.over_budget else "inside the budget"
        facts += [
            ("examples/s", f"{done.samples_per_second:.2f} (median step), {done.samples_per_second_overall:.2f} (whole run)"),
            ("process peak", f"{format_gib(done.process_peak_bytes)}, {over} of {format_gib(done.budget_bytes)}"),
            *(
                [("adapter", f"of step {done.best_step}, whose held-out loss of {done.best_heldout_loss:.4f} is the lowest")]
                if done.best_step is not None and done.best_heldout_loss is not None
                else []
            ),
            ("out of memory", f"{done.ooms} times; {done.alloc_retries} allocator retries"),
            ("evidence", f"{done.evidence}: {done.note}"),
        ]
    return "".join(parts) + _definitions(facts)


def _next(story: Story) -> str:
    """The command that goes on from here, with the paths as they were given."""
    if not story.records and story.summary is None:
        return f"budgetft train --plan {story.plan_path} --out runs/first"
    run = story.plan_path.parent
    if story.summary is None:
        return f"budgetft train --plan {story.plan_path} --out {run} --resume"
    return f"budgetft predict --run {run} --data DIR --out captions.jsonl; budgetft merge {run} --out merged"


def _setup(story: Story) -> str:
    plan = story.plan
    shape = plan.workload.worst[0]
    sizes = ", ".join(f"{width}x{height}" for width, height in shape.images[:4]) + (", ..." if len(shape.images) > 4 else "")
    images = f"{len(shape.images)} images ({sizes})"
    if shape.frames is not None:
        images = f"a video of {shape.frames} frames as {len(shape.images)} slices ({sizes})"
    contract = plan.contract
    unusual = "".join(f"; {name} {value}".removesuffix(" True") for name, value in contract.unusual.items())
    counted = "" if plan.workload.examples is None else f", {plan.workload.examples} examples"
    layers = "" if story.layers is None else f"; the model has {story.layers} layers"
    stages = "; ".join(each.describe(plan.gpu.budget_bytes) for each in plan.stages)
    facts = [
        ("plan", f"{short(plan.knobs)}, {plan.knobs.grad_accum} micro-batches per step{layers}"),
        ("contract", f"rank {contract.rank}, alpha {contract.alpha}, effective batch {contract.effective_batch},"
         f" at most {contract.max_pixels} pixels and {contract.max_length} tokens; {', '.join(contract.targets)}{unusual}"),
        ("stages", stages or "evaluation and merge were not planned"),
        *([("weights", plan.model.base.describe())] if plan.model.base is not None else []),
        *([("precision", plan.precision.describe())] if plan.precision is not None else []),
        ("worst example", f"{images}, {shape.text_tokens} text tokens,"
         f" {shape.supervised_tokens} supervised"),
        ("data", (Path(plan.data).name if plan.data else "a shape that was typed in") + counted),
        ("evidence", f"{plan.evidence.kind}: {plan.evidence.statement}"),
        ("made with", ", ".join(f"{name} {value}" for name, value in plan.environment.items())),
        ("next", _next(story)),
    ]  # fmt: skip
    return _definitions(facts)
