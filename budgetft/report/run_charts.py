"""Curves of runs over their steps, each autoscaled, one below the other; several runs share them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from budgetft.report.axes import Axes, legend, padded
from budgetft.report.drawing import Drawing
from budgetft.report.story import Story
from budgetft.train.record import Record
from budgetft.units import GIB

BUCKETS = 400
"""A curve has about so many points, however long the run."""
TALL = 180
SERIES = ("plan", "stock", "kept", "adapter")
"""Colours of runs that are compared; a page that compares has no chart of memory by category."""
Known = Callable[[Record], float | None]
Point = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One quantity over the steps. ``rare`` is known after few of them: dots, joined."""

    name: str
    value: Known
    rare: bool = False


LOSS, EVAL_LOSS = "loss", "eval loss"
PANELS: tuple[tuple[str, tuple[Curve, ...]], ...] = (
    (
        LOSS,
        (
            Curve(name=LOSS, value=lambda record: record.loss),
            Curve(name=EVAL_LOSS, value=lambda record: record.heldout_loss, rare=True),
        ),
    ),
    ("learning rate", (Curve(name="learning rate", value=lambda record: record.learning_rate),)),
    ("examples/s", (Curve(name="examples/s", value=lambda record: record.samples_per_second),)),
    ("peak so far, GiB", (Curve(name="peak", value=lambda record: record.process_peak_bytes / GIB),)),
)
"""Title of each plot, and what it draws."""
MEMORY = PANELS[-1][0]


def training_chart(story: Story, width: float) -> Drawing | None:
    """Loss, learning rate, speed and peak memory of a run. None without a log."""
    return curves_chart([("run", story)], width)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve of one run: (step, least, mean, most) of every part of it that is a point."""

    curve: Curve
    colour: str
    points: Sequence[Point]
    whole: bool
    """Every step is a point of its own."""


def curves_chart(runs: Sequence[tuple[str, Story]], width: float) -> Drawing | None:
    """The same of several named runs in one set of plots. None where none has a log of two steps."""
    logs = [(name, story.records, SERIES[place]) for place, (name, story) in enumerate(runs) if len(story.records) > 1]
    panels = [(name, found) for name, curves in PANELS if (found := _lines(curves, logs))]
    if not panels:
        return None
    drawing = Drawing(width, TALL * len(panels) + 46, "Loss, learning rate, speed and peak memory over the steps of the run")
    several = len(runs) > 1
    entries = [(colour, name, "line") for name, _, colour in logs] if several else [("plan", LOSS, "line")]
    if any(line.curve.rare for line in panels[0][1]):
        entries.append(("soft" if several else "plan", EVAL_LOSS, "hollow"))
    top = legend(drawing, entries, 14) if len(entries) > 1 else 0.0
    first, last = min(records[0].step for _, records, _ in logs), max(records[-1].step for _, records, _ in logs)
    budgets = {story.plan.gpu.budget_bytes / GIB for _, story in runs}
    for number, (name, lines) in enumerate(panels):
        limit = min(budgets) if name == MEMORY and len(budgets) == 1 else None
        y = top + TALL * number
        axes = Axes(
            drawing=drawing, left=52, top=y + 26, right=drawing.width - 12, bottom=y + TALL - 24,
            x_range=(first, max(first + 1, last)), y_range=_scale(lines, limit),
        )  # fmt: skip
        axes.grid_y(name, count=4)
        for line in lines:
            _draw(axes, line)
        if limit is not None:
            axes.level(limit, "bad")
            drawing.text(axes.right, axes.y(limit) - 4, "budget", anchor="end", colour="bad", size=11, bold=True, halo=True)
        if number == len(panels) - 1:
            axes.grid_x("step")
    drawing.height = top + TALL * len(panels) + 12
    return drawing


def _lines(curves: Sequence[Curve], logs: Sequence[tuple[str, Sequence[Record], str]]) -> list[Line]:
    """Those of which anything is known."""
    found = []
    for curve in curves:
        for _, records, colour in logs:
            points = thinned(records, curve.value, rare=curve.rare)
            if points:
                found.append(Line(curve=curve, colour=colour, points=points, whole=len(points) == len(records)))
    return found


def _scale(lines: Sequence[Line], limit: float | None) -> tuple[float, float]:
    """The range of what is drawn; to the ``limit`` too where there is one."""
    low = min(point[1] for line in lines for point in line.points)
    high = max(point[3] for line in lines for point in line.points)
    if limit is not None:
        high, low = max(high, limit), min(low, 0.9 * limit)
    return padded(low, high)


def _draw(axes: Axes, line: Line) -> None:
    points, colour = line.points, line.colour
    places = [(axes.x(step), axes.y(mean)) for step, _, mean, _ in points]
    if line.curve.rare:
        axes.drawing.line(places, colour, width=1.5, dashed=True)
        for (step, _, mean, _), (x, y) in zip(points, places, strict=True):
            axes.drawing.dot(x, y, colour, radius=3.5, hollow=True, note=f"{line.curve.name} after step {step:.0f}: {mean:.4f}")
        return
    if not line.whole:
        band = [(axes.x(s), axes.y(v)) for s, _, _, v in points] + [(axes.x(s), axes.y(v)) for s, v, _, _ in points[::-1]]
        axes.drawing.area(band, colour, opacity=0.25)
    axes.drawing.line(places, colour, width=1.8)


def thinned(records: Sequence[Record], value: Known, *, rare: bool = False) -> list[Point]:
    """(middle step, least, mean, most) of about ``BUCKETS`` runs of records; what is not known is left out.

    ``rare``: what is not known does not count as a record, so that few values stay apart.
    """
    known = [(record.step, value(record)) for record in records]
    if rare:
        known = [each for each in known if each[1] is not None]
    size = max(1, len(known) // BUCKETS)
    found = []
    for start in range(0, len(known), size):
        here = [(step, v) for step, v in known[start : start + size] if v is not None]
        if here:
            values = [v for _, v in here]
            found.append(((here[0][0] + here[-1][0]) / 2, min(values), sum(values) / len(values), max(values)))
    return found
