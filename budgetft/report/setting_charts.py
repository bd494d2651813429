"""Charts of settings: what trials found beside what was predicted, speed against memory, and what more would cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from budgetft.knobs import Knobs, is_stock
from budgetft.outcome import Evidence, Outcome, speed_text
from budgetft.plan import FRAMES, CostRow, Plan
from budgetft.report.axes import LETTER, Axes, legend, padded
from budgetft.report.drawing import Drawing
from budgetft.report.story import Probe, Story
from budgetft.units import GIB, format_gib
from budgetft.wording import pixels_words, short_words

NEAR = 13.0
"""Units between two points of a chart under which they share a label."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A setting in the plane of memory and speed."""

    gib: float
    speed: float
    speed_text: str
    knobs: Knobs
    evidence: Evidence
    label: str
    """On the chart: what it is, or its number in the table."""

    @property
    def colour(self) -> str:
        return {"plan": "plan", "baseline": "stock"}.get(self.label, "probe")


def probes_chart(story: Story, width: float) -> Drawing | None:
    """Each trial's peak beside its prediction, in the order in which they were run. None when nothing was tried."""
    if not story.probes:
        return None
    budget = story.plan.gpu.budget_bytes / GIB
    drawing = Drawing(width, 92 + 22 * len(story.probes), "Predicted and found peak of every trial")
    known = [size / GIB for probe in story.probes for size in _peaks(probe) if size]
    left = 34.0
    axes = Axes(
        drawing=drawing, left=left, top=38, right=width - (64 if width > 500 else 54), bottom=drawing.height - 40,
        x_range=padded(min([*known, budget]), max([*known, budget])), y_range=(0, 1),
    )  # fmt: skip
    found = story.probes[0].source
    legend(drawing, [("probe", "predicted", "hollow"), ("probe", found, "dot"), ("bad", "did not fit", "cross")], 14)
    axes.grid_x("peak, GiB", count=6 if width > 500 else 4)
    axes.upright(budget, "bad")
    drawing.text(axes.x(budget), 34, "budget", anchor="middle", colour="bad", size=11, bold=True)
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
    note = f"{short_words(outcome.knobs)}: predicted {format_gib(said)}, {probe.source} {format_gib(found)}"
    if said and found:
        drawing.line([(axes.x(said / GIB), y), (axes.x(found / GIB), y)], "soft", width=1.5)
    if said:
        drawing.dot(axes.x(said / GIB), y, "probe", hollow=True, note=note)
    if not outcome.fits:
        drawing.cross(axes.x(found / GIB) if found else axes.right, y, "bad", note=f"{note}: {outcome.status}")
    elif found:
        drawing.dot(axes.x(found / GIB), y, "probe", note=note)
    text = outcome.status if probe.peak_residual is None else f"{probe.peak_residual:+.1%}"
    drawing.text(drawing.width - 4, y + 4, text, anchor="end", size=11, colour="ink" if outcome.fits else "bad")


def points_of(story: Story) -> list[Point]:
    """What is known of this job, one point for each setting: the plan, the baseline, then others by memory."""
    plan, found = story.plan, dict[Any, tuple[float, float, str, Evidence]]()
    for outcome in (*story.earlier, *plan.evidence.outcomes):
        if outcome.fits and outcome.process_peak_bytes and (speed := outcome.samples_per_second):
            found[outcome.knobs] = outcome.process_peak_bytes / GIB, speed, f"{speed:.2f}", outcome.evidence
    candidates = [(c.knobs, c.estimate) for c in (*plan.runners_up, *([plan.baseline] if plan.baseline else []))]
    for knobs, estimate in (*candidates, (plan.knobs, plan.estimate)):
        if speed := estimate.samples_per_second:
            found[knobs] = estimate.process_peak_bytes / GIB, speed, estimate.speed_text(""), estimate.evidence
    known = dict[Any, str]([(plan.knobs, "plan")])
    if plan.baseline is not None and plan.baseline.knobs != plan.knobs:
        known[plan.baseline.knobs] = "baseline"
    ordered = sorted(found, key=lambda knobs: (list(known).index(knobs) if knobs in known else len(known), found[knobs][0]))
    points = []
    for number, knobs in enumerate(ordered, start=1 - sum(knobs in found for knobs in known)):
        gib, speed, text, evidence = found[knobs]
        points.append(
            Point(gib=gib, speed=speed, speed_text=text, knobs=knobs, evidence=evidence, label=known.get(knobs, str(number)))
        )
    return points


def frontier_chart(story: Story, width: float) -> Drawing | None:
    """Speed against peak of everything known of this job; a line joins what nothing else beats on both."""
    points = points_of(story)
    if len(points) < 2:
        return None
    budget = story.plan.gpu.budget_bytes / GIB
    drawing = Drawing(width, 330, "Examples per second against peak GPU memory")
    labels = {point.label for point in points}
    entries = [("plan", "plan", "dot"), ("stock", "Hugging Face Trainer defaults", "dot"), ("probe", "other settings", "dot")]
    held = [entry for entry, name in zip(entries, ("plan", "baseline", ""), strict=True) if name in labels or not name]
    axes = Axes(
        drawing=drawing, left=44, top=legend(drawing, held, 14) + 22, right=width - 16, bottom=288,
        x_range=padded(min(p.gib for p in points), max(budget, *(p.gib for p in points))),
        y_range=(0, max(p.speed for p in points) * 1.18),
    )  # fmt: skip
    axes.grid_y("examples/s")
    axes.grid_x("peak, GiB", count=6 if width > 500 else 4)
    axes.upright(budget, "bad")
    drawing.text(axes.x(budget) - 5, axes.top + 8, "budget", anchor="end", colour="bad", size=11, bold=True, halo=True)
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p.gib, p.speed)):
        if not best or point.speed > best[-1][1]:
            best += [(point.gib, best[-1][1]), (point.gib, point.speed)] if best else [(point.gib, point.speed)]
    drawing.line([(axes.x(x), axes.y(y)) for x, y in best], "soft", width=1.5)
    for point in reversed(points):
        note = f"{short_words(point.knobs, story.plan.knobs)}: {point.speed_text} examples/s, {point.gib:.2f} GiB"
        drawing.dot(axes.x(point.gib), axes.y(point.speed), point.colour, radius=7 if point.label == "plan" else 5, note=note)
    _label(axes, points)
    return drawing


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Each point by its name or number, those that are next to each other together."""
    clusters: list[list[Point]] = []
    for point in points:
        near = (c for c in clusters if all(_apart(axes, point, other) < NEAR for other in c[:1]))
        if (cluster := next(near, None)) is None:
            clusters.append([point])
        else:
            cluster.append(point)
    for cluster in clusters:
        text = _listed([point.label for point in cluster])
        x, y = axes.x(cluster[0].gib), axes.y(cluster[0].speed)
        right = x + 12 + LETTER * len(text) < axes.drawing.width
        axes.drawing.text(
            x + 10 if right else x - 10, y - 6, text, anchor="start" if right else "end", size=12,
            colour=cluster[0].colour if cluster[0].label == "baseline" else "ink", bold=cluster[0].label == "plan", halo=True,
        )  # fmt: skip


def _apart(axes: Axes, one: Point, other: Point) -> float:
    return max(abs(axes.x(one.gib) - axes.x(other.gib)), abs(axes.y(one.speed) - axes.y(other.speed)))


def _listed(labels: Sequence[str]) -> str:
    """``plan, 3``; of many, the first and how many more."""
    return ", ".join(labels) if len(labels) < 4 else f"{', '.join(labels[:2])} and {len(labels) - 2} more"


def cost_chart(rows: Sequence[CostRow], plan: Plan, width: float) -> Drawing:
    """Examples per second of every step up of one training setting; the plan's own in its colour."""
    bars = [
        (
            (pixels_words(int(row.value)) if row.axis == "max_pixels" else row.value)
            + (", the plan" if plan.is_own(row) else ""),
            row.samples_per_second or 0.0,
            _price_text(row, plan),
            "plan" if plan.is_own(row) else "probe",
        )
        for row in rows
    ]
    return bars_chart(bars, width, f"Examples per second by {AXES.get(rows[0].axis, rows[0].axis)}")


AXES = {"max_pixels": "image size", "rank": "LoRA rank", "max_length": "longest example, tokens", FRAMES: "frames per example"}
"""What a step up is one of, for people."""


def _price_text(row: CostRow, plan: Plan) -> str:
    mixed = f" ({row.evidence})" if row.evidence != plan.estimate.evidence else ""
    if row.samples_per_second is None:
        return f"does not fit{mixed}"
    speed = speed_text(row.samples_per_second, row.speed_low, row.speed_high, "/s")
    return f"{speed}, {format_gib(row.process_peak_bytes)}{mixed}"


def bars_chart(bars: Sequence[tuple[str, float, str, str]], width: float, title: str) -> Drawing:
    """Horizontal bars: (label, value, what stands beside it, colour); on a phone what has no room stands below the label."""
    tight = any(LETTER * 1.1 * (len(label) + len(text) + 2) > width for label, _, text, _ in bars)
    tall = 56 if tight else 40
    drawing = Drawing(width, 8 + tall * len(bars), title)
    most = max((value for _, value, _, _ in bars), default=0.0) or 1.0
    for number, (label, value, text, colour) in enumerate(bars):
        y = 8 + tall * number
        drawing.text(4, y + 12, label, bold=True)
        if tight:
            drawing.text(4, y + 28, text, colour="soft")
        else:
            drawing.text(width - 4, y + 12, text, anchor="end", colour="soft")
        drawing.rect(4, y + tall - 22, max(1.0, (width - 8) * value / most), 12, colour, note=f"{label}: {text}")
    return drawing


def best_before(outcomes: Sequence[Outcome], index: int) -> float:
    """The highest examples per second of what held before the trial ``index``; 0 when nothing did."""
    return max((o.samples_per_second or 0.0 for o in outcomes[:index] if o.fits and not is_stock(o.knobs)), default=0.0)
