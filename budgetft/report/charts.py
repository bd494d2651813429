"""The charts of a report. Each is drawn for a width, so that a phone gets its own and not a shrunken one."""

from collections.abc import Callable, Sequence
from statistics import fmean

from budgetft.knobs import Knobs, is_stock
from budgetft.outcome import CONNECTION, Estimate, Outcome
from budgetft.plan import CostRow, Plan
from budgetft.report.axes import Axes, legend, padded
from budgetft.report.drawing import Drawing
from budgetft.report.gather import Probe, Story
from budgetft.train.record import Record
from budgetft.units import GIB, format_gib

GROUPS = {
    "context": ("context and kernels", ("context and kernels", CONNECTION)),
    "weights": ("weights", ("weights",)),
    "adapter": ("adapter, gradients, optimizer", ("adapter", "gradients", "optimizer")),
    "inputs": ("inputs, workspace", ("inputs", "workspace")),
    "kept": ("kept for backward", ()),
    "temporary": ("temporaries", ()),
    "allocator": ("allocator", ("allocator (blocks larger than their tensor)", "allocator (fragmentation)")),
}
"""Colour: name in the legend, and the terms of an estimate that it sums."""
BUCKETS = 400
"""A curve has about so many points, however long the run."""


def grouped(estimate: Estimate) -> dict[str, int]:
    """The bytes of an estimate's terms by colour; activations and temporaries, which a term does not part, are ``kept``."""
    colour_of = {term: colour for colour, (_, terms) in GROUPS.items() for term in terms}
    sums: dict[str, int] = {}
    for term in estimate.terms:
        colour = colour_of.get(term.name, "kept")
        sums[colour] = sums.get(colour, 0) + term.memory_bytes
    return sums


def bytes_chart(story: Story, width: float) -> Drawing | None:
    """One micro-batch from left to right, what it holds stacked, against the budget. None without a trace."""
    if not story.moments or story.predicted is None:
        return None
    plan, peak = story.plan, story.plan.estimate.process_peak_bytes
    sizes, moments = grouped(story.predicted), story.moments
    drawing = Drawing(width, 380 if width > 500 else 330, "Memory through one micro-batch, by category, against the budget")
    static = [name for name in ("context", "weights", "adapter", "inputs") if sizes.get(name)]
    names = [(name, GROUPS[name][0]) for name in (*static, "kept", "temporary")]
    top = legend(drawing, names, 14) + 26
    budget, highest = plan.gpu.budget_bytes, max(peak, story.predicted.process_peak_bytes)
    near = budget < 4 * highest
    axes = Axes(
        drawing=drawing, left=38, top=top, right=width - 8, bottom=drawing.height - 38,
        x_range=(0, len(moments)), y_range=(0, (max(budget, highest) if near else highest * 1.15) / GIB * 1.04),
    )  # fmt: skip
    axes.grid_y("GiB")
    floor = 0.0
    for name in static:
        size, title = sizes[name] / GIB, GROUPS[name][0]
        drawing.rect(axes.left, axes.y(floor + size), axes.right - axes.left, axes.y(floor) - axes.y(floor + size), name,
                     note=f"{title}: {format_gib(sizes[name])}")  # fmt: skip
        floor += size
    _draw_moments(axes, story, floor, sizes.get("context", 0))
    if near:
        axes.level(budget / GIB, "bad")
    above = axes.y(budget / GIB) - 5 if near else axes.top + 4
    said = f"budget {format_gib(budget)}{'' if near else ': far above'}"
    drawing.text(axes.right, above, said, anchor="end", colour="bad", bold=True)
    axes.level(peak / GIB, "ink")
    said = f"{'process ' if width > 500 else ''}peak {format_gib(peak)} ({plan.estimate.evidence})"
    drawing.text(axes.left + 6, axes.y(peak / GIB) + 14, said, size=11)
    return drawing


def _draw_moments(axes: Axes, story: Story, floor: float, context_bytes: int) -> None:
    """What moves: temporaries behind, what is kept before them, phases named below."""
    drawing = axes.drawing
    outline, starts = [(axes.x(0), axes.y(floor))], {}
    for index, moment in enumerate(story.moments):
        before, most, after = ((size + context_bytes) / GIB for size in moment[2:])
        left, right = axes.x(index), axes.x(index + 1)
        note = f"{moment.phase}: up to {most:.2f} GiB, {after:.2f} GiB after it"
        drawing.rect(left, axes.y(most), right - left, max(0.0, axes.y(floor) - axes.y(most)), "temporary", note=note)
        outline += [(left, axes.y(before)), (right, axes.y(after))]
        first, _ = starts.get(moment.phase, (index, index))
        starts[moment.phase] = first, index + 1
    outline.append((axes.right, axes.y(floor)))
    drawing.area([(x, min(y, axes.y(floor))) for x, y in outline], "kept", note="kept for backward")
    for phase, (first, last) in starts.items():
        left, right = axes.x(first), axes.x(last)
        below = 17 if right - left > 7 * len(phase) else 31
        drawing.text((left + right) / 2, axes.bottom + below, phase, anchor="middle", colour="soft", size=11)
        drawing.line([(left, axes.bottom), (left, axes.bottom + 5)], "soft")


def probes_chart(story: Story, width: float) -> Drawing | None:
    """Each probe's process peak beside its prediction, in the order of probing. None when nothing was probed."""
    if not story.probes:
        return None
    budget = story.plan.gpu.budget_bytes / GIB
    drawing = Drawing(width, 92 + 22 * len(story.probes), "Predicted and probed process peak of every probe")
    known = [size / GIB for probe in story.probes for size in _peaks(probe) if size]
    left = 34.0
    axes = Axes(
        drawing=drawing, left=left, top=38, right=width - (64 if width > 500 else 54), bottom=drawing.height - 40,
        x_range=padded(min([*known, budget]), max([*known, budget])), y_range=(0, 1),
    )  # fmt: skip
    drawing.dot(10, 12, "soft", hollow=True)
    drawing.text(20, 16, "predicted")
    drawing.dot(94, 12, "probe")
    drawing.text(104, 16, "probed")
    drawing.cross(164, 12, "bad")
    drawing.text(176, 16, "failed")
    axes.grid_x("GiB of the process", count=6 if width > 500 else 4)
    axes.upright(budget, "bad")
    drawing.text(axes.x(budget), 33, "budget", anchor="middle", colour="bad", size=11, bold=True)
    for number, probe in enumerate(story.probes, start=1):
        y = axes.top + 22 * number - 8
        drawing.text(left - 12, y + 4, str(number), anchor="end", colour="soft", size=11)
        _draw_probe(axes, probe, y)
    return drawing


def _peaks(probe: Probe) -> tuple[int | None, int | None]:
    return (probe.prediction.process_peak_bytes if probe.prediction else None), probe.outcome.process_peak_bytes


def _draw_probe(axes: Axes, probe: Probe, y: float) -> None:
    said, found = _peaks(probe)
    drawing, outcome = axes.drawing, probe.outcome
    note = f"{short(outcome.knobs)}: predicted {format_gib(said)}, {probe.source} {format_gib(found)}"
    if said and found:
        drawing.line([(axes.x(said / GIB), y), (axes.x(found / GIB), y)], "soft", width=1.5)
    if said:
        drawing.dot(axes.x(said / GIB), y, "soft", hollow=True, note=note)
    if not outcome.fits:
        drawing.cross(axes.x(found / GIB) if found else axes.right, y, "bad", note=f"{note}: {outcome.status}")
    elif found:
        drawing.dot(axes.x(found / GIB), y, "probe", note=note)
    text = outcome.status if probe.peak_residual is None else f"{probe.peak_residual:+.1%}"
    drawing.text(drawing.width - 4, y + 4, text, anchor="end", size=11, colour="ink" if outcome.fits else "bad")


def frontier_chart(story: Story, width: float) -> Drawing | None:
    """Speed against process peak of everything known of this job; a line joins what nothing else beats on both."""
    points = _points(story)
    if len(points) < 2:
        return None
    budget = story.plan.gpu.budget_bytes / GIB
    drawing = Drawing(width, 330, "Samples per second against process peak")
    entries = [("plan", "plan"), ("stock", "stock recipe"), ("probe", "other settings")]
    axes = Axes(
        drawing=drawing, left=44, top=legend(drawing, entries, 14) + 22, right=width - 12, bottom=288,
        x_range=padded(min(p[0] for p in points), max(budget, *(p[0] for p in points))),
        y_range=(0, max(p[1] for p in points) * 1.12),
    )  # fmt: skip
    axes.grid_y("examples/s")
    axes.grid_x("GiB of the process", count=6 if width > 500 else 4)
    axes.upright(budget, "bad")
    drawing.text(axes.x(budget) - 5, axes.top + 8, "budget", anchor="end", colour="bad", size=11, bold=True)
    best: list[tuple[float, float]] = []
    for x, y, _ in sorted(points, key=lambda p: p[:2]):
        if not best or y > best[-1][1]:
            best += [(x, best[-1][1]), (x, y)] if best else [(x, y)]
    drawing.line([(axes.x(x), axes.y(y)) for x, y in best], "soft", width=1.5)
    for x, y, knobs in sorted(points, key=lambda p: p[2] == story.plan.knobs):
        role = "plan" if knobs == story.plan.knobs else "stock" if is_stock(knobs) else "probe"
        note = f"{short(knobs)}: {y:.2f} examples/s, {x:.2f} GiB"
        drawing.dot(axes.x(x), axes.y(y), role, radius=7 if role == "plan" else 5, note=note)
    return drawing


def _points(story: Story) -> list[tuple[float, float, Knobs]]:
    """(GiB, examples/s, knobs), one point for each setting; the plan's own estimate counts for its knobs."""
    plan, found = story.plan, {}
    for outcome in (*story.earlier, *plan.evidence.outcomes):
        if outcome.fits and outcome.process_peak_bytes and outcome.samples_per_second:
            found[outcome.knobs] = outcome.process_peak_bytes / GIB, outcome.samples_per_second
    candidates = [(c.knobs, c.estimate) for c in (*plan.runners_up, *([plan.baseline] if plan.baseline else []))]
    for knobs, estimate in (*candidates, (plan.knobs, plan.estimate)):
        if estimate.samples_per_second:
            found[knobs] = estimate.process_peak_bytes / GIB, estimate.samples_per_second
    return [(x, y, knobs) for knobs, (x, y) in found.items()]


def cost_chart(rows: Sequence[CostRow], plan: Plan, width: float) -> Drawing:
    """Samples per second of every step along one axis of the contract; the plan's own in its colour."""
    bars = [
        (
            row.value,
            row.samples_per_second or 0.0,
            "does not fit"
            if row.samples_per_second is None
            else f"{row.samples_per_second:.2f}/s, {format_gib(row.process_peak_bytes)} ({row.evidence})",
            "plan" if plan.is_own(row) else "probe",
        )
        for row in rows
    ]
    return bars_chart(bars, width, f"Samples per second by {rows[0].axis}")


def bars_chart(bars: Sequence[tuple[str, float, str, str]], width: float, title: str) -> Drawing:
    """Horizontal bars: (label, value, what stands under it, colour)."""
    drawing = Drawing(width, 8 + 40 * len(bars), title)
    most = max((value for _, value, _, _ in bars), default=0.0) or 1.0
    for number, (label, value, text, colour) in enumerate(bars):
        y = 8 + 40 * number
        drawing.text(4, y + 12, label, bold=True)
        drawing.text(width - 4, y + 12, text, anchor="end", colour="soft")
        drawing.rect(4, y + 18, max(1.0, (width - 8) * value / most), 12, colour, note=f"{label}: {text}")
    return drawing


def stock_chart(story: Story, width: float) -> Drawing | None:
    """Where the bytes of the stock recipe and of the plan are at their peaks, one bar each. None when stock does not fit."""
    plan = story.plan
    if plan.baseline is None:
        return None
    sides = [("stock recipe", plan.baseline.estimate), ("plan", plan.estimate)]
    parts = [(name, grouped(estimate)) for name, estimate in sides]
    shown = [colour for colour in GROUPS if any(sizes.get(colour) for _, sizes in parts)]
    titles = {colour: GROUPS[colour][0] for colour in shown} | {"kept": "activations, temporaries"}
    drawing = Drawing(width, 0, "Process peak by category, stock recipe and plan")
    y = legend(drawing, [(colour, titles[colour]) for colour in shown], 14) + 10
    most = max(plan.gpu.budget_bytes, *(sum(max(0, s) for s in sizes.values()) for _, sizes in parts))
    first = y
    for (name, estimate), (_, sizes) in zip(sides, parts, strict=True):
        drawing.text(4, y + 12, name, bold=True)
        said = f"{format_gib(estimate.process_peak_bytes)} ({estimate.evidence})"
        drawing.text(width - 4, y + 12, said, anchor="end", colour="soft")
        x = 4.0
        for colour in shown:
            wide = (width - 8) * max(0, sizes.get(colour, 0)) / most
            drawing.rect(x, y + 18, wide, 18, colour, note=f"{titles[colour]}: {format_gib(sizes.get(colour, 0))}")
            x += wide
        y += 48
    edge = 4 + (width - 8) * plan.gpu.budget_bytes / most
    drawing.line([(edge, first + 16), (edge, y - 8)], "bad", width=2, dashed=True)
    drawing.text(edge, y + 8, f"budget {format_gib(plan.gpu.budget_bytes)}", anchor="end", colour="bad", bold=True)
    drawing.height = y + 16
    return drawing


def training_chart(story: Story, width: float) -> Drawing | None:
    """Loss, samples per second and process memory over the steps of the run, one below the other. None without a log."""
    if len(story.records) < 2:
        return None
    drawing = Drawing(width, 3 * 190 + 20, "Loss, speed and memory over the steps of the run")
    first = story.records[0].step
    steps = (first, max(first + 1, story.records[-1].step))
    budget = story.plan.gpu.budget_bytes / GIB
    curves: list[tuple[str, Callable[[Record], float | None], str, float | None]] = [
        ("loss", lambda record: record.loss, "probe", None),
        ("examples/s", lambda record: record.samples_per_second, "plan", None),
        ("process memory, GiB", lambda record: record.process_bytes / GIB, "weights", budget),
    ]
    for number, (name, value, colour, limit) in enumerate(curves):
        points = thinned(story.records, value)
        if not points:
            continue
        values = [v for _, low, _, high in points for v in (low, high)]
        low, high = min(values), max(*values, limit or 0.0)
        axes = Axes(
            drawing=drawing, left=44, top=190 * number + 26, right=width - 12, bottom=190 * number + 166,
            x_range=steps, y_range=padded(0 if limit else min(0, low), high),
        )  # fmt: skip
        axes.grid_y(name, count=4)
        band = [(axes.x(s), axes.y(v)) for s, _, _, v in points] + [(axes.x(s), axes.y(v)) for s, v, _, _ in points[::-1]]
        drawing.area(band, colour, opacity=0.25)
        drawing.line([(axes.x(s), axes.y(mean)) for s, _, mean, _ in points], colour, width=1.8)
        if limit:
            axes.level(limit, "bad")
            drawing.text(axes.right, axes.y(limit) - 4, "budget", anchor="end", colour="bad", size=11, bold=True)
        if number == len(curves) - 1:
            axes.grid_x("step")
    return drawing


def thinned(records: Sequence[Record], value: Callable[[Record], float | None]) -> list[tuple[float, float, float, float]]:
    """(middle step, least, mean, most) of about ``BUCKETS`` runs of records; what is not known is left out."""
    size = max(1, len(records) // BUCKETS)
    found = []
    for start in range(0, len(records), size):
        known = [(r.step, v) for r in records[start : start + size] if (v := value(r)) is not None]
        if known:
            values = [v for _, v in known]
            found.append((fmean(s for s, _ in known), min(values), fmean(values), max(values)))
    return found


def short(knobs: Knobs) -> str:
    """A setting in a few words."""
    kind = "stock" if is_stock(knobs) else f"{knobs.loss}, {knobs.attention}, {knobs.allocator}"
    return f"micro-batch {knobs.micro_batch}, {knobs.checkpointed_layers} layers checkpointed, {kind}"


def best_before(outcomes: Sequence[Outcome], index: int) -> float:
    """The highest samples per second of what held before the probe ``index``; 0 when nothing did."""
    return max((o.samples_per_second or 0.0 for o in outcomes[:index] if o.fits and not is_stock(o.knobs)), default=0.0)
