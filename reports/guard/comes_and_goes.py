"""Twenty runs of 200 steps on a GPU while another process takes its memory and gives it back, beside an undisturbed one.

    PYTHONPATH=.:tests/train python reports/guard/comes_and_goes.py --out reports/guard/comes_and_goes.json     # on a GPU

The other process leaves between nothing and 1.5 times what a planned micro-batch takes, for a random time, then gives all back.
A model of the 3B's widths with two layers and two blocks, as on a V100, micro-batches of 8, under a cap of 8 GiB; every five
steps the run gives back what its allocator keeps, so that there is something to take. A run that ends because not even one
example has room goes on with `--resume`. Before it was run: every run comes to its end, with the losses of the undisturbed
one to 1e-3 (fp16 rounds otherwise in other micro-batches), and at most 20 of 200 steps begin with a size that has no room. Exit
code 1 when not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

import torch
from safetensors.torch import load_file
from tiny import short_model

from budgetft.contract import Contract
from budgetft.data.examples import read_dataset
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_workload
from budgetft.data.synthetic.sample import write_sample
from budgetft.errors import BudgetftError
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.outcome import Estimate
from budgetft.plan import Plan, Proof, Target, refer
from budgetft.profiles import profiles_folder
from budgetft.train.loop import run_training

GIB = 2**30
GIVEN_BACK = 5
"""Steps between which the run's own process gives back what its allocator keeps, as libraries in it may."""
OTHER_PROCESS = """
import random, sys, time, torch
draw, need = random.Random(int(sys.argv[1])), int(float(sys.argv[2]))
torch.zeros(1, device="cuda")
print("ready", flush=True)
while True:
    time.sleep(draw.uniform(0.1, 1.0))
    left = int(draw.uniform(0.0, 1.5) * need)
    try:
        held = torch.empty(max(1, torch.cuda.mem_get_info()[0] - left), dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        continue
    time.sleep(draw.uniform(0.1, 1.5))
    del held
    torch.cuda.empty_cache()
"""


def folder_of(model: Any, folder: Path) -> Path:
    """A folder that says what the model is, without weights."""
    folder.mkdir()
    for path in (profiles_folder() / "models" / "qwen2.5-vl-3b").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "config.json").write_text(json.dumps(model.config))
    return folder


def plan_of(data: Path, folder: Path) -> Plan:
    from budgetft.model import load_model

    model, contract, gpu = load_model(str(folder)), Contract(effective_batch=8, max_pixels=50_176), load_gpu("v100-16g")
    estimate = Estimate(
        tensor_peak_bytes=1, reserved_peak_bytes=1, process_peak_bytes=1, step_seconds=None, samples_per_second=None,
        fits=True, terms=(),
    )  # fmt: skip
    knobs = Knobs(
        micro_batch=8, grad_accum=1, checkpointed_layers=0, attention="efficient", pointwise="fused", base_precision="fp16",
        allocator="expandable",
    )  # fmt: skip
    return Plan(
        gpu=Target(name=gpu.name, budget_bytes=8 * GIB, profile=gpu),
        model=refer(model),
        contract=contract,
        knobs=knobs,
        estimate=estimate,
        evidence=Proof(kind="predicted", outcomes=(), confirmed=None, statement="made by hand"),
        baseline=None,
        workload=measure_workload(read_dataset(data), load_processor(model), model, contract),
        data=str(data),
        environment={},
    )


def trained(plan: Plan, out: Path, steps: int, device: str) -> dict[str, Any]:
    """The run to its end, resumed as often as needed."""
    ends, began = 0, time.monotonic()

    def give_back(record: Any) -> None:
        if device == "cuda" and record.step % GIVEN_BACK == 0:
            torch.cuda.empty_cache()

    fixed: dict[str, Any] = {"out": out, "weights": "random", "steps": steps, "save_every": 50, "device": device}
    fixed["on_progress"] = give_back
    while True:
        try:
            summary = run_training(plan, resume=(out / "run.json").is_file(), **fixed)
            break
        except BudgetftError as error:
            if "out of memory" not in str(error) or ends >= 20:
                raise
            ends += 1
            time.sleep(1)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    return {
        "losses": [row["loss"] for row in rows],
        "failed_tries": len(summary.fallbacks),
        "steps_with_a_failed_try": sum(bool(row.get("fallbacks")) for row in rows),
        "steps_begun_smaller": sum(row.get("began_with") is not None for row in rows),
        "resumed": ends,
        "over_budget": summary.over_budget,
        "seconds": time.monotonic() - began,
        "peak": summary.allocated_peak_bytes,
        "adapter": load_file(out / "adapter" / "adapter_model.safetensors"),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="number of the first run, which the other process draws by")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=540, help="after which no further run is begun")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_sample(folder / "data", count=24)
        plan = plan_of(folder / "data", folder_of(short_model(layers=2, blocks=2), folder / "model"))
        whole = trained(plan, folder / "whole", chosen.steps, chosen.device)
        need = 0.6 * whole["peak"]
        print({name: value for name, value in whole.items() if name not in ("losses", "adapter")}, flush=True)
        for number in range(chosen.first, chosen.first + chosen.runs):
            if time.monotonic() - began > chosen.seconds:
                break
            other_process = None
            if chosen.device == "cuda":
                command = [sys.executable, "-c", OTHER_PROCESS, str(number), str(need)]
                other_process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                assert other_process.stdout is not None
                other_process.stdout.readline()
            try:
                found = trained(plan, folder / f"run-{number}", chosen.steps, chosen.device)
            finally:
                if other_process is not None:
                    other_process.kill()
                    other_process.wait()
            pairs = zip(found.pop("losses"), whole["losses"], strict=True)
            found["losses_apart_at_most"] = max(abs(a - b) / b for a, b in pairs)
            adapter = found.pop("adapter")
            apart = [float((adapter[name] - each).norm() / each.norm()) for name, each in whole["adapter"].items()]
            found["adapter_apart_at_most"] = max(apart)
            rows.append(found)
            print(number, found, flush=True)
    holds = all(row["losses_apart_at_most"] < 1e-3 and row["steps_with_a_failed_try"] <= chosen.steps // 10 for row in rows)
    chosen.out.write_text(json.dumps({"steps": chosen.steps, "rows": rows, "holds": holds}, indent=1) + "\n")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
