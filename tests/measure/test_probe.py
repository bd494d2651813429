"""Real children on the tiny model: what they measure, and who lives how long."""

import json
import os
import signal
import subprocess
import sys

import pytest
from patience import HANG_SECONDS
from rounding import arithmetic
from warm import Cold

from budgetft.measure.child import MOST_READINGS, current_stack
from budgetft.measure.ledger import Ledger
from budgetft.measure.probe import Prober
from budgetft.units import MIB
from budgetft.workload import Shape, Workload

STACK = current_stack("cpu")
pytestmark = pytest.mark.usefixtures("warm_children")

INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
from pathlib import Path
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.measure.probe import Prober

job = Job.model_validate_json(Path(sys.argv[1]).read_text())
ledger = Ledger(Path(sys.argv[2]))
command = tuple(sys.argv[3:])
with Prober(job, stack=None, command=command) as prober:
    number = 0
    while True:
        size = (1, 2, 4)[number % 3]
        knobs = Knobs(micro_batch=size, grad_accum=4 // size, checkpointed_layers=2, base_precision="fp32")
        ledger.append(job, prober.probe(knobs))
        number += 1
        print(number, flush=True)
"""


def read_pids(path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def test_one_child_serves_settings_until_one_fails_or_a_fresh_one_is_asked_for(make_job, make_knobs, real_child, pids):
    with Prober(make_job(budget_bytes=64 * MIB), stack=STACK, command=real_child) as prober:
        small = prober.probe(make_knobs(1))
        again = prober.probe(make_knobs(1, vision="stock"))
        assert len(read_pids(pids)) == 1, "settings that share a loaded model share its process"
        large = prober.probe(make_knobs(4))
        after = prober.probe(make_knobs(1))
        assert len(read_pids(pids)) == 2, "out of memory ends a process, and only that"
        fresh = prober.probe(make_knobs(1), fresh=True)
        assert len(set(read_pids(pids))) == 3

    assert [outcome.status for outcome in (small, again, large, after, fresh)] == ["ok", "ok", "oom", "ok", "ok"]
    assert large.phase in ("vision", "forward", "loss", "backward", "optimizer")
    assert str(64 * MIB) in large.detail
    assert large.process_peak_bytes is large.step_seconds is None
    assert small.process_peak_bytes == after.process_peak_bytes == fresh.process_peak_bytes <= small.cap_bytes == 64 * MIB
    assert small.stack == STACK
    assert small.evidence == "predicted"
    assert small.optimizer_seconds > 0
    assert small.step_seconds == arithmetic(4 * small.micro_seconds + small.optimizer_seconds)
    assert small.samples_per_second == arithmetic(4 / small.step_seconds)
    assert 3 <= len(small.timed_seconds) <= MOST_READINGS + 2, "more than three where they scatter"
    assert small.speed_error > 0
    assert all(outcome.wall_seconds > 0 for outcome in (small, large))


def test_a_step_of_unlike_examples_is_timed_by_its_micro_batches(make_job, make_knobs, counting_child):
    long, short = (Shape(images=((56, 56),), text_tokens=count, supervised_tokens=8) for count in (1500, 16))
    job = make_job(workload=Workload(worst=(long,), typical=(long, short, long, short)))
    with Prober(job, stack=None, command=counting_child) as prober:
        padded, bucketed = (prober.probe(make_knobs(2, batching=name)) for name in ("padded", "bucketed"))
    assert padded.status == bucketed.status == "ok"
    assert bucketed.process_peak_bytes == padded.process_peak_bytes
    for outcome in (padded, bucketed):
        assert outcome.step_seconds == arithmetic(2 * outcome.micro_seconds + outcome.optimizer_seconds)
    assert len(padded.timed_seconds) == 3
    assert len(bucketed.timed_seconds) == 4, "twice each: the two long ones, and the two short ones"
    (long_one, *_), (short_one, *_) = bucketed.timed_seconds[:2], bucketed.timed_seconds[2:]
    assert bucketed.timed_seconds == (long_one, long_one, short_one, short_one)
    assert short_one < long_one / 2
    assert bucketed.step_seconds == arithmetic(long_one + short_one + bucketed.optimizer_seconds)


def test_a_child_serves_other_shapes_of_the_same_model_and_another_rank_is_another_child(
    make_job, make_knobs, real_child, pids
):
    job, long = make_job(), Shape(images=((56, 56),), text_tokens=300, supervised_tokens=8)
    other = job.replace(workload=Workload.uniform(long))
    wider = job.replace(contract=job.contract.replace(rank=2 * job.contract.rank, alpha=2 * job.contract.alpha))
    with Prober(job, stack=None, command=real_child) as prober:
        prober.probe(make_knobs(1))
        prober.rebind(other)
        moved = prober.probe(make_knobs(1))
        assert len(read_pids(pids)) == 1
        prober.rebind(wider)
        prober.probe(make_knobs(1))
        assert len(read_pids(pids)) == 2
    with Prober(other, stack=None, command=real_child) as prober:
        straight = prober.probe(make_knobs(1))
    assert moved.process_peak_bytes == straight.process_peak_bytes


def test_other_weights_mean_another_child_and_weights_over_the_budget_end_while_loading(make_job, make_knobs, real_child, pids):
    with Prober(make_job(budget_bytes=MIB), stack=None, command=real_child) as prober:
        outcome = prober.probe(make_knobs(1))
    assert (outcome.status, outcome.phase) == ("oom", "load")
    with Prober(make_job(), stack=None, command=real_child, timed_steps=1) as prober:
        single = prober.probe(make_knobs(1, base_precision="bf16"))
        double = prober.probe(make_knobs(1))
    assert single.fits
    assert double.fits
    assert single.process_peak_bytes < double.process_peak_bytes
    assert len(set(read_pids(pids))) == 3


def test_closing_the_prober_ends_its_child(make_job, make_knobs, real_child, pids, gone_within):
    seen = []
    prober = Prober(make_job(), stack=None, command=real_child, timed_steps=1, on_phase=seen.append)
    assert prober.probe(make_knobs(1)).fits
    assert gone_within(*read_pids(pids), 0.2) is False
    prober.close()
    assert gone_within(*read_pids(pids), 0.0)
    assert seen[0] == "load"
    assert seen[-1] == "optimizer"
    assert set(seen) == {"load", "vision", "forward", "loss", "backward", "optimizer"}


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_parent_that_is_stopped_keeps_what_was_measured_and_leaves_no_child(
    ending, make_job, script, real_child, pids, tmp_path, gone_within
):
    (tmp_path / "job.json").write_text(make_job().model_dump_json())
    parent = subprocess.Popen(
        [*script(INTERRUPTIBLE), str(tmp_path / "job.json"), str(tmp_path / "ledger"), *real_child],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout.readline() == "1\n", parent.stderr.read()
        parent.send_signal(ending)
        parent.wait(timeout=HANG_SECONDS)
        done = 1 + len(parent.stdout.read().split())
    finally:
        parent.kill()
        parent.wait()
    if ending == signal.SIGINT:
        assert "KeyboardInterrupt" in parent.stderr.read()
    rows = list(Ledger(tmp_path / "ledger").rows())
    assert len(rows) >= done
    assert all(outcome.fits for _, outcome in rows)
    # A killed parent cannot end its child; it ends by itself at its next answer, when nobody reads.
    (child,) = read_pids(pids)
    assert gone_within(child, 0.0 if ending == signal.SIGINT else HANG_SECONDS)


def test_the_child_starts_by_itself_and_writes_only_json_to_the_result_pipe(make_job, make_knobs, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Cold)  # as a user's starts
    read_end, write_end = os.pipe()
    knobs = make_knobs(1).model_dump(mode="json")
    lines = [
        {"job": make_job().model_dump(mode="json"), "knobs": knobs},
        {"knobs": knobs, "timed_steps": 1},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "budgetft.measure.child", str(write_end)],
        input="".join(json.dumps(line) + "\n" for line in lines).encode(),
        pass_fds=(write_end,),
        capture_output=True,
        timeout=HANG_SECONDS,
    )
    os.close(write_end)
    with os.fdopen(read_end) as results:
        answers = [json.loads(line) for line in results]
    assert done.returncode == 0, done.stderr
    assert {"ready": True} in answers
    assert answers[-1]["outcome"]["status"] == "ok"
