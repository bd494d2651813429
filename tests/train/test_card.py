"""Training on a card, in fresh processes: the cap must be set before anything else touches CUDA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import budgetft
from budgetft.plan import write_plan
from budgetft.units import GIB, MIB

RUN = """
import sys, typer
from budgetft.cli.train import train
from budgetft.errors import BudgetftError
try:
    typer.run(train)
except BudgetftError as error:
    sys.exit(error.message)
finally:
    import torch
    kinds = {segment["is_expandable"] for segment in torch.cuda.memory_snapshot()}
    print("expandable:", kinds, file=sys.stderr)
"""


def has_card():
    import torch

    return torch.cuda.is_available()


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_card(), reason="torch finds no CUDA card here")]


@pytest.fixture
def run(tmp_path):
    """Train ``plan`` on the card in a process of its own."""

    def start(plan, *options):
        write_plan(plan, tmp_path / "plan.json")
        command = [sys.executable, "-c", RUN, "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "run")]
        command += ["--weights", "random", "--device", "cuda", "--json", *options]
        path = os.pathsep.join([str(Path(budgetft.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return start


@pytest.mark.parametrize("allocator", ["default", "expandable"])
def test_a_run_stays_under_its_budget_and_says_on_what_it_ran(make_plan, run, allocator):
    plan = make_plan(budget_bytes=3 * GIB, knobs={"base_precision": "fp16", "allocator": allocator})
    done = run(plan, "--steps", "6")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["evidence"] in ("emulated", "measured")
    assert summary["stack"]["driver"]
    assert 0 < summary["allocated_peak_bytes"] <= summary["reserved_peak_bytes"] < summary["process_peak_bytes"]
    assert summary["process_peak_bytes"] <= summary["budget_bytes"]
    assert summary["cap_bytes"] < summary["budget_bytes"]
    assert not summary["over_budget"]
    assert summary["skipped_steps"] < 6
    assert f"expandable: {{{allocator == 'expandable'}}}" in done.stderr


def test_a_resumed_run_on_the_card_repeats_the_steps_after_its_checkpoint(make_plan, run, tmp_path):
    plan = make_plan(budget_bytes=3 * GIB, lora_dropout=0.1, knobs={"base_precision": "fp16", "lora": "stock"})
    assert run(plan, "--steps", "6", "--save-every", "2").returncode == 0
    folder = tmp_path / "run"
    before = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    # As if it had been killed in step 5.
    (folder / "summary.json").unlink()
    newest = folder / "checkpoints" / "step-6"
    newest.rename(tmp_path / "removed")
    done = run(plan, "--resume")
    assert done.returncode == 0, done.stderr
    after = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in after] == [1, 2, 3, 4, 5, 6]
    assert after[:4] == before[:4]
    # Kernels on a card may add in another order; the dropout masks are the same, or this would be far off.
    assert [line["loss"] for line in after] == pytest.approx([line["loss"] for line in before], rel=1e-3)
    assert [line["scale"] for line in after] == [line["scale"] for line in before]


def test_a_budget_below_the_need_ends_with_the_phase(make_plan, run, tmp_path):
    # Below what the context alone takes: the allocator is left with next to nothing.
    done = run(make_plan(budget_bytes=64 * MIB, knobs={"base_precision": "fp16"}))
    assert done.returncode == 1
    assert "out of memory in phase 'load'" in done.stderr
    assert not (tmp_path / "run").exists()
