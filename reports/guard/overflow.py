"""`budgetft plan` and `budgetft train` of weights that overflow fp16 in five blocks: found before, planned, run as planned.

    PYTHONPATH=.:tests/train python reports/guard/overflow.py --device cuda --out reports/guard/overflow.json     # four minutes
    PYTHONPATH=.:tests/train python reports/guard/overflow.py --device cpu --model tiny-qwen2.5-vl --steps 25 --out o.json

A checkpoint of random weights has three of the language model's MLPs and two of the tower's scaled so that the product
before `down_proj` overflows. Before it was run: the plan names exactly those five, its peak and the predicted one are within
2 % of the run's, the run finds the same five, and no step is skipped after the first 20, in which the gradient scale finds its
place. Exit code 1 when not. Beside it a plan of the same weights without anything to overflow, for what the five blocks cost.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from overflowing import save_overflowing

from budgetft.data.synthetic.sample import write_sample
from budgetft.plan import Plan, read_plan
from budgetft.profiles import profiles_folder

BLOCKS = (
    *("model.language_model.layers.{0}.mlp", "model.language_model.layers.{1}.mlp", "model.language_model.layers.{2}.mlp"),
    *("model.visual.blocks.1.mlp", "model.visual.blocks.2.mlp"),
)
LAYERS = {"tiny-qwen2.5-vl": (0, 1, 1)}
FACTOR = {"tiny-qwen2.5-vl": 1000.0}
"""Of a width whose products are small; elsewhere 256, so that `down_proj` does not vanish in fp16."""
WARM_UP = 20
NEAR = 0.02


def budgetft(*arguments: object, cache: Path) -> None:
    """The command, in a process of its own; its end with an error ends this."""
    environment = {**os.environ, "BUDGETFT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "budgetft", *map(str, arguments)], env=environment, capture_output=True, text=True
    )
    print(done.stderr[-2500:], flush=True)
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode}: {arguments[0]}")


def weights_of(model: str, folder: Path, blocks: tuple[str, ...], device: str) -> Path:
    save_overflowing(model, folder, blocks, factor=FACTOR.get(model, 256.0), device=device)
    for path in (profiles_folder() / "models" / model).iterdir():
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    return folder


def planned(weights: Path, data: Path, out: Path, chosen: argparse.Namespace, cache: Path, *options: str) -> Plan:
    budget = ["--budget", "1GiB"] if chosen.device == "cpu" else []
    fixed = ["--gpu", "v100-16g", "--model", weights, "--data", data, "--effective-batch", 8, "--max-probes", chosen.probes]
    budgetft("plan", *fixed, *budget, *options, "--out", out, cache=cache)
    return read_plan(out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="qwen2.5-vl-3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--probes", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    blocks = tuple(dict.fromkeys(name.format(*LAYERS.get(chosen.model, (2, 11, 30))) for name in BLOCKS))
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary), Path(os.environ.get("BUDGETFT_CACHE", f"{temporary}/cache"))
        data = folder / "data"
        write_sample(data, count=24)
        weights = weights_of(chosen.model, folder / "weights", blocks, chosen.device)
        began = time.monotonic()
        plan = planned(weights, data, folder / "plan.json", chosen, cache)
        seconds = time.monotonic() - began
        options = ["--steps", chosen.steps, "--device", chosen.device, "--save-every", 10 * chosen.steps, "--quiet"]
        budgetft("train", "--plan", folder / "plan.json", "--out", folder / "run", *options, cache=cache)
        summary = json.loads((folder / "run" / "summary.json").read_text())
        rows = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
        shutil.rmtree(weights)
        sound = planned(
            weights_of(chosen.model, folder / "sound", (), chosen.device),
            data,
            folder / "sound.json",
            chosen,
            cache,
            "--probe",
            "never",
        )
        made = report(plan, sound, summary, rows, blocks, seconds)
    chosen.out.write_text(json.dumps(made, indent=1) + "\n")
    print(json.dumps(made, indent=1))
    sys.exit(not made["holds"])


def report(
    plan: Plan, sound: Plan, summary: dict[str, Any], rows: list[dict[str, Any]], blocks: tuple[str, ...], seconds: float
) -> dict[str, Any]:
    """The figures, and whether what was said before holds."""
    found_peak = max(summary["process_peak_bytes"], summary["preflight_peak_bytes"])
    prediction = next(
        (
            each
            for each, outcome in zip(plan.evidence.predictions, plan.evidence.outcomes, strict=True)
            if outcome.knobs == plan.knobs
        ),
        plan.estimate,
    )
    predicted = prediction.process_peak_bytes
    skipped = [row["step"] for row in rows if not row["finite"]]
    holds = {
        "the plan has exactly the five": set(plan.knobs.fp32_blocks) == set(blocks),
        "the run found the same": set(summary["islands"]) == set(blocks),
        "planned peak within 2 %": abs(plan.estimate.process_peak_bytes / found_peak - 1) <= NEAR,
        "predicted peak within 2 %": abs(predicted / found_peak - 1) <= NEAR,
        "no step skipped after warm-up": all(step <= WARM_UP for step in skipped),
    }
    return {
        "note": summary["note"],
        "evidence": summary["evidence"],
        "budget_bytes": plan.gpu.budget_bytes,
        "planned_peak_bytes": plan.estimate.process_peak_bytes,
        "predicted_peak_bytes": predicted,
        "found_peak_bytes": found_peak,
        "planned_over_found": plan.estimate.process_peak_bytes / found_peak - 1,
        "predicted_over_found": predicted / found_peak - 1,
        "samples_per_second": {"planned": plan.estimate.samples_per_second, "run": summary["samples_per_second"]},
        "skipped_steps": skipped,
        "losses": [rows[0]["loss"], rows[-1]["loss"]],
        "knobs": plan.knobs.model_dump(),
        "largest": {block.name: block.largest for block in plan.precision.blocks} if plan.precision else {},
        "without_blocks": {
            "predicted_peak_bytes": sound.estimate.process_peak_bytes,
            "samples_per_second": sound.estimate.samples_per_second,
            "blocks": sound.knobs.fp32_blocks,
            "knobs": sound.knobs.model_dump(),
        },
        "plan_seconds": seconds,
        "checks": holds,
        "holds": all(holds.values()),
    }


if __name__ == "__main__":
    main()
