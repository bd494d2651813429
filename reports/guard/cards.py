"""One plan on one GPU, on two with the whole base on each, and on two that shard the frozen layers: peaks, seconds, losses.

    python reports/guard/cards.py --out reports/guard/cards.json                         # a host with two GPUs, six minutes
    python reports/guard/cards.py --model tiny-qwen2.5-vl --device cpu --steps 4         # does the script run

Each is the real command, ``budgetft train``, by itself or by ``accelerate launch``. Weights are random and the same in all;
the examples are drawn, as many a step in each. The cap is the planned peak and ``--headroom``, for what connects the GPUs is
not in a plan. Emulated or measured, as each run says of itself.
"""

import argparse
import random
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import SPINE
from harness.arguments import flag, parser
from harness.children import BUDGETFT, KILLED, run
from harness.evidence import write
from harness.small import log, summary
from harness.tables import head, row
from soak import examples_of

from budgetft.api import plan as make_plan
from budgetft.contract import Contract
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_workload
from budgetft.plan import Plan, load_planned_model, read_plan, write_plan
from budgetft.units import format_gib, parse_bytes
from budgetft.workload import Shape

SECONDS = 120
"""Of one run, before it is given up."""
RUNS = {"one process": (1, False), "two, whole base": (2, False), "two, shared base": (2, True)}
KEPT = (
    *("process_peak_bytes", "processes_peak_bytes", "predicted_peak_bytes", "preflight_peak_bytes", "allocated_peak_bytes"),
    *("reserved_peak_bytes", "cap_bytes", "over_budget", "ooms", "alloc_retries", "step_seconds", "samples_per_second"),
    *("skipped_steps", "evidence", "note"),
)


def chosen_plan(asked: argparse.Namespace, folder: Path) -> Plan:
    """The plan with ``--micro-batches`` of them a step, on drawn examples of its heaviest shape, its cap raised."""
    if asked.model:
        shape, contract = Shape(images=((84, 84),), text_tokens=40, supervised_tokens=8), Contract(rank=4, effective_batch=4)
        ledger = folder / "ledger.sqlite3"
        plan = make_plan("v100-16g", asked.model, work=shape, contract=contract, probe="never", ledger=ledger)
        plan = plan.replace(knobs=plan.knobs.replace(micro_batch=2, grad_accum=2))
    else:
        plan = read_plan(asked.plan)
    batch = plan.knobs.micro_batch * asked.micro_batches
    model, contract = load_planned_model(plan), plan.contract.replace(effective_batch=batch)
    shapes = [plan.workload.worst[number % len(plan.workload.worst)] for number in range(2 * batch)]
    drawn = examples_of(shapes, folder / "data", model, contract, random.Random(0))
    return plan.replace(
        gpu=plan.gpu.replace(budget_bytes=plan.estimate.process_peak_bytes + parse_bytes(asked.headroom)),
        contract=contract,
        knobs=plan.knobs.replace(grad_accum=asked.micro_batches),
        workload=measure_workload(drawn, load_processor(model), model, contract),
        data=str(drawn.folder),
    )


def command(processes: int, shared: bool) -> list[str]:
    """What comes before ``train``."""
    if processes == 1:
        return [*BUDGETFT]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    several = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    kind = ["--use_fsdp", "--fsdp_version", "2"] if shared else ["--multi_gpu"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *several, *kind, "--main_process_port", port]
    return [*launcher, "-m", "budgetft"]


def measure(name: str, plan: Plan, folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """Train ``plan`` in the way called ``name``; what came of it."""
    processes, shared = RUNS[name]
    out = folder / name.replace(" ", "-").replace(",", "")
    words = ["--plan", folder / "plan.json", "--out", out, "--weights", "random", "--steps", asked.steps]
    words += ["--device", asked.device, "--save-every", asked.steps, "--ledger", folder / "ledger.sqlite3"]
    row: dict[str, Any] = {"run": name, "processes": processes, "planned_peak_bytes": plan.estimate.process_peak_bytes}
    row["planned_evidence"] = plan.estimate.evidence
    done = run([*command(processes, shared), "train", *words], kill_after=SECONDS)
    if done.code == KILLED:
        return {**row, "error": f"{done.err[-3000:]}\nnot done after {SECONDS} s"}
    row["wall_seconds"] = done.seconds
    row["notes"] = [line for line in done.err.splitlines() if line.startswith(("2 processes", "pre-flight", "warning"))]
    if done.code:
        return {**row, "error": done.err.strip()[-3000:]}
    said, records = summary(out), log(out)
    row |= {key: said[key] for key in KEPT} | {"card": said["stack"]["gpu"], "torch": said["stack"]["torch"]}
    return {**row, "losses": [record["loss"] for record in records], "seconds": [record["seconds"] for record in records]}


def line(each: dict[str, Any], first: dict[str, Any]) -> str:
    if "error" in each:
        return row(each["run"], f"failed: {(each['error'].splitlines() or ['no word'])[-1]}")
    peaks = ", ".join(map(format_gib, each["processes_peak_bytes"]))
    predicted = each["predicted_peak_bytes"] or each["planned_peak_bytes"]
    kind = "predicted" if each["predicted_peak_bytes"] else f"planned, {each['planned_evidence']}"
    losses = [pair for pair in zip(each["losses"], first.get("losses", ()), strict=False) if None not in pair]
    apart = max((abs(a - b) / abs(b) for a, b in losses), default=float("nan"))
    speed = (f"{each['step_seconds']:.3f}", f"{each['samples_per_second']:.2f}")
    found = (f"{format_gib(predicted)} ({kind})", f"{peaks} ({each['evidence']})")
    return row(each["run"], *found, *speed, each["losses"][-1], f"{apart:.1e}")


options = flag(
    parser(__doc__, model=None, steps=20, out=None), "--plan", type=Path, default=SPINE, help="unless --model makes one"
)
flag(options, "--micro-batches", type=int, default=2, help="a step; an odd number does not divide between two")
flag(options, "--headroom", default="2GiB")
flag(options, "--device", choices=("cpu", "cuda"), default="cuda")


def main() -> None:
    asked, rows = options.parse_args(), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plan = chosen_plan(asked, folder)
        write_plan(plan, folder / "plan.json")
        setting = ", ".join(f"{key} {value}" for key, value in plan.knobs.model_dump().items())
        print(f"{plan.model.name}: {setting}; cap {format_gib(plan.gpu.budget_bytes)}")
        print(head("run", "peak of a process", "found, each process", "s a step", "samples/s", "last loss", "losses apart"))
        for name in RUNS:
            rows.append(measure(name, plan, folder, asked))
            print(line(rows[-1], rows[0]), flush=True)
            write(asked.out, rows, rows[-1].get("evidence", plan.estimate.evidence))
    for each in rows:
        print(f"\n{each['run']}: {each.get('wall_seconds', SECONDS):.0f} s in all", *each.get("notes", ()), sep="\n  ")
        print(each.get("error", ""))
    raise SystemExit(any("error" in each for each in rows))


if __name__ == "__main__":
    main()
