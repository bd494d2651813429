"""The figures of README, docs and reports are those of the ledgers, JSON files and tables that they come from."""

import json
import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "reports"))
import figures

ROOT = figures.ROOT

SLOW = ("fits",)
"""Blocks that take seconds to compute: they ask for six models on four GPUs."""


def blocks(path: str) -> dict[str, str]:
    return {found[1]: found[3] for found in figures.BLOCK.finditer((ROOT / path).read_text())}


EACH = [(path, name) for path in figures.FILES for name in blocks(path)]


@pytest.mark.parametrize(("path", "name"), [each for each in EACH if each[1] not in SLOW])
def test_a_block_of_figures_is_what_its_ledgers_say(path, name):
    assert blocks(path)[name] == figures.block(name)


def test_the_table_of_what_fits_is_what_fit_says_now():
    assert blocks("README.md")["fits"] == figures.block("fits")


def test_every_block_is_on_a_page():
    assert {name for _, name in EACH} == set(figures.BLOCKS)


@pytest.mark.parametrize("name", ["numbers", "memory", "speed", "search", "rivals", "v100", "supported", "plan"])
def test_a_changed_digit_is_seen(name):
    chance = random.Random(name)
    text = figures.block(name)
    place = chance.choice([found.start() for found in re.finditer(r"\d", text)])
    changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
    page = f"# Page\n\n<!-- figures: {name} -->\n{{}}<!-- figures: end -->\n"
    assert figures.differing(page.format(text)) == []
    assert figures.differing(page.format(changed)) == [name]


def test_prose_outside_of_the_blocks_states_no_speed_and_no_error():
    """So that no figure of the README escapes: examples/s, GiB found, and percentages are computed."""
    for path in ("README.md", "docs/results.md"):
        prose = re.sub(r"```.*?```", "", figures.BLOCK.sub("", (ROOT / path).read_text()), flags=re.DOTALL)
        assert re.findall(r"[\d.]+ (?:examples/s|samples/s|GiB)|\d\.\d+ ?%|\d\.\d+x", prose) == [], path


def has_row(page: str, *cells: str) -> bool:
    """Whether a line of a page has all ``cells`` in this order, as whole numbers or words."""
    pattern = ".*?".join(rf"(?<![\w.,-]){re.escape(cell)}(?!\w|[.,]\d)" for cell in cells)
    return any(re.search(pattern, line.replace("**", "")) for line in page.splitlines())


def report(path: str) -> str:
    return (ROOT / "reports" / path).read_text()


def rows_of_a_ledger(ledger: str) -> list[tuple[str, ...]]:
    """Image, micro-batch, checkpointed layers, speed and peak of the best setting of each path."""
    rows = []
    for (size, _), trials in figures.best_of(ledger)[0].items():
        knobs, peak = trials[0].knobs, max(each.process_peak_bytes or 0 for each in trials)
        sizes = (size, str(knobs.micro_batch), str(knobs.checkpointed_layers))
        rows.append((*sizes, f"{figures.speed_of(trials):.2f}", figures.gib(peak)))
    return rows


@pytest.mark.parametrize("ledger", ["bench/ledger.sqlite3", "bench/native.sqlite3"])
def test_the_bench_report_states_what_its_ledgers_hold(ledger):
    page = report("bench/README.md")
    rows = rows_of_a_ledger(ledger)
    assert len(rows) >= 2
    assert [row for row in rows if not has_row(page, *row)] == []


def test_the_bench_report_states_other_trainers_and_the_largest_example_as_they_were_measured():
    page = report("bench/README.md")
    for row in figures.rivals_block().splitlines()[2:6]:
        cells = row.strip("| ").split(" | ")
        assert has_row(page, *cells), cells
    for row in figures.lines_of("bench/largest-measured.jsonl"):
        if row["status"] == "ok":
            assert has_row(page, str(row["frames"]), f"{row['visual_tokens']:,}", figures.gib(row["process_peak_bytes"])), row


def test_the_prediction_report_states_the_rows_of_its_table():
    page = report("prediction/README.md")
    wanted = [name for name in figures.errors_of_peaks() if f"| {name} | process |" in page]
    assert len(wanted) > 5
    for name in wanted:
        row = figures.errors_of_peaks()[name]
        assert f"| {' | '.join(row.values())} |" in page, name


def test_the_guard_report_states_each_run_of_many_steps():
    page = report("guard/README.md")
    runs = figures.all_soaks()
    assert len(runs) > 10
    for run in runs:
        found = max(run["process_peak_bytes"], run.get("preflight_peak_bytes", 0))
        cells = (run["model"], *map(figures.gib, (run["budget_bytes"], run["planned_peak_bytes"], found)), f"{run['steps']:,}")
        assert has_row(page, *cells), cells


def test_the_spine_and_port_reports_state_their_runs():
    summary = json.loads(report("spine/summary-real.json"))
    assert f"{summary['process_peak_bytes'] / figures.GIB:.3f} GiB" in report("spine/README.md")
    page = report("port/README.md")
    for row in figures.lines_of("port/plans/results.jsonl"):
        if row["kind"] == "ported":
            found = [f"{row[key] / figures.GIB:.2f}" for key in ("budget_bytes", "predicted_peak_bytes", "process_peak_bytes")]
            assert has_row(page, row["card"], row["model"], *found), row


def test_a_row_with_a_changed_digit_is_missed():
    page = "| 448x448 | stock | 4 | 36 | 2.67 | **13.70 GiB** |\n"
    assert has_row(page, "448x448", "4", "36", "2.67", "13.70 GiB")
    for other in (
        ("448x448", "4", "36", "2.66", "13.70 GiB"),
        ("448x448", "4", "3", "2.67"),
        ("48x448",),
        ("2.6",),
        ("3.70 GiB",),
    ):
        assert not has_row(page, *other)
