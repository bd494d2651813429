"""How long the examples of a dataset are."""

from budgetft.data.stats import histogram
from budgetft.report.axes import Axes
from budgetft.report.drawing import Drawing
from budgetft.report.story import Story

BINS = 16


def lengths_of(story: Story) -> list[int]:
    """Tokens of the examples that the plan keeps as ordinary ones; empty for a typed shape, or without the model."""
    workload = story.plan.workload
    if story.pixel_step is None or workload.examples is None:
        return []
    return [shape.total_tokens(story.pixel_step) for shape in workload.typical]


def lengths_chart(story: Story, width: float) -> Drawing | None:
    """How many of them have how many tokens. None where all have as many, or that is not known."""
    lengths = lengths_of(story)
    if len(set(lengths)) < 3:
        return None
    bins = histogram(lengths, BINS if width > 500 else BINS // 2)
    drawing = Drawing(width, 190, "Tokens of an example")
    most = max(count for _, _, count in bins)
    first, last = bins[0][0], bins[-1][1] + 1
    axes = Axes(drawing=drawing, left=38, top=24, right=width - 12, bottom=150, x_range=(first, last), y_range=(0, most * 1.05))
    axes.grid_y("examples", count=min(3, most))
    axes.grid_x("tokens of an example, images included", count=6 if width > 500 else 4)
    for low, high, count in bins:
        left, right = axes.x(low), axes.x(high + 1)
        top = axes.y(count)
        drawing.rect(left + 1, top, max(1.0, right - left - 2), axes.bottom - top, "probe", note=f"{low} to {high}: {count}")
    return drawing
