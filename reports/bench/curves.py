"""Does a plan learn what the stock recipe learns? The same data, seed and steps: the plan, and the stock recipe three times.

    budgetft data sample sample --count 64
    budgetft plan --gpu v100-16g --model qwen2.5-vl-3b --data sample --max-pixels 50176 --effective-batch 4 --out plan.json
    python reports/bench/curves.py plan.json --steps 200 [--device cuda] [--weights FOLDER] --out curves.json
    python reports/bench/curves.py --table curves.json

Weights are the same in all runs: random ones of the contract's seed unless given. Two runs of one recipe differ by the
order in which a GPU adds (not at all where its kernels keep one order); stock in smaller micro-batches computes the same sums
in other parts, so it shows what rounding alone does. The plan's difference is held against both.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from budgetft.knobs import stock_knobs
from budgetft.plan import Plan, load_planned_model, read_plan, write_plan

PARTS = 5
"""Lines of the table, each the mean over as many steps."""


def stock_of(plan: Plan, *, part: int = 1) -> Plan:
    """``plan`` with the stock recipe's knobs, at the micro-batch of its baseline divided by ``part``."""
    size = 1 if plan.baseline is None else min(plan.baseline.knobs.micro_batch, plan.contract.effective_batch)
    size = max(1, size // part)
    knobs = stock_knobs(
        micro_batch=size,
        effective_batch=plan.contract.effective_batch,
        layers=load_planned_model(plan).layers,
        base_precision=plan.knobs.base_precision,
    )
    return plan.replace(knobs=knobs)


def losses_of(plan: Plan, folder: Path, chosen: argparse.Namespace) -> list[float]:
    """The loss of every step of one run in a process of its own."""
    folder.mkdir()
    write_plan(plan, folder / "plan.json")
    command = [sys.executable, "-m", "budgetft", "train", "--plan", folder / "plan.json", "--out", folder / "run"]
    command += ["--steps", chosen.steps, "--device", chosen.device, "--weights", chosen.weights, "--save-every", chosen.steps]
    done = subprocess.run([*map(str, command), "--quiet"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    rows = map(json.loads, (folder / "run" / "log.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row.get("loss") is not None]


def print_table(made: dict[str, Any]) -> None:
    """Mean losses of five parts of the runs, and how far apart single steps are."""
    curves = made["losses"]
    stock, steps = curves["stock"], len(curves["stock"])
    print(f"{made['model']}, {made['device']}, {steps} steps of {made['effective_batch']} examples")
    print(f"| steps | {' | '.join(curves)} |\n|---|{'---|' * len(curves)}")
    size = -(-steps // PARTS)
    for start in range(0, steps, size):
        means = " | ".join(f"{mean(curve[start : start + size]):.5f}" for curve in curves.values())
        print(f"| {start + 1}-{min(start + size, steps)} | {means} |")
    for name, other in curves.items():
        if name != "stock":
            apart = [abs(a - b) for a, b in zip(other, stock, strict=True)]
            print(f"{name} and stock: single steps {mean(apart):.2e} apart on average, {max(apart):.2e} at most")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--weights", default="random")
    parser.add_argument("--precision", choices=("fp16", "bf16", "fp32"), help="instead of the plan's; fp16 is slow on a CPU")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side; losses do not depend on it")
    parser.add_argument("--out", type=Path, default=Path("curves.json"))
    parser.add_argument("--table", type=Path)
    chosen = parser.parse_args()
    if chosen.table:
        print_table(json.loads(chosen.table.read_text()))
        return
    plan = read_plan(chosen.plan)
    if chosen.precision:
        plan = plan.replace(knobs=plan.knobs.replace(base_precision=chosen.precision))
    made: dict[str, Any] = {
        "model": plan.model.name, "device": chosen.device, "effective_batch": plan.contract.effective_batch,
        "knobs": plan.knobs.model_dump(), "losses": {},
    }  # fmt: skip
    plans = {"plan": plan, "stock": stock_of(plan), "stock again": stock_of(plan), "stock, halved": stock_of(plan, part=2)}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(chosen.at_once) as pool:
        runs = {}
        for number, (name, each) in enumerate(plans.items()):
            runs[name] = pool.submit(losses_of, each, Path(temporary) / str(number), chosen)
        for name, run in runs.items():
            made["losses"][name] = run.result()
            chosen.out.write_text(json.dumps(made) + "\n")
    print_table(made)


if __name__ == "__main__":
    main()
