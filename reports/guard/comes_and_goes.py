"""Twenty runs of 200 steps on a GPU while another process takes its memory and gives it back, beside an undisturbed one.

    python reports/guard/comes_and_goes.py --out reports/guard/comes_and_goes.json     # on a GPU, nine minutes; measured

The other leaves between nothing and 1.5 times what a planned micro-batch takes, for a random time, then gives all back.
A model of the 3B's widths with two layers and two blocks, as on a V100, micro-batches of 8, under a cap of 8 GiB; every five
steps the run gives back what its allocator keeps, so that there is something to take. A run that ends because not even one
example has room resumes. Before it was run: every run comes to its end, with the losses of the undisturbed
one to 1e-3 (fp16 rounds otherwise in other micro-batches), and at most 20 of 200 steps begin with a size that has no room. Exit
code 1 when not.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from harness.arguments import flag, parser
from harness.evidence import write
from harness.small import apart, hand_made, log, short_model

from budgetft.contract import Contract
from budgetft.data.synthetic.sample import write_sample
from budgetft.errors import BudgetftError
from budgetft.knobs import Knobs
from budgetft.plan import Plan
from budgetft.train.run import run_training
from budgetft.units import GIB

GIVEN_BACK = 5
"""Steps between which the run's own process gives back what its allocator keeps, as libraries in it may."""
OTHER = """
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
KNOBS = Knobs(
    micro_batch=8, grad_accum=1, checkpointed_layers=0, attention="efficient", pointwise="fused", base_precision="fp16",
    allocator="expandable",
)  # fmt: skip


@contextmanager
def disturbed(number: int, need: float, device: str) -> Iterator[None]:
    """With the other process on the GPU; undisturbed on a CPU."""
    if device != "cuda":
        yield
        return
    command, pipes = [sys.executable, "-c", OTHER, str(number), str(need)], {"stdout": subprocess.PIPE, "text": True}
    other: Any = subprocess.Popen(command, stderr=subprocess.DEVNULL, **pipes)
    try:
        other.stdout.readline()
        yield
    finally:
        other.kill()
        other.wait()


def trained(plan: Plan, out: Path, steps: int, device: str) -> dict[str, Any]:
    """The run to its end, resumed as often as needed."""
    ends, began = 0, time.monotonic()

    def give_back(record: Any) -> None:
        if device == "cuda" and record.step % GIVEN_BACK == 0:
            torch.cuda.empty_cache()

    fixed: dict[str, Any] = {"out": out, "weights": "random", "steps": steps, "save_every": 50, "device": device}
    while True:
        try:
            summary = run_training(plan, resume=(out / "run.json").is_file(), on_progress=give_back, **fixed)
            break
        except BudgetftError as error:
            if "out of memory" not in str(error) or ends >= 20:
                raise
            ends += 1
            time.sleep(1)
    rows = log(out)
    return {
        "failed_tries": len(summary.fallbacks),
        "steps_with_a_failed_try": sum(bool(row.get("fallbacks")) for row in rows),
        "steps_begun_smaller": sum(row.get("began_with") is not None for row in rows),
        "resumed": ends,
        "over_budget": summary.over_budget,
        "seconds": time.monotonic() - began,
        "peak": summary.allocated_peak_bytes,
    }


options = flag(parser(__doc__, steps=200, device="cuda", out=...), "--runs", type=int, default=20)
flag(options, "--first", type=int, default=0, help="number of the first run, which the other process draws by")
flag(options, "--seconds", type=float, default=540, help="after which no further run is begun")


def main() -> None:
    asked = options.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rows, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_sample(folder / "data", count=24)
        model, contract = short_model(folder / "model", layers=2, blocks=2), Contract(effective_batch=8, max_pixels=50_176)
        plan = hand_made("v100-16g", model, folder / "data", contract, KNOBS, budget_bytes=8 * GIB)
        whole = trained(plan, folder / "whole", asked.steps, asked.device)
        print(whole, flush=True)
        for number in range(asked.first, asked.first + asked.runs):
            if time.monotonic() - began > asked.seconds:
                break
            with disturbed(number, 0.6 * whole["peak"], asked.device):
                found = trained(plan, folder / f"run-{number}", asked.steps, asked.device)
            losses, adapters = apart(folder / f"run-{number}", folder / "whole")
            rows.append({**found, "losses_apart_at_most": losses, "adapter_apart_at_most": adapters})
            print(number, rows[-1], flush=True)
    holds = all(row["losses_apart_at_most"] < 1e-3 and row["steps_with_a_failed_try"] <= asked.steps // 10 for row in rows)
    write(asked.out, {"steps": asked.steps, "rows": rows, "holds": holds}, "measured")
    sys.exit(not holds)


if __name__ == "__main__":
    main()
