"""The contracts of a goal against its time: hours over the first axis, each point in time, too long, or too much memory."""

from collections import Counter
from collections.abc import Sequence

from budgetft.duration import HOUR, duration_text
from budgetft.goal import TITLES, Goal, GoalRow
from budgetft.report.axes import Axes, legend, padded
from budgetft.report.drawing import Drawing
from budgetft.report.story import Story
from budgetft.units import format_gib
from budgetft.wording import pixels_words

MOST_OF_LIMIT = 2.5
"""Times the hours asked for: what takes longer is drawn at the upper edge, with its time beside it."""
APART = 13.0
"""Between two points of the same value."""
IN_MINUTES = 2.0
"""Hours under which the chart counts minutes."""


def goal_chart(story: Story, width: float) -> Drawing | None:
    """None for a plan without a goal, or of one without ranges."""
    goal = story.plan.goal
    if goal is None or not _drawn(goal):
        return None
    rows, axis = _drawn(goal), goal.prefer[0]
    unit, name = (60.0, "minutes") if goal.hours < IN_MINUTES else (HOUR, "hours")
    limit = goal.hours * HOUR / unit
    title = f"Time of a run against {TITLES[axis]}, and the {duration_text(goal.hours * HOUR)} asked for"
    drawing = Drawing(width, 340, title)
    entries = [
        ("plan", "chosen", "dot"),
        ("probe", "in time", "dot"),
        ("soft", "too long", "hollow"),
        ("bad", "too much memory", "cross"),
    ]
    places = [_place(axis, row) for row in rows]
    ends = [(row.high_seconds or row.seconds or 0.0) / unit for row in rows]
    axes = Axes(
        drawing=drawing, left=44, top=legend(drawing, entries, 14) + 22, right=width - 14, bottom=296,
        x_range=padded(min(places), max(places)), y_range=(0, max(1.15 * limit, min(MOST_OF_LIMIT * limit, 1.1 * max(ends)))),
    )  # fmt: skip
    axes.grid_y(name)
    axes.grid_x("side of the largest image, pixels" if axis == "max_pixels" else TITLES[axis], count=6 if width > 500 else 4)
    axes.level(limit, "bad")
    _name_limit(axes, limit, duration_text(goal.hours * HOUR), chosen=axes.x(places[0]))
    spots = spread([axes.x(place) for place in places])
    for row, x in sorted(zip(rows, spots, strict=True), key=lambda each: goal.is_chosen(each[0])):
        _draw(axes, goal, row, x, unit)
    return drawing


def _name_limit(axes: Axes, limit: float, text: str, *, chosen: float) -> None:
    """On the side where the chosen point is not."""
    right = chosen < (axes.left + axes.right) / 2
    x = axes.right if right else axes.left + 4
    axes.drawing.text(x, axes.y(limit) - 5, f"{text} asked for", anchor="end" if right else "start", colour="bad", size=11,
                      bold=True)  # fmt: skip


def values_words(values: dict[str, int]) -> str:
    """``images up to 1064x1064, rank 32``."""
    told = (
        f"images up to {pixels_words(value)}" if name == "max_pixels" else f"{TITLES[name]} {value}"
        for name, value in values.items()
    )
    return ", ".join(told)


def spread(places: Sequence[float]) -> list[float]:
    """``places`` with those that are equal moved apart, around where they were."""
    found, times = [], Counter(places)
    met: Counter[float] = Counter()
    for place in places:
        found.append(place + APART * (met[place] - (times[place] - 1) / 2))
        met[place] += 1
    return found


def _drawn(goal: Goal) -> Sequence[GoalRow]:
    return [row for row in goal.rows if row.seconds is not None]


def _place(axis: str, row: GoalRow) -> float:
    return row.values[axis] ** (0.5 if axis == "max_pixels" else 1)


def _draw(axes: Axes, goal: Goal, row: GoalRow, x: float, unit: float) -> None:
    assert row.seconds is not None
    drawing, most, chosen = axes.drawing, axes.y_range[1], goal.is_chosen(row)
    colour = "plan" if chosen else "probe" if row.possible else "soft"
    verdict = "chosen" if chosen else row.verdict
    note = f"{values_words(row.values)}: {row.time_text()}, {format_gib(row.process_peak_bytes)} ({row.evidence}): {verdict}"
    y = axes.y(min(row.seconds / unit, most))
    if not row.fits:
        drawing.cross(x, y, "bad", note=note)
        return
    if row.low_seconds is not None and row.high_seconds is not None:
        low, high = (axes.y(min(end / unit, most)) for end in (row.low_seconds, row.high_seconds))
        drawing.line([(x, low), (x, high)], colour, width=1.5)
    drawing.dot(x, y, colour, radius=7 if chosen else 5, hollow=not row.possible, note=note)
    if row.seconds / unit > most:
        drawing.text(x - 9, y + 12, duration_text(row.seconds), anchor="end", colour="soft", size=11)
