"""The full-size model with two MLPs that overflow fp16, trained under a V100's cap: found, put right, and what that takes.

    PYTHONPATH=.:tests/train python reports/guard/islands.py > islands.json           # on a card, under 90 s
    PYTHONPATH=.:tests/train python reports/guard/islands.py --model tiny-qwen2.5-vl --device cpu --steps 2

A checkpoint of random weights, two decoder layers' MLPs scaled so that the product before `down_proj` overflows, goes through
`budgetft train`: precision probe, pre-flight, 20 steps of 8 drawn examples. Beside it the same with sound random weights. The
exit code is 0 when exactly those blocks became islands, the loss is finite, no step was skipped after the gradient scale was
found, and both peaks are within the budget.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from overflowing import save_overflowing
from soak import examples_of

from budgetft.contract import Contract
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_workload
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.plan import Plan, Proof, Target, refer, write_plan
from budgetft.predict.estimator import Estimator
from budgetft.workload import Shape

GIB = 2**30
FACTOR = {"tiny-qwen2.5-vl": 1000.0}
"""Of a width whose products are small; elsewhere 256, so that `down_proj` does not vanish in fp16."""
EXAMPLES = 24


def planned(model_name: str, device: str, budget_bytes: int, folder: Path) -> Plan:
    """Micro-batches of 2 on examples of one 448x448 image (tiny: 84x84, little text), every layer kept."""
    model, gpu = load_model(model_name), load_gpu("v100-16g")
    small = model_name.startswith("tiny")
    if small:
        shape = Shape(images=((84, 84),), text_tokens=48, supervised_tokens=8)
    else:
        shape = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
    contract = Contract(rank=16, effective_batch=8)
    examples = examples_of([shape] * EXAMPLES, folder / "data", model, contract, random.Random(0))
    workload = measure_workload(examples, load_processor(model), model, contract)
    knobs = Knobs(micro_batch=2, grad_accum=4, checkpointed_layers=0, pointwise="fused", allocator="expandable")
    job = Job(
        gpu=gpu, budget_bytes=budget_bytes, model=model, contract=contract, workload=workload,
        device="cuda" if device == "cuda" else "cpu", host=load_gpu("h100-80g") if device == "cuda" else None,
        evidence="predicted",
    )  # fmt: skip
    return Plan(
        gpu=Target(name=gpu.name, budget_bytes=budget_bytes, profile=gpu),
        model=refer(model),
        contract=contract,
        knobs=knobs,
        estimate=Estimator(job).estimate(knobs),
        evidence=Proof(kind="predicted", outcomes=(), confirmed=None, statement="made by hand"),
        baseline=None,
        workload=workload,
        data=str(examples.folder),
        environment={},
    )


def run(plan: Path, weights: str, out: Path, *, device: str, steps: int) -> dict:
    """``budgetft train`` in a process of its own; its summary, notes and log, shortened."""
    command = [sys.executable, "-m", "budgetft", "train", "--plan", plan, "--out", out, "--weights", weights]
    command += ["--steps", steps, "--device", device, "--save-every", steps, "--ledger", out.with_suffix(".sqlite3"), "--json"]
    began = time.monotonic()
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    row = {"seconds": round(time.monotonic() - began, 1)}
    if done.returncode:
        return {**row, "error": done.stderr.strip()[-1500:]}
    summary = json.loads(done.stdout)
    kept = ("evidence", "note", "islands", "first_loss", "last_loss", "skipped_steps", "process_peak_bytes",
            "preflight_peak_bytes", "allocated_peak_bytes", "budget_bytes", "over_budget", "ooms", "samples_per_second",
            "neighbours")  # fmt: skip
    finite = [json.loads(line)["finite"] for line in (out / "log.jsonl").read_text().splitlines()]
    notes = [line for line in done.stderr.splitlines() if line.startswith(("precision", "warning"))]
    late = 0 if True not in finite else finite[finite.index(True) :].count(False)
    return {**row, **{name: summary[name] for name in kept}, "skipped_after_calibration": late, "notes": notes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-vl-3b")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--budget-gib", type=float, default=14.0)
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)  # a step of its own: it leaves nothing on the card
    chosen = parser.parse_args()
    layers = load_model(chosen.model).layers
    blocks = [f"model.language_model.layers.{number}.mlp" for number in (layers // 4, layers - 1)]
    if chosen.save:
        factor = FACTOR.get(chosen.model, 256.0)
        save_overflowing(chosen.model, chosen.save, blocks, factor=factor, device=chosen.device)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, began = Path(temporary), time.monotonic()
        plan = planned(chosen.model, chosen.device, int(chosen.budget_gib * GIB), folder)
        write_plan(plan, folder / "plan.json")
        how = {"device": chosen.device, "steps": chosen.steps}
        told = {"model": chosen.model, "wanted": blocks, "planned_peak_bytes": plan.estimate.process_peak_bytes}
        told["sound"] = run(folder / "plan.json", "random", folder / "sound", **how)
        saving = time.monotonic()
        again = [sys.executable, __file__, "--model", chosen.model, "--device", chosen.device, "--save", folder / "weights"]
        subprocess.run(list(map(str, again)), check=True, stdout=subprocess.DEVNULL)
        told["saving_seconds"] = round(time.monotonic() - saving, 1)
        told["overflowing"] = run(folder / "plan.json", str(folder / "weights"), folder / "overflowing", **how)
        told["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(told, indent=1))
    raise SystemExit(0 if held(told) else 1)


def held(told: dict) -> bool:
    """Whether both runs ended as they should."""
    rows = (told["sound"], told["overflowing"])
    if any("error" in row for row in rows):
        return False
    right = sorted(told["overflowing"]["islands"]) == sorted(told["wanted"]) and told["sound"]["islands"] == []
    well = all(row["last_loss"] and not row["skipped_after_calibration"] and not row["over_budget"] for row in rows)
    return right and well


if __name__ == "__main__":
    main()
