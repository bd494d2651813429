"""Progress as a log file keeps it: every line tells by itself what was tried, what was said and what was found."""

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

from budgetft.cli.progress import ProbeLines, planning
from budgetft.knobs import Knobs, stock_knobs
from budgetft.outcome import Estimate, Outcome
from budgetft.search.events import Event
from budgetft.units import GIB

OURS = Knobs(micro_batch=8, grad_accum=4, checkpointed_layers=30)
STOCK = stock_knobs(micro_batch=4, effective_batch=32, layers=36, base_precision="fp16")


def estimate(peak: int = 13 * GIB) -> Estimate:
    return Estimate(
        tensor_peak_bytes=peak, reserved_peak_bytes=peak, process_peak_bytes=peak, step_seconds=1.6,
        samples_per_second=20.0, fits=True, terms=(),
    )  # fmt: skip


def outcome(knobs: Knobs, **changes) -> Outcome:
    found = {"status": "ok", "samples_per_second": 16.0, "process_peak_bytes": 13 * GIB + GIB // 4, "wall_seconds": 30.0}
    return Outcome(knobs=knobs, evidence="emulated", budget_bytes=14 * GIB, **{**found, **changes})


def event(number: int, knobs: Knobs, found: Outcome | None = None, **changes) -> Event:
    return Event(
        **{"stage": "search", "number": number, "most": 20, "knobs": knobs, "estimate": estimate(), "outcome": found, **changes}
    )


def test_a_probe_is_announced_by_what_it_changes_and_what_is_predicted_of_it():
    lines = ProbeLines()
    assert lines.line(event(1, STOCK)) == (
        "[search] 1/20: micro_batch 4, checkpointed 36, stock; predicted 20.00 examples/s, 13.00 GiB"
    )
    lines.line(event(1, STOCK, outcome(STOCK)))
    lines.line(event(2, OURS, outcome(OURS)))
    smaller = OURS.replace(micro_batch=4, grad_accum=8)
    assert lines.line(event(3, smaller)).startswith("[search] 3/20: micro_batch 8 to 4; predicted")


def test_what_was_found_stands_beside_what_was_predicted_with_the_best_so_far_and_the_time_left():
    lines = ProbeLines()
    assert "best so far" not in lines.line(event(1, STOCK, outcome(STOCK))), "stock is what is compared with"
    assert lines.line(event(2, OURS, outcome(OURS))) == (
        "[search] 2/20: emulated 16.00 examples/s, 13.25 GiB (predicted 13.00 GiB, +1.9%), 30 s;"
        " best so far 16.00 examples/s (probe 2); at most 18 more, 9 min"
    )
    slower = lines.line(event(3, OURS, outcome(OURS, samples_per_second=12.0)))
    assert "best so far 16.00 examples/s (probe 2)" in slower


def test_a_failure_says_where_it_ended_and_is_never_the_best():
    found = outcome(OURS, status="oom", phase="backward", samples_per_second=None, detail="CUDA out of memory")
    line = ProbeLines().line(event(4, OURS, found))
    assert "oom in backward; predicted 13.00 GiB: CUDA out of memory" in line
    assert "best so far" not in line


def test_a_setting_that_needed_allocator_retries_is_not_the_best():
    line = ProbeLines().line(event(4, OURS, outcome(OURS, alloc_retries=3)))
    assert "3 allocator retries" in line
    assert "best so far" not in line


def test_a_recalled_probe_tells_its_knobs_and_costs_no_time():
    lines = ProbeLines()
    line = lines.line(event(1, STOCK, outcome(STOCK), from_ledger=True))
    assert line.startswith("[search] 1/20: micro_batch 4, checkpointed 36, stock: known, emulated 16.00 examples/s")
    assert line.endswith("at most 19 more"), "nothing was timed yet"


def test_the_confirmation_promises_no_further_probe():
    line = ProbeLines().line(event(7, OURS, outcome(OURS), stage="confirm"))
    assert "at most" not in line


def test_into_a_file_go_plain_lines_and_quiet_says_nothing(capsys):
    with planning(quiet=False) as (show, note):
        show(Event(stage="trace", text="tracing"))
        note("a note")
    assert capsys.readouterr().err == "[trace] tracing\na note\n"
    with planning(quiet=True) as (show, note):
        show(Event(stage="trace", text="tracing"))
        note("a note")
    assert capsys.readouterr() == ("", "")
