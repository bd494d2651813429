"""What is missing or damaged becomes a sentence on the page, never a failure of it."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from rounding import arithmetic

from budgetft.errors import UsageError
from budgetft.report.gather import gather
from budgetft.report.page import html_page
from budgetft.report.verdict import headline

SPINE = Path(__file__).parents[2] / "reports" / "spine"
LEDGER = SPINE / "ledger-shapes.sqlite3"


@pytest.fixture
def run(tmp_path, plan) -> Path:
    """The folder of a run of 200 steps; its plan is of another job than its log, which no page can know."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "plan.json").write_text(plan.model_dump_json())
    shutil.copy(SPINE / "log-real.jsonl", folder / "log.jsonl")
    shutil.copy(SPINE / "summary-real.json", folder / "summary.json")
    return folder


def test_a_plan_without_its_predictions_gets_them_again_and_says_so(plan, tell):
    story = tell(plan)
    assert len(story.probes) == 7
    assert all(abs(probe.peak_residual) < 0.05 for probe in story.probes)
    assert "made again by this version" in story.prediction_note


def test_predictions_that_the_plan_holds_are_taken_as_they_are(plan, tell):
    held = plan.estimate.replace(process_peak_bytes=plan.estimate.process_peak_bytes // 2, terms=())
    story = tell(plan.replace(evidence=plan.evidence.replace(predictions=(held,) * 7)))
    assert [probe.prediction for probe in story.probes] == [held] * 7
    assert story.probes[-1].peak_residual == arithmetic(1.0)
    assert story.prediction_note == "Predictions were made before each trial."


def test_the_timeline_peaks_where_the_memory_model_does(plan, tell):
    story = tell(plan)
    top = max(moment.peak_bytes for moment in story.moments)
    known = {term.name: term.memory_bytes for term in story.predicted.terms}
    outside = ("workspace", "context and kernels")
    tensors = sum(size for name, size in known.items() if name not in outside and not name.startswith("allocator"))
    assert top == pytest.approx(tensors, abs=len(known))  # each term is rounded to a byte
    assert story.moments[0].phase == "forward"
    assert {m.phase for m in story.moments} == {"forward", "vision", "loss", "backward"}


def test_a_missing_ledger_is_said_and_not_made(plan, tell, tmp_path):
    story = tell(plan, ledger=tmp_path / "none.sqlite3")
    assert "there is no ledger at" in story.ledger_note
    assert "there is no ledger at" in html_page(story)
    assert not (tmp_path / "none.sqlite3").exists()


@pytest.mark.parametrize("content", [b"", b"not a database at all, only text", b"\0" * 5000])
def test_a_broken_ledger_is_said(plan, tell, tmp_path, content):
    (tmp_path / "broken.sqlite3").write_bytes(content)
    story = tell(plan, ledger=tmp_path / "broken.sqlite3")
    assert "cannot be read as a ledger" in html_page(story)
    assert (tmp_path / "broken.sqlite3").read_bytes() == content


def test_probes_of_the_job_from_other_plans_are_told_apart(plan, tell, tmp_path):
    path = tmp_path / "ledger.sqlite3"
    shutil.copy(LEDGER, path)
    fewer = plan.replace(evidence=plan.evidence.replace(outcomes=plan.evidence.outcomes[:-1]))
    assert "more trials" not in tell(plan, ledger=path).ledger_note
    with sqlite3.connect(path) as db:
        keys = {row[0] for row in db.execute("SELECT job_key FROM outcomes")}
    assert len(keys) == 2, "the ledger holds another job too"
    story = tell(fewer, ledger=path)
    assert story.earlier == (plan.evidence.outcomes[-1],)
    assert "1 more trial of this job" in story.ledger_note


def test_a_plan_of_a_model_that_has_changed_still_gets_its_page(tell):
    story = gather(SPINE / "plan-448-first.json", ledger=LEDGER)
    assert story.moments == ()
    page = html_page(story)
    assert "another configuration" in page
    assert "25.01 examples/s on the H100 80GB HBM3 (emulated)" in page


def test_a_run_shows_its_curves_and_its_peak(run):
    story = gather(run, ledger=LEDGER)
    assert len(story.records) == 200
    page = html_page(story)
    assert "Finished: 200 steps in 1 min 40 s, peak 12.53 of 14.00 GiB (emulated)." in page
    assert "Loss, learning rate, speed and peak memory over the steps of the run" in page
    assert "Not yet run" not in page
    assert "Nothing yet" not in page


def test_damaged_lines_of_a_log_are_counted_and_the_rest_is_shown(run):
    lines = (run / "log.jsonl").read_text().splitlines()
    (run / "log.jsonl").write_text("\n".join([*lines[:150], "{}", "\x00\x00", lines[150][:40]]))
    (run / "summary.json").unlink()
    story = gather(run, ledger=LEDGER)
    assert len(story.records) == 150
    assert story.run_note == "3 lines of log.jsonl cannot be read and left out."
    assert headline(story).kind == "close"
    assert headline(story).text.startswith("Not finished: 150 of 200 steps in ")


def test_ids_with_line_separators_of_unicode_damage_no_line_of_a_log(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    odd = [json.dumps({**line, "peak_examples": ["a\u2028b\u0085c"]}, ensure_ascii=False) for line in lines]
    (run / "log.jsonl").write_text("\n".join(odd) + "\n", encoding="utf-8")
    story = gather(run, ledger=LEDGER)
    assert (len(story.records), story.run_note) == (200, "")


def test_a_step_that_was_not_done_is_no_damaged_line_and_is_told(run):
    fallback = {"step": 201, "phase": "backward", "micro_batch": 1, "reduced_to": None, "examples": ["a", "b"]}
    fallback |= {"detail": "no memory", "cap_bytes": 1, "crowded": False}
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps({"unfinished_step": 201, "fallbacks": [fallback]}) + "\n")
    (run / "summary.json").unlink()
    story = gather(run, ledger=LEDGER)
    assert len(story.records) == 200
    assert story.stopped == "Step 201 was not done: out of memory in phase 'backward' with examples a, b."
    assert headline(story).kind == "bad"
    assert headline(story).text.endswith(story.stopped)


def test_a_run_without_a_log_says_so(run):
    (run / "log.jsonl").unlink()
    assert "No training curves: log.jsonl cannot be read" in html_page(gather(run, ledger=LEDGER))


def test_a_folder_that_is_no_run_and_a_file_that_is_no_plan_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds no plan\.json"):
        gather(tmp_path, ledger=LEDGER)
    (tmp_path / "other.json").write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(UsageError, match="problems"):
        gather(tmp_path / "other.json", ledger=LEDGER)
