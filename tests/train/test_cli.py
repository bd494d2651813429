"""``budgetft train`` as a user meets it."""

import json

import pytest
import typer
from typer.testing import CliRunner

from budgetft.cli.train import train as command
from budgetft.errors import UsageError
from budgetft.plan import write_plan
from budgetft.train.record import Record
from budgetft.units import GIB


def record(**changes) -> Record:
    known = {"epoch": 0.1, "loss": 2.0, "grad_norm": 1.0, "finite": True, "scale": 1.0, "learning_rate": 1e-4}
    known |= {"data_seconds": 0.0, "samples_per_second": 4.0, "allocated_bytes": GIB, "allocated_peak_bytes": GIB}
    known |= {"reserved_bytes": None, "reserved_peak_bytes": None, "process_bytes": GIB, "process_peak_bytes": 2 * GIB}
    return Record(**known, **changes)


@pytest.fixture
def run(make_plan, tmp_path):
    """Call the command for one step on the CPU."""
    app = typer.Typer()
    app.command()(command)
    write_plan(make_plan(), tmp_path / "plan.json")

    def call(*options):
        fixed = [
            "--plan",
            str(tmp_path / "plan.json"),
            "--out",
            str(tmp_path / "run"),
            "--device",
            "cpu",
            "--steps",
            "1",
        ]
        return CliRunner().invoke(app, [*fixed, "--weights", "random", *options])

    return call


def test_the_summary_goes_to_stdout_and_progress_to_stderr(run):
    done = run()
    assert done.exit_code == 0, done.output
    assert "evidence       predicted: ran on the CPU" in done.stdout
    assert "step 1/1  loss 11." in done.stderr
    assert "step 1/1" not in done.stdout


def test_json_is_the_summary_file_and_quiet_is_silent(run, tmp_path):
    done = run("--json", "--quiet")
    assert json.loads(done.stdout) == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "step 1" not in done.stderr
    assert "pre-flight" not in done.stderr


def test_loading_the_command_loads_no_torch():
    import subprocess
    import sys

    check = "import sys; import budgetft.cli.train; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_settings_of_the_allocator_that_would_abort_torch_end_in_a_sentence(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments")
    ended = run()
    assert isinstance(ended.exception, UsageError)
    assert "is not written as key:value" in ended.exception.message
    assert not (tmp_path / "run").exists()


def test_a_log_file_gets_plain_lines_with_the_time_left(capsys):
    from budgetft.cli.train import _progress

    with _progress(8 * GIB, quiet=False) as (show, note):
        note("loading")
        show(record(step=1, steps=100, seconds=3.0))
        show(record(step=2, steps=100, seconds=1.0))
        show(record(step=3, steps=100, seconds=1.0))
        show(record(step=100, steps=100, seconds=1.0))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "loading"
    assert lines[1] == "step 1/100  loss 2.0000  4.00 examples/s  1.00 GiB, peak 2.00 GiB of 8.00 GiB, 5 min left"
    assert lines[2].startswith("step 2/100")
    assert lines[2].endswith("3 min 20 s left")
    assert lines[3].startswith("step 100/100"), "step 3 is not due"
    assert "left" not in lines[3]


def test_the_ledger_learns_of_a_setting_that_ran_out_of_memory(run, tmp_path, make_plan):
    from refusing import refusing

    from budgetft.measure.child import current_stack
    from budgetft.measure.job import planned_job
    from budgetft.measure.ledger import Ledger

    with refusing((1, "backward", 3)):
        done = run("--ledger", str(tmp_path / "ledger.sqlite3"))
    assert done.exit_code == 0, done.output
    assert "1 times, in steps 1: done again with as few as 1 at a time" in done.stdout
    plan, ledger = make_plan(), Ledger(tmp_path / "ledger.sqlite3")
    ((_, outcome),) = ledger.rows()
    job, stack = planned_job(plan, device="cpu", evidence="predicted"), current_stack("cpu")  # as the next plan asks
    assert ledger.find(job, plan.knobs, stack) == outcome
    assert outcome.status == "oom"


def test_memory_refused_in_an_evaluation_is_told_in_the_summary_and_not_to_the_ledger(run, tmp_path):
    from drawn import draw_examples
    from refusing import refusing

    options, ledger = ("--eval-data", str(draw_examples(tmp_path / "held", 4).folder)), tmp_path / "ledger.sqlite3"
    with refusing() as state:
        run(*options, "--out", str(tmp_path / "undisturbed"))
    with refusing((1, "loss", state.counts[1, "loss"])):
        done = run(*options, "--ledger", str(ledger))
    assert done.exit_code == 0, done.output
    assert (
        "1 times, in steps 1: done again with as few as 1 at a time in the evaluation after them; first in phase" in done.stdout
    )
    assert not ledger.exists()
