"""Training on a card, in fresh processes: the cap must be set before anything else touches CUDA."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from overflowing import save_overflowing

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
def start_python():
    """A process of the code, with the package in its path; ended with the test."""
    started = []

    def start(code, *arguments, **pipes):
        path = os.pathsep.join([str(Path(budgetft.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-c", code, *arguments]
        started.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def start_run(start_python, tmp_path):
    """Start training ``plan`` on the card."""

    def start(plan, *options, weights="random"):
        write_plan(plan, tmp_path / "plan.json")
        arguments = ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "run"), "--weights", str(weights)]
        arguments += ["--device", "cuda", "--json", *options]
        return start_python(RUN, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return start


@pytest.fixture
def run(start_run):
    """Train ``plan`` on the card to the end."""

    def finish(plan, *options, **chosen):
        process = start_run(plan, *options, **chosen)
        out, notes = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, notes)

    return finish


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


BLOCKS = ("model.visual.blocks.2.mlp", "model.language_model.layers.1.mlp")


def test_blocks_that_overflow_fp16_are_found_by_name_and_the_run_is_finite_inside_its_budget(make_plan, run, train, tmp_path):
    weights = save_overflowing("tiny-qwen2.5-vl", tmp_path / "weights", BLOCKS, factor=1000.0)
    plan = make_plan(budget_bytes=3 * GIB, knobs={"base_precision": "fp16"}, learning_rate=1e-4)
    done = run(plan, "--steps", "12", weights=weights)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert sorted(summary["islands"]) == sorted(BLOCKS)
    assert "2 blocks exceed 30000" in done.stderr
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    finite = [line["finite"] for line in log]
    assert all(finite[finite.index(True) :]), "the gradient scale is found once"
    assert summary["skipped_steps"] < 8
    assert 0 < summary["last_loss"] < 20
    assert summary["process_peak_bytes"] <= summary["budget_bytes"]
    on_cpu = train(plan, weights=str(weights), steps=1, out=tmp_path / "on-cpu")
    assert summary["islands"] == list(on_cpu.islands)


NEIGHBOUR = """
import json, os, sys
import torch
print(json.dumps({"pid": os.getpid()}), flush=True)
sys.stdin.readline()
from budgetft.meter.cuda import CudaMeter
meter = CudaMeter()
kept = torch.zeros(2**30, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print(json.dumps({"pids": sorted(meter.own_pids), "held": meter.process_bytes()}), flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def neighbour(start_python):
    """A process that takes 1 GiB of the card when it is asked to, and holds it."""
    return start_python(NEIGHBOUR, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_process_that_comes_during_a_run_is_named_with_its_bytes(make_plan, start_run, neighbour, tmp_path):
    assert neighbour.stdout.readline()  # torch is loaded, the card not yet touched
    training = start_run(make_plan(budget_bytes=3 * GIB, knobs={"base_precision": "fp16"}), "--steps", "300")
    log, deadline = tmp_path / "run" / "log.jsonl", time.monotonic() + 120
    while not (log.is_file() and log.read_text()):
        assert training.poll() is None, training.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    neighbour.stdin.write("now\n")
    neighbour.stdin.flush()
    told = json.loads(neighbour.stdout.readline())
    out, notes = training.communicate(timeout=120)
    assert training.returncode == 0, notes
    if not told["pids"]:
        pytest.skip("NVML lists no processes on this machine: who is on the card cannot be known")
    summary = json.loads(out)
    seen = {one["pid"]: one["memory_bytes"] for one in summary["neighbours"]}
    assert set(told["pids"]) <= set(seen), (told, seen)
    held = seen[told["pids"][0]]
    assert held is None or GIB < held < 2 * GIB
    assert held is None or abs(held - told["held"]) < 200 * MIB
    assert f"process {told['pids'][0]} " in notes
    assert "is on the card since step" in notes
    assert summary["process_peak_bytes"] <= summary["budget_bytes"]
    assert not summary["over_budget"]
