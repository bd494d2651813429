"""One plan on one GPU, on two with the whole base on each, and on two that share the frozen layers: peaks, seconds, losses.

    PYTHONPATH=. python reports/guard/cards.py --out reports/guard/cards.json                         # a host with two GPUs
    PYTHONPATH=. python reports/guard/cards.py --model tiny-qwen2.5-vl --device cpu --steps 4         # does the script run

Each is the real command, ``budgetft train``, by itself or by ``accelerate launch``. Weights are random and the same in all;
the examples are drawn, as many a step in each. The cap is the planned peak and ``--headroom``, for what connects the GPUs is
not in a plan. Evidence: as each run says of itself.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from soak import examples_of

from budgetft.api import Shape
from budgetft.api import plan as make_plan
from budgetft.contract import Contract
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_workload
from budgetft.plan import Plan, load_planned_model, read_plan, write_plan
from budgetft.units import format_gib, parse_bytes

FULL_SIZE = Path(__file__).parents[1] / "spine" / "plan-448.json"
SECONDS = 120
"""Of one run, before it is given up."""
RUNS = {"one process": (1, False), "two, whole base": (2, False), "two, shared base": (2, True)}


def chosen_plan(chosen: argparse.Namespace, folder: Path) -> Plan:
    """The plan with ``--micro-batches`` of them a step, on drawn examples of its heaviest shape, its cap raised."""
    if chosen.model:
        shape, contract = Shape(images=((84, 84),), text_tokens=40, supervised_tokens=8), Contract(rank=4, effective_batch=4)
        plan = make_plan(
            "v100-16g", chosen.model, work=shape, contract=contract, probe="never", ledger=folder / "ledger.sqlite3"
        )
        plan = plan.replace(knobs=plan.knobs.replace(micro_batch=2, grad_accum=2))
    else:
        plan = read_plan(chosen.plan)
    batch = plan.knobs.micro_batch * chosen.micro_batches
    model, contract = load_planned_model(plan), plan.contract.replace(effective_batch=batch)
    shapes = [plan.workload.worst[number % len(plan.workload.worst)] for number in range(2 * batch)]
    drawn = examples_of(shapes, folder / "data", model, contract, random.Random(0))
    workload = measure_workload(drawn, load_processor(model), model, contract)
    cap = plan.estimate.process_peak_bytes + parse_bytes(chosen.headroom)
    return plan.replace(
        gpu=plan.gpu.replace(budget_bytes=cap),
        contract=contract,
        knobs=plan.knobs.replace(grad_accum=chosen.micro_batches),
        workload=workload,
        data=str(drawn.folder),
    )


def command(processes: int, shared: bool) -> list[str]:
    """What comes before ``train``."""
    if processes == 1:
        return [sys.executable, "-m", "budgetft"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    several = ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    kind = ["--use_fsdp", "--fsdp_version", "2"] if shared else ["--multi_gpu"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *several, *kind, "--main_process_port", port]
    return [*launcher, "-m", "budgetft"]


def measure(name: str, plan: Plan, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Train ``plan`` in the way called ``name``; what came of it."""
    processes, shared = RUNS[name]
    run = folder / name.replace(" ", "-").replace(",", "")
    options = ["--plan", folder / "plan.json", "--out", run, "--weights", "random", "--steps", chosen.steps]
    options += ["--device", chosen.device, "--save-every", chosen.steps, "--ledger", folder / "ledger.sqlite3"]
    began = time.monotonic()
    row: dict[str, Any] = {"run": name, "processes": processes, "planned_peak_bytes": plan.estimate.process_peak_bytes}
    row["planned_evidence"] = plan.estimate.evidence
    started = subprocess.Popen(
        [*command(processes, shared), "train", *map(str, options)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        _, told = started.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)  # the launcher's processes too: the next run needs their GPUs
        return {**row, "error": f"{started.communicate()[1][-3000:]}\nnot done after {SECONDS} s"}
    row["wall_seconds"] = time.monotonic() - began
    row["notes"] = [line for line in told.splitlines() if line.startswith(("2 processes", "pre-flight", "warning"))]
    if started.returncode:
        return {**row, "error": told.strip()[-3000:]}
    summary = json.loads((run / "summary.json").read_text())
    kept = ("process_peak_bytes", "processes_peak_bytes", "predicted_peak_bytes", "preflight_peak_bytes",
            "allocated_peak_bytes", "reserved_peak_bytes", "cap_bytes", "over_budget", "ooms", "alloc_retries", "step_seconds",
            "samples_per_second", "skipped_steps", "evidence", "note")  # fmt: skip
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    row |= {key: summary[key] for key in kept} | {"card": summary["stack"]["card"], "torch": summary["stack"]["torch"]}
    return {**row, "losses": [record["loss"] for record in records], "seconds": [record["seconds"] for record in records]}


def line(row: dict[str, Any], first: dict[str, Any]) -> str:
    if "error" in row:
        return f"| {row['run']} | failed: {(row['error'].splitlines() or ['no word'])[-1]} |"
    peaks = ", ".join(map(format_gib, row["processes_peak_bytes"]))
    predicted = row["predicted_peak_bytes"] or row["planned_peak_bytes"]
    kind = "predicted" if row["predicted_peak_bytes"] else f"planned, {row['planned_evidence']}"
    losses = [pair for pair in zip(row["losses"], first.get("losses", ()), strict=False) if None not in pair]
    apart = max((abs(a - b) / abs(b) for a, b in losses), default=float("nan"))
    return (
        f"| {row['run']} | {format_gib(predicted)} ({kind}) | {peaks} ({row['evidence']}) | {row['step_seconds']:.3f} |"
        f" {row['samples_per_second']:.2f} | {row['losses'][-1]} | {apart:.1e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, default=FULL_SIZE)
    parser.add_argument("--model", help="a plan for this model, made here without a probe, in place of --plan")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--micro-batches", type=int, default=2, help="a step; an odd number does not divide between two")
    parser.add_argument("--headroom", default="2GiB")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, help="JSON, written after every run")
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        plan = chosen_plan(chosen, folder)
        write_plan(plan, folder / "plan.json")
        setting = ", ".join(f"{key} {value}" for key, value in plan.knobs.model_dump().items())
        print(f"{plan.model.name}: {setting}; cap {format_gib(plan.gpu.budget_bytes)}")
        print("| run | peak of a process | found, each process | s a step | samples/s | last loss | losses apart |")
        print("|---|" + "---|" * 6)
        for name in RUNS:
            rows.append(measure(name, plan, folder, chosen))
            print(line(rows[-1], rows[0]), flush=True)
            if chosen.out:
                chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(f"\n{row['run']}: {row.get('wall_seconds', SECONDS):.0f} s in all", *row.get("notes", ()), sep="\n  ")
        print(row.get("error", ""))
    raise SystemExit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
