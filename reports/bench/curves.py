"""Does a plan learn what the baseline learns? The same data, seed and steps: the plan, and the baseline three times.

    budgetft data sample sample --count 64
    budgetft plan --gpu v100-16g --model qwen2.5-vl-3b --data sample --max-pixels 50176 --effective-batch 4 --out plan.json
    python reports/bench/curves.py plan.json --steps 200 [--device cuda] [--weights FOLDER] --out curves.json
    python reports/bench/curves.py --table curves.json

Measured on the CPU, where the tiny model takes minutes; on a GPU (an hour for the 3B) as the plan says, emulated or measured.
Weights are the same in all runs: random ones of the contract's seed unless given. Two runs of one recipe differ by the
order in which a GPU adds (not at all where its kernels keep one order); stock in smaller micro-batches computes the same sums
in other parts, so it shows what rounding alone does. The plan's difference is held against both.
"""

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser, there
from harness.children import budgetft
from harness.evidence import write
from harness.small import log
from harness.tables import head, row

from budgetft.knobs import stock_knobs
from budgetft.plan import Plan, load_planned_model, read_plan, write_plan

PARTS = 5
"""Lines of the table, each the mean over as many steps."""


def stock_of(plan: Plan, *, part: int = 1) -> Plan:
    """``plan`` with the baseline's settings, at the micro-batch that fitted divided by ``part``."""
    size = 1 if plan.baseline is None else min(plan.baseline.knobs.micro_batch, plan.contract.effective_batch)
    size, layers = max(1, size // part), load_planned_model(plan).layers
    kept = {"effective_batch": plan.contract.effective_batch, "base_precision": plan.knobs.base_precision}
    return plan.replace(knobs=stock_knobs(micro_batch=size, layers=layers, **kept))


def losses_of(plan: Plan, folder: Path, asked: Any) -> list[float]:
    """The loss of every step of one run in a process of its own."""
    folder.mkdir()
    write_plan(plan, folder / "plan.json")
    fixed = ("--weights", asked.weights, "--save-every", asked.steps, "--quiet")
    place = ("--plan", folder / "plan.json", "--out", folder / "run", "--device", asked.device)
    budgetft("train", *place, "--steps", asked.steps, *fixed, env=None).checked()
    return [each["loss"] for each in log(folder / "run") if each["loss"] is not None]


def print_table(made: dict[str, Any]) -> None:
    """Mean losses of five parts of the runs, and how far apart single steps are."""
    curves = made["losses"]
    stock, steps = curves["stock"], len(curves["stock"])
    print(f"{made['model']}, {made['device']}, {steps} steps of {made['effective_batch']} examples")
    print(head("steps", *curves))
    size = -(-steps // PARTS)
    for start in range(0, steps, size):
        means = (f"{mean(curve[start : start + size]):.5f}" for curve in curves.values())
        print(row(f"{start + 1}-{min(start + size, steps)}", *means))
    for name, other in curves.items():
        if name != "stock":
            apart = [abs(a - b) for a, b in zip(other, stock, strict=True)]
            print(f"{name} and stock: single steps {mean(apart):.2e} apart on average, {max(apart):.2e} at most")


options = flag(parser(__doc__, steps=200, device="auto", out=Path("curves.json")), "plan", type=there, nargs="?")
flag(options, "--weights", default="random")
flag(options, "--precision", choices=("fp16", "bf16", "fp32"), help="instead of the plan's; fp16 is slow on a CPU")
flag(options, "--at-once", type=int, default=1, help="runs side by side; losses do not depend on it")
flag(options, "--table", type=there, help="only the table of an earlier --out")


def main() -> None:
    asked = options.parse_args()
    if asked.table:
        print_table(json.loads(asked.table.read_text()))
        return
    if asked.plan is None:
        options.error("name a plan to train, or --table with an earlier --out")
    plan = read_plan(asked.plan)
    if asked.precision:
        plan = plan.replace(knobs=plan.knobs.replace(base_precision=asked.precision))
    made: dict[str, Any] = {
        "model": plan.model.name, "device": asked.device, "effective_batch": plan.contract.effective_batch,
        "knobs": plan.knobs.model_dump(), "losses": {},
    }  # fmt: skip
    plans = {"plan": plan, "stock": stock_of(plan), "stock again": stock_of(plan), "stock, halved": stock_of(plan, part=2)}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(asked.at_once) as pool:
        runs = {}
        for number, (name, each) in enumerate(plans.items()):
            runs[name] = pool.submit(losses_of, each, Path(temporary) / str(number), asked)
        for name, run in runs.items():
            made["losses"][name] = run.result()
            write(asked.out, made, "measured" if plan.evidence.kind == "predicted" else plan.evidence.kind)
    print_table(made)


if __name__ == "__main__":
    main()
