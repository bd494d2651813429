"""Where the bytes go: through one micro-batch, and beside the baseline. One set of colours and words for charts and tables."""

from collections.abc import Sequence

from budgetft.outcome import CONNECTION, Estimate
from budgetft.report.axes import LETTER, Axes, legend
from budgetft.report.drawing import Drawing
from budgetft.report.story import Story
from budgetft.units import GIB, format_gib

GROUPS = {
    "context": ("CUDA context and kernels", ("context and kernels", CONNECTION)),
    "weights": ("weights", ("weights",)),
    "adapter": ("adapter, gradients, optimizer", ("adapter", "gradients", "optimizer")),
    "inputs": ("inputs, workspace", ("inputs", "workspace")),
    "kept": ("saved activations", ()),
    "temporary": ("temporaries", ()),
    "allocator": ("allocator overhead", ("allocator (blocks larger than their tensor)", "allocator (fragmentation)")),
}
"""Colour: name in legends and tables, and the terms of an estimate that it sums."""
BOTH = f"{GROUPS['kept'][0]} and {GROUPS['temporary'][0]}"
"""At the peak: a term of an estimate does not part them."""


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
    drawing = Drawing(width, 380 if width > 500 else 340, "Memory through one micro-batch, by category, against the budget")
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
    least = 0.0
    for name in static:
        size, title = sizes[name] / GIB, GROUPS[name][0]
        drawing.rect(axes.left, axes.y(least + size), axes.right - axes.left, axes.y(least) - axes.y(least + size), name,
                     note=f"{title}: {format_gib(sizes[name])}")  # fmt: skip
        least += size
    _draw_moments(axes, story, least, sizes.get("context", 0))
    if near:
        axes.level(budget / GIB, "bad")
    above = axes.y(budget / GIB) - 5 if near else axes.top + 4
    said = f"budget {format_gib(budget)}{'' if near else ': far above'}"
    drawing.text(axes.right, above, said, anchor="end", colour="bad", bold=True, halo=True)
    axes.level(peak / GIB, "plan")
    drawing.text(axes.left + 6, axes.y(peak / GIB) + 16, f"peak {format_gib(peak)}", size=12, bold=True, halo=True)
    return drawing


def _draw_moments(axes: Axes, story: Story, least: float, context_bytes: int) -> None:
    """What moves: temporaries behind, saved activations before them, phases named below."""
    drawing = axes.drawing
    outline, starts = [(axes.x(0), axes.y(least))], {}
    for index, moment in enumerate(story.moments):
        before, most, after = ((size + context_bytes) / GIB for size in moment[2:])
        left, right = axes.x(index), axes.x(index + 1)
        note = f"{moment.phase}: up to {most:.2f} GiB, {after:.2f} GiB after it"
        drawing.rect(left, axes.y(most), right - left, max(0.0, axes.y(least) - axes.y(most)), "temporary", note=note)
        outline += [(left, axes.y(before)), (right, axes.y(after))]
        first, _ = starts.get(moment.phase, (index, index))
        starts[moment.phase] = first, index + 1
    outline.append((axes.right, axes.y(least)))
    drawing.area([(x, min(y, axes.y(least))) for x, y in outline], "kept", note=GROUPS["kept"][0])
    for phase, (first, last) in starts.items():
        left, right = axes.x(first), axes.x(last)
        below = 17 if right - left > 7 * len(phase) else 31
        drawing.text((left + right) / 2, axes.bottom + below, phase, anchor="middle", colour="soft", size=11)
        drawing.line([(left, axes.bottom), (left, axes.bottom + 5)], "soft")


def stacked_chart(sides: Sequence[tuple[str, Estimate]], budget_bytes: int, width: float) -> Drawing:
    """The parts of the peak of each named estimate, one bar each, against the budget."""
    parts = [(name, grouped(estimate)) for name, estimate in sides]
    shown = [colour for colour in GROUPS if any(sizes.get(colour) for _, sizes in parts)]
    titles = {colour: GROUPS[colour][0] for colour in shown} | {"kept": BOTH}
    drawing = Drawing(width, 0, f"Peak GPU memory by category: {', '.join(name for name, _ in sides)}")
    y = legend(drawing, [(colour, titles[colour]) for colour in shown], 14) + 10
    most = max(budget_bytes, *(sum(max(0, s) for s in sizes.values()) for _, sizes in parts))
    first = y
    for (name, sizes), (_, estimate) in zip(parts, sides, strict=True):
        drawing.text(4, y + 12, name, bold=True)
        drawing.text(14 + 1.15 * LETTER * len(name), y + 12, format_gib(estimate.process_peak_bytes), colour="soft")
        x = 4.0
        for colour in shown:
            wide = (width - 8) * max(0, sizes.get(colour, 0)) / most
            drawing.rect(x, y + 18, wide, 18, colour, note=f"{titles[colour]}: {format_gib(sizes.get(colour, 0))}")
            x += wide
        y += 48
    edge = 4 + (width - 8) * budget_bytes / most
    drawing.line([(edge, first + 16), (edge, y - 8)], "bad", width=2, dashed=True)
    drawing.text(edge, y + 8, f"budget {format_gib(budget_bytes)}", anchor="end", colour="bad", bold=True)
    drawing.height = y + 16
    return drawing


def baseline_chart(story: Story, width: float) -> Drawing | None:
    """Where the bytes of the baseline and of the plan are at their peaks. None when the baseline does not fit, or is it."""
    baseline = story.plan.baseline
    if baseline is None or baseline.knobs == story.plan.knobs:
        return None
    sides = [("Hugging Face Trainer defaults", baseline.estimate), ("plan", story.plan.estimate)]
    return stacked_chart(sides, story.plan.gpu.budget_bytes, width)
