"""Curves of runs over their steps, each autoscaled, one below the other; several runs share them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

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


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One quantity over the steps. ``rare`` is known after few of them: dots, joined. ``steps``: stays between its changes."""

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


def curves_chart(runs: Sequence[tuple[str, Story]], width: float) -> Drawing | None:
    """The same of several named runs in one set of plots. None where none has a log of two steps."""
    drawn = [(name, story.records, SERIES[place]) for place, (name, story) in enumerate(runs) if len(story.records) > 1]
    if not drawn:
        return None
    panels = [panel for panel in PANELS if _points(drawn, panel[1])]
    drawing = Drawing(width, TALL * len(panels) + 46, "Loss, learning rate, speed and peak memory over the steps of the run")
    several = len(runs) > 1
    held_out = any(record.heldout_loss is not None for _, records, _ in drawn for record in records)
    entries = [(colour, name, "line") for name, _, colour in drawn] if several else [("plan", LOSS, "line")]
    if held_out:
        entries.append(("soft" if several else "plan", EVAL_LOSS, "hollow"))
    top = legend(drawing, entries, 14) if several or held_out else 0.0
    steps = min(records[0].step for _, records, _ in drawn), max(records[-1].step for _, records, _ in drawn)
    budgets = {story.plan.gpu.budget_bytes / GIB for _, story in runs}
    for number, (name, curves) in enumerate(panels):
        limit = budgets.pop() if name == MEMORY and len(budgets) == 1 else None
        y = top + TALL * number
        axes = _axes(drawing, drawn, curves, (y + 26, y + TALL - 24), (steps[0], max(steps[0] + 1, steps[1])), limit)
        axes.grid_y(name, count=4)
        for curve in curves:
            for _, records, colour in drawn:
                _draw(axes, curve, records, colour)
        if limit is not None:
            axes.level(limit, "bad")
            drawing.text(axes.right, axes.y(limit) - 4, "budget", anchor="end", colour="bad", size=11, bold=True, halo=True)
        if number == len(panels) - 1:
            axes.grid_x("step")
    drawing.height = top + TALL * len(panels) + 12
    return drawing


def _points(
    drawn: Sequence[tuple[str, Sequence[Record], str]], curves: Sequence[Curve]
) -> list[tuple[float, float, float, float]]:
    return [point for _, records, _ in drawn for curve in curves for point in thinned(records, curve.value, rare=curve.rare)]


def _axes(
    drawing: Drawing,
    drawn: Sequence[tuple[str, Sequence[Record], str]],
    curves: Sequence[Curve],
    between: tuple[float, float],
    steps: tuple[float, float],
    limit: float | None,
) -> Axes:
    """Scaled to what is drawn; to the budget too, unless that would flatten the curve."""
    values = [value for _, low, _, high in _points(drawn, curves) for value in (low, high)]
    low, high = min(values), max(values)
    if limit is not None:
        high, low = max(high, limit), min(low, 0.9 * limit)
    return Axes(
        drawing=drawing, left=52, top=between[0], right=drawing.width - 12, bottom=between[1],
        x_range=steps, y_range=padded(low, high),
    )  # fmt: skip


def _draw(axes: Axes, curve: Curve, records: Sequence[Record], colour: str) -> None:
    points = thinned(records, curve.value, rare=curve.rare)
    if not points:
        return
    places = [(axes.x(step), axes.y(mean)) for step, _, mean, _ in points]
    if curve.rare:
        axes.drawing.line(places, colour, width=1.5, dashed=True)
        for (step, _, mean, _), (x, y) in zip(points, places, strict=True):
            axes.drawing.dot(x, y, colour, radius=3.5, hollow=True, note=f"{curve.name} after step {step:.0f}: {mean:.4f}")
        return
    if len(points) < len(records):
        band = [(axes.x(s), axes.y(v)) for s, _, _, v in points] + [(axes.x(s), axes.y(v)) for s, v, _, _ in points[::-1]]
        axes.drawing.area(band, colour, opacity=0.25)
    axes.drawing.line(places, colour, width=1.8)


def thinned(records: Sequence[Record], value: Known, *, rare: bool = False) -> list[tuple[float, float, float, float]]:
    """(middle step, least, mean, most) of about ``BUCKETS`` runs of records; what is not known is left out.

    ``rare``: first leave out what is not known, so that few values stay apart.
    """
    known = [record for record in records if value(record) is not None] if rare else records
    size = max(1, len(known) // BUCKETS)
    found = []
    for start in range(0, len(known), size):
        here = [(r.step, v) for r in known[start : start + size] if (v := value(r)) is not None]
        if here:
            values = [v for _, v in here]
            found.append((fmean(s for s, _ in here), min(values), fmean(values), max(values)))
    return found
