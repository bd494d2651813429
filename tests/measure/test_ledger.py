"""The ledger: what is the same probe, what is paid for again, and that nothing gets lost."""

import json
import sqlite3
import subprocess
import sys

import pytest
from patience import HANG_SECONDS

from budgetft.errors import BudgetftError, UsageError
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome, Stack
from budgetft.workload import Shape, Workload

STACK = Stack(gpu="a GPU", driver="570.1", torch="2.10", transformers="5.17", peft="0.19", python="3.12")


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path / "folder" / "ledger.sqlite3")


def outcome_of(knobs, **changes) -> Outcome:
    fields = {"status": "ok", "evidence": "measured", "budget_bytes": 2**30, "stack": STACK, **changes}
    return Outcome(knobs=knobs, **fields)


def test_an_outcome_is_found_by_job_and_knobs_and_stack(ledger, make_job, make_knobs):
    job, outcome = make_job(), outcome_of(make_knobs(2), samples_per_second=1.5, timed_seconds=(0.1, 0.3))
    assert ledger.find(job, outcome.knobs, STACK) is None
    ledger.append(job, outcome)
    assert ledger.find(job, outcome.knobs, STACK) == outcome
    assert ledger.find(job, make_knobs(1), STACK) is None
    for other in (None, STACK.replace(driver="580.2"), STACK.replace(torch="2.11"), STACK.replace(gpu="another")):
        assert ledger.find(job, outcome.knobs, other) is None


def test_an_outcome_without_a_stack_is_found_without_one(ledger, make_job, make_knobs):
    outcome = outcome_of(make_knobs(1), stack=None)
    ledger.append(make_job(), outcome)
    assert ledger.find(make_job(), outcome.knobs, None) == outcome
    assert ledger.find(make_job(), outcome.knobs, STACK) is None


def test_an_outcome_from_before_a_knob_existed_is_found_at_the_knobs_default(ledger, make_job, make_knobs):
    ledger.append(make_job(), outcome_of(make_knobs(2)))
    with sqlite3.connect(ledger.path) as db:
        for column in ("knobs", "outcome"):
            db.execute(f"UPDATE outcomes SET {column} = replace({column}, ',\"batching\":\"padded\"', '')")
        assert "batching" not in db.execute("SELECT knobs FROM outcomes").fetchone()[0]
    assert ledger.find(make_job(), make_knobs(2), STACK) == outcome_of(make_knobs(2))
    assert ledger.find(make_job(), make_knobs(2, batching="bucketed"), STACK) is None


@pytest.mark.parametrize("status", ["ok", "oom", "over_budget", "nonfinite"])
def test_a_final_outcome_is_not_paid_for_twice(ledger, make_job, make_knobs, status):
    ledger.append(make_job(), outcome_of(make_knobs(1), status=status))
    assert ledger.find(make_job(), make_knobs(1), STACK).status == status


@pytest.mark.parametrize("status", ["crash", "timeout"])
def test_a_crash_and_a_timeout_are_kept_but_tried_again(ledger, make_job, make_knobs, status):
    ledger.append(make_job(), outcome_of(make_knobs(1), status=status))
    assert ledger.find(make_job(), make_knobs(1), STACK) is None
    assert [outcome.status for _, outcome in ledger.rows()] == [status]
    ledger.append(make_job(), outcome_of(make_knobs(1), status="oom"))
    assert ledger.find(make_job(), make_knobs(1), STACK).status == "oom"


def test_the_newest_outcome_counts(ledger, make_job, make_knobs):
    ledger.append(make_job(), outcome_of(make_knobs(1)))
    ledger.append(make_job(), outcome_of(make_knobs(1), status="oom"))
    assert ledger.find(make_job(), make_knobs(1), STACK).status == "oom"


def test_whatever_may_change_an_outcome_makes_another_job(make_job):
    job = make_job()
    larger = Shape(images=((84, 56),), text_tokens=40, supervised_tokens=8)
    shape = job.workload.worst[0]
    others = [
        job.replace(budget_bytes=job.budget_bytes - 1),
        job.replace(contract=job.contract.replace(rank=8)),
        job.replace(contract=job.contract.replace(targets=("q_proj",))),
        job.replace(workload=Workload(worst=(larger,), typical=(shape,))),
        job.replace(workload=Workload(worst=(shape,), typical=(larger,))),
        job.replace(gpu=job.gpu.replace(flash_attention=True)),
        job.replace(model=job.model.replace(config={**job.model.config, "tie_word_embeddings": False})),
        job.replace(weights="somewhere"),
        job.replace(evidence="emulated"),
        job.replace(device="cuda"),
    ]
    prints = {one.fingerprint() for one in (job, *others)}
    assert len(prints) == len(others) + 1


def test_what_only_describes_a_job_leaves_it_the_same(make_job):
    job = make_job()
    same = [
        make_job(),
        job.replace(
            gpu=job.gpu.replace(
                title="another title", fp32_tflops=99.0, sources={**job.gpu.sources, "fp16_tflops": "a newer page"}
            )
        ),
        job.replace(model=job.model.replace(hub_id="someone/else")),
        job.replace(workload=job.workload.replace(fingerprint="f" * 64)),
    ]
    assert {one.fingerprint() for one in same} == {job.fingerprint()}


def test_rows_come_back_as_they_were_given_oldest_first_in_another_session(ledger, make_job, make_knobs):
    given = [
        (make_job(), outcome_of(make_knobs(1), loss=0.1 + 0.2, wall_seconds=1e-9)),
        (make_job(budget_bytes=2**40), outcome_of(make_knobs(4), status="oom", phase="loss", detail="größer ☃\n'\"")),
        (make_job(), outcome_of(make_knobs(1), status="crash")),
    ]
    for job, outcome in given:
        ledger.append(job, outcome)
    ledger.close()
    again = Ledger(ledger.path)
    assert list(again.rows()) == given
    assert len(again) == 3


def test_reading_a_ledger_leaves_its_file_as_it_was(ledger, make_job, make_knobs):
    ledger.append(make_job(), Outcome(status="ok", knobs=make_knobs(), evidence="predicted", budget_bytes=1))
    ledger.close()
    before = ledger.path.read_bytes()
    again = Ledger(ledger.path)
    assert len(list(again.rows())) == len(again) == 1
    again.close()
    assert ledger.path.read_bytes() == before


def test_a_ledger_of_a_newer_schema_is_refused_naming_both_versions_and_left_alone(ledger):
    ledger.close()
    with sqlite3.connect(ledger.path) as database:
        database.execute("PRAGMA user_version = 7")
    before = ledger.path.read_bytes()
    with pytest.raises(UsageError, match=r"ledger schema 7; this budgetft reads up to 1"):
        Ledger(ledger.path)
    assert ledger.path.read_bytes() == before


def test_a_file_that_is_not_a_ledger_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n" * 200)
    with pytest.raises(UsageError, match=r"notes\.txt cannot be used as a ledger: file is not a database"):
        Ledger(path)
    assert path.read_text() == "my notes\n" * 200
    with pytest.raises(UsageError, match="cannot be used as a ledger"):
        Ledger(tmp_path)
    with pytest.raises(UsageError, match="cannot be used as a ledger"):
        Ledger(path / "ledger.sqlite3")


APPEND = """
import sys
from pathlib import Path
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome
job = Job.model_validate_json(Path(sys.argv[1]).read_text())
outcome = Outcome.model_validate_json(Path(sys.argv[2]).read_text())
print("ready", flush=True)
sys.stdin.readline()
ledger = Ledger(Path(sys.argv[3]))
for number in range(100):
    ledger.append(job, outcome.replace(detail=f"{sys.argv[4]} {number}"))
"""


def test_two_processes_that_create_and_write_a_ledger_at_once_lose_nothing(make_job, make_knobs, tmp_path):
    (tmp_path / "job").write_text(make_job().model_dump_json())
    (tmp_path / "outcome").write_text(outcome_of(make_knobs(1)).model_dump_json())
    names = [str(tmp_path / name) for name in ("job", "outcome", "ledger.sqlite3")]
    writers = [
        subprocess.Popen([sys.executable, "-c", APPEND, *names, who], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for who in ("left", "right")
    ]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n", "ready\n"]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(timeout=HANG_SECONDS) for writer in writers] == [0, 0]
    details = [outcome.detail for _, outcome in Ledger(tmp_path / "ledger.sqlite3").rows()]
    assert sorted(details) == sorted(f"{who} {number}" for who in ("left", "right") for number in range(100))
    for who in ("left", "right"):
        mine = [detail for detail in details if detail.startswith(who)]
        assert mine == [f"{who} {number}" for number in range(100)], "each writer's rows stay in order"


def test_what_sqlite_refuses_is_said_in_our_words_with_the_file(ledger, make_job, make_knobs):
    """Another process holds the file; a full disk and a read-only one come the same way."""
    ledger._db.execute("PRAGMA busy_timeout = 10")
    holder = sqlite3.connect(ledger.path)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(BudgetftError, match=r"ledger\.sqlite3 could not be written: database is locked"):
        ledger.append(make_job(), outcome_of(make_knobs(1)))
    holder.rollback()
    ledger.append(make_job(), outcome_of(make_knobs(1)))
    assert len(ledger) == 1


def test_a_job_of_several_gpus_is_read_by_the_name_that_its_number_had(make_job):
    job = make_job().replace(gpus=4)
    before = {("cards" if name == "gpus" else name): value for name, value in json.loads(job.model_dump_json()).items()}
    assert before["cards"] == 4
    assert Job.read(before, source="a ledger of before") == job
