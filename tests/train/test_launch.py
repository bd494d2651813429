"""The job script that ``budgetft launch`` writes."""

import os
import stat
import subprocess

import pytest

from budgetft.cli import main
from budgetft.plan import write_plan


@pytest.fixture
def script(make_plan, tmp_path):
    write_plan(make_plan(micro_batch=1), tmp_path / "plan.json")

    def write(*options):
        fixed = ["launch", "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "my run"), "--slurm"]
        assert main([*fixed, str(tmp_path / "job.sh"), *options]) == 0
        return tmp_path / "job.sh"

    return write


@pytest.fixture
def cluster(tmp_path):
    """Commands that write down how they were called; srun ends as told."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def run(job, code):
        for name, ending in (("srun", code), ("scontrol", 0)):
            (folder / name).write_text(f'#!/bin/bash\nprintf "%s|" {name} "$@" >> {tmp_path}/calls\nexit {ending}\n')
            (folder / name).chmod(stat.S_IRWXU)
        environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        ended = subprocess.run(["bash", str(job)], env=environment).returncode
        calls = (tmp_path / "calls").read_text()
        (tmp_path / "calls").unlink()
        return ended, calls

    return run


def test_the_script_starts_the_run_and_after_its_time_limit_goes_on_with_it(script, cluster, tmp_path):
    job = script()
    assert cluster(job, 0) == (0, f"srun|budgetft|train|--plan|{tmp_path}/plan.json|--out|{tmp_path}/my run|")
    (tmp_path / "my run").mkdir()
    (tmp_path / "my run" / "run.json").write_text("{}")
    ended, calls = cluster(job, 143)  # SIGTERM, as the run answers it
    assert ended == 143
    assert calls.endswith("--resume|scontrol|requeue|7|")
    assert cluster(job, 1)[1].endswith("--resume|")


def test_several_cards_share_the_step_through_accelerate(script, cluster):
    _, calls = cluster(script("--gpus", "2"), 0)
    assert calls.startswith("srun|accelerate|launch|--num_processes|2|")
    assert "|--multi_gpu|" in calls
    assert "#SBATCH --gres=gpu:2" in script("--gpus", "2").read_text()
    _, calls = cluster(script("--gpus", "2", "--share"), 0)
    assert "|--use_fsdp|--fsdp_version|2|" in calls
    assert "multi_gpu" not in calls


def test_one_card_has_nobody_to_share_the_base_with(make_plan, tmp_path, capsys):
    write_plan(make_plan(micro_batch=1), tmp_path / "plan.json")
    options = ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "run"), "--slurm", str(tmp_path / "job.sh")]
    assert main(["launch", *options, "--share"]) == 2
    assert "nobody to share with" in capsys.readouterr().err


def test_more_cards_than_micro_batches_are_refused(make_plan, tmp_path, capsys):
    write_plan(make_plan(micro_batch=4), tmp_path / "plan.json")
    options = ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "run"), "--slurm", str(tmp_path / "job.sh")]
    assert main(["launch", *options, "--gpus", "2"]) == 2
    assert "1 micro-batches to share" in capsys.readouterr().err
