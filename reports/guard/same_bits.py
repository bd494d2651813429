"""Two runs of one plan on one GPU, without and with `--deterministic`: whether they have the same bits, and what that costs.

    python reports/guard/same_bits.py --out reports/guard/same_bits.json            # on a GPU, four minutes
    python reports/guard/same_bits.py --device cpu --model tiny-qwen2.5-vl --steps 4 --out s.json

The full-size model with random weights, micro-batches of 2 of one 448x448 image, as a V100 (memory-efficient attention, fp16)
and as an RTX 3090 (flash attention, bf16). Before it was run: with `--deterministic` all bits are the same; without, losses
differ by roundings (some 1e-5 of the loss) or not at all; it costs at most a tenth of the speed. Exit code 1 when bits differ
with it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from budgetft.contract import Contract
from budgetft.data.examples import read_dataset
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_workload
from budgetft.data.synthetic.sample import write_sample
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.outcome import Estimate
from budgetft.plan import Plan, Proof, Target, refer, write_plan

CASES = {"v100-16g": ("efficient", "fp16"), "rtx3090": ("flash", "bf16")}


def plan_of(gpu: str, data: Path, model_name: str) -> Plan:
    """Made by hand: what is compared is two runs of it."""
    attention, precision = CASES[gpu]
    profile, model, contract = load_gpu(gpu), load_model(model_name), Contract(effective_batch=8, max_pixels=200_704)
    estimate = Estimate(
        tensor_peak_bytes=1, reserved_peak_bytes=1, process_peak_bytes=1, step_seconds=None, samples_per_second=None,
        fits=True, terms=(),
    )  # fmt: skip
    knobs = Knobs(
        micro_batch=2, grad_accum=4, checkpointed_layers=model.layers // 2, attention=attention, pointwise="fused",  # type: ignore
        base_precision=precision, allocator="expandable", batching="bucketed",  # type: ignore
    )  # fmt: skip
    workload = measure_workload(read_dataset(data), load_processor(model), model, contract)
    return Plan(
        gpu=Target(name=gpu, budget_bytes=profile.budget_bytes, profile=profile),
        model=refer(model),
        contract=contract,
        knobs=knobs,
        estimate=estimate,
        evidence=Proof(kind="predicted", outcomes=(), confirmed=None, statement="made by hand"),
        baseline=None,
        workload=workload,
        data=str(data),
        environment={},
    )


def run(plan: Path, out: Path, chosen: argparse.Namespace, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "budgetft", "train", "--plan", plan, "--out", out, "--weights", "random"]
    command += ["--steps", chosen.steps, "--device", chosen.device, "--save-every", 10 * chosen.steps, "--quiet", *options]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {
        "losses": [row["loss"] for row in rows],
        "adapter": load_file(out / "adapter" / "adapter_model.safetensors"),
        "samples_per_second": statistics.median(row["samples_per_second"] for row in rows[2:]),
        "summary": json.loads((out / "summary.json").read_text()),
    }


def compared(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    apart = [float((a - two["adapter"][name]).norm() / a.norm().clamp_min(1e-30)) for name, a in one["adapter"].items()]
    losses = [abs(a - b) / abs(a) for a, b in zip(one["losses"], two["losses"], strict=True)]
    return {
        "same_bits": max(apart) == 0 and max(losses) == 0,
        "losses_apart_at_most": max(losses),
        "adapter_apart_at_most": max(apart),
        "samples_per_second": [one["samples_per_second"], two["samples_per_second"]],
        "process_peak_bytes": [each["summary"]["process_peak_bytes"] for each in (one, two)],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="qwen2.5-vl-3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    made: dict[str, Any] = {"steps": chosen.steps, "cases": {}}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        folder = Path(temporary)
        write_sample(folder / "data", count=24)
        for gpu in CASES:
            write_plan(plan_of(gpu, folder / "data", chosen.model), folder / f"{gpu}.json")
            for name, options in {"as it is": (), "deterministic": ("--deterministic",)}.items():
                outs = [folder / f"{gpu}-{name.replace(' ', '-')}-{number}" for number in (1, 2)]
                both = [pool.submit(run, folder / f"{gpu}.json", out, chosen, *options) for out in outs]  # beside each other
                found = [each.result() for each in both]
                made["note"] = found[0]["summary"]["note"]
                made["cases"][f"{gpu}, {name}"] = compared(*found)
                print(gpu, name, made["cases"][f"{gpu}, {name}"], flush=True)
    chosen.out.write_text(json.dumps(made, indent=1) + "\n")
    sys.exit(not all(case["same_bits"] for name, case in made["cases"].items() if name.endswith("deterministic")))


if __name__ == "__main__":
    main()
