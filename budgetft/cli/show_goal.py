"""A goal for people: what was chosen, when it ends, and what else would be possible."""

from collections.abc import Iterator
from textwrap import wrap

from budgetft.duration import HOUR, duration_text
from budgetft.goal import TITLES, Goal, GoalRow, time_asked
from budgetft.plan import Plan
from budgetft.units import format_gib

SQUARE = "max_pixels"
WIDTH = 80


def goal_lines(plan: Plan) -> list[str]:
    """Lines for a terminal of 80 columns; none where the contract was given."""
    goal = plan.goal
    if goal is None:
        return []
    wanted = ", then ".join(TITLES[name] for name in goal.prefer)
    lines = [_line("Goal", f"within {time_asked(goal)}{f': the largest {wanted}' if wanted else ''}")]
    if goal.values:
        lines.append(_line("Chosen", ", ".join(_value(name, value) for name, value in goal.values.items())))
    lines += [_line("Ends after", goal.run.text()), *(_line("", text) for text in _about_time(goal))]
    if goal.data_frames is not None:
        own = "1 frame" if goal.data_frames == 1 else f"{goal.data_frames} frames"
        wanted = goal.values["frames_per_example"]
        lines.append(_line("Data", f"has {own} an example: make it with {wanted}, and train on that"))
    return [*lines, *_table(goal)]


def _line(name: str, text: str) -> str:
    return f"  {name:<11} {text}"


def _value(name: str, value: int) -> str:
    side = round(value**0.5)
    square = f" ({side}x{side})" if name == SQUARE and side * side == value else ""
    return f"{TITLES[name]} {value}{square}"


def _about_time(goal: Goal) -> Iterator[str]:
    if goal.one_time_seconds:
        yield f"and {duration_text(goal.one_time_seconds)} once for the feature cache"
    yield f"{goal.run.evidence}; evaluation and saving come on top"
    if goal.late_at_its_slow_end:
        yield f"may take over {duration_text(goal.hours * HOUR)}: --sure chooses what is in time even if slow"


def _table(goal: Goal) -> list[str]:
    if not goal.rows:
        return []
    names = list(goal.values)
    heads = [*(TITLES[name] for name in names), "time (range)", "peak GPU", ""]
    rows = [
        [*(str(row.values[name]) for name in names), row.time_text(), format_gib(row.process_peak_bytes), _verdict(goal, row)]
        for row in goal.rows
    ]
    widths = [max(len(row[place]) for row in [heads, *rows]) for place in range(len(heads))]

    def line(cells: list[str]) -> str:
        left = len(names)  # numbers to the right, words to the left
        padded = [
            cell.ljust(wide) if place == left or place == len(heads) - 1 else cell.rjust(wide)
            for place, (cell, wide) in enumerate(zip(cells, widths, strict=True))
        ]
        return ("    " + "  ".join(padded)).rstrip()

    more = [f"    and {goal.left_out} more that are in time"] if goal.left_out else []
    for problem in dict.fromkeys(row.problem for row in goal.rows if row.problem):
        more += wrap(f"impossible: {problem}", initial_indent="    ", subsequent_indent="      ", width=WIDTH)
    return [_line("What else", f"by {_source(goal)}"), line(heads), *(line(row) for row in rows), *more]


def _verdict(goal: Goal, row: GoalRow) -> str:
    return "chosen" if goal.is_chosen(row) else "impossible" if row.problem else row.verdict


def _source(goal: Goal) -> str:
    probed = sum(row.evidence == "measured" for row in goal.rows)
    if not probed:
        return "prediction"
    taught = "" if goal.speed_factor == 1 else f", its times by {goal.speed_factor:.2f} as the probes taught"
    return f"prediction{taught}; {probed} measured"
