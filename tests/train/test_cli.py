"""``budgetft train`` as a user meets it."""

import json

import pytest
import typer
from typer.testing import CliRunner

from budgetft.cli.train import train as command
from budgetft.plan import write_plan


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
