"""The section of a goal in the report: its chart, its table, and a plan without one."""

import pytest

from budgetft.duration import RunTime
from budgetft.goal import Goal, GoalRow
from budgetft.report.goal_chart import goal_chart, spread
from budgetft.report.page import html_page, write_report
from budgetft.units import GIB


def row(pixels: int, rank: int, hours: float, *, fits: bool = True, limit: float = 10) -> GoalRow:
    return GoalRow(
        values={"max_pixels": pixels, "rank": rank}, seconds=3600 * hours, low_seconds=2700 * hours, high_seconds=4800 * hours,
        process_peak_bytes=12 * GIB, fits=fits, in_time=hours <= limit, evidence="predicted",
    )  # fmt: skip


@pytest.fixture
def goal() -> Goal:
    rows = (
        row(802_816, 16, 8.4),
        row(571_536, 64, 9.1),
        row(802_816, 32, 10.6),
        row(1_132_096, 8, 31),
        row(1_605_632, 8, 9.5, fits=False),
        GoalRow(
            values={"max_pixels": 10**7, "rank": 8}, seconds=None, process_peak_bytes=None, fits=False, in_time=False,
            evidence="predicted", problem="<b>too long</b> examples",
        ),
    )  # fmt: skip
    run = RunTime(
        examples=20_000, epochs=3, effective_batch=32, seconds=30_240, low_seconds=22_000, high_seconds=40_000,
        evidence="predicted",
    )  # fmt: skip
    return Goal(
        hours=10, prefer=("max_pixels", "rank"), run=run, values={"max_pixels": 802_816, "rank": 16}, rows=rows,
        one_time_seconds=600,
    )  # fmt: skip


def section(page: str) -> str:
    return page.partition('<section id="goal">')[2].partition("</section>")[0]


def test_the_section_has_the_choice_every_row_and_the_chart_for_a_page_and_a_phone(unprobed, goal, tell):
    told = section(html_page(tell(unprobed.replace(goal=goal))))
    assert "What ends within 10 h" in told
    assert "Chosen: images up to 896x896, rank 16." in told
    assert "10 min once for the feature cache" in told
    assert "--sure" in told
    assert told.count("<svg") == 2
    assert told.count("<tr>") == 1 + len(goal.rows)
    assert "&lt;b&gt;too long&lt;/b&gt;" in told


@pytest.mark.parametrize("width", [800, 340])
def test_the_chart_has_a_mark_for_every_contract_with_a_time_and_the_line_at_the_hours(unprobed, goal, tell, width):
    drawn = goal_chart(tell(unprobed.replace(goal=goal)), width)
    assert drawn is not None
    svg = drawn.svg()
    legend = 3
    assert svg.count("<circle") == 4 + legend
    assert svg.count("too much memory</title>") == 1
    assert svg.count("10 h asked for") == 2  # beside the line, and in the title
    assert 'stroke-dasharray="6 4"' in svg
    assert ">31 h<" in svg, "what is far above is drawn at the edge with its time"


def test_a_short_time_is_drawn_in_minutes(unprobed, goal, tell):
    rows = tuple(each.replace(seconds=each.seconds and each.seconds / 60) for each in goal.rows)
    drawn = goal_chart(tell(unprobed.replace(goal=goal.replace(hours=10 / 60, rows=rows))), 800)
    assert drawn is not None
    assert ">minutes<" in drawn.svg()


def test_equal_places_are_drawn_beside_each_other():
    assert spread([5.0, 9.0, 5.0]) == [-1.5, 9.0, 11.5]


def test_a_plan_without_a_goal_has_no_such_section(unprobed, tell, tmp_path):
    story = tell(unprobed)
    assert '<section id="goal">' not in html_page(story)
    assert not any("goal" in path.name for path in write_report(story, tmp_path / "page.html"))


def test_a_goal_without_ranges_has_its_time_and_no_chart(unprobed, goal, tell):
    told = section(html_page(tell(unprobed.replace(goal=goal.replace(values={}, rows=(), prefer=())))))
    assert "3 epochs = 1,875 steps" in told
    assert "<svg" not in told
