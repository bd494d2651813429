"""The whole way through the Python API on a tiny model, without a GPU: python tests/example_api.py FOLDER"""

import sys
from pathlib import Path

from budgetft.api import Contract, NothingFits, Shape, estimate, plan, port, read_plan, train, write_plan

folder = Path(sys.argv[1])
model, contract = "tiny-qwen2.5-vl", Contract(rank=4, alpha=8, effective_batch=4)
work = Shape(images=((56, 56),), text_tokens=40, supervised_tokens=8)

best = estimate("v100-16g", model, work=work, contract=contract, micro_batch=2)
print(f"micro_batch 2: {best.estimate.process_peak_bytes} bytes, {best.estimate.evidence}")

made = plan("v100-16g", model, work=work, contract=contract, probe="never")
write_plan(made, folder / "plan.json")
print(f"plan: micro_batch {made.knobs.micro_batch}, {made.evidence.statement}")

ported = port(read_plan(folder / "plan.json"), "t4", probe="never")
print(f"ported: {ported.plan.gpu.name}, +- {ported.uncertainty_share:.1%}, {len(ported.changes)} knobs changed")

try:
    plan("t4", model, work=work, contract=contract, budget="32MiB", probe="never")
except NothingFits as error:
    print(f"nothing fits: {error.hint}")

if len(sys.argv) > 2:
    summary = train(made, folder / "run", data=sys.argv[2], weights="random", steps=2, device="cpu")
    print(f"trained {summary.steps} steps, peak {summary.process_peak_bytes} bytes")
