"""`budgetft plan` and `budgetft train` of weights that overflow fp16 in five blocks: found before, planned, run as planned.

    python reports/guard/overflow.py --out reports/guard/overflow.json     # on a GPU, four minutes; emulated
    python reports/guard/overflow.py --device cpu --model tiny-qwen2.5-vl --steps 25 --out o.json

A checkpoint of random weights has three of the language model's MLPs and two of the tower's scaled so that the product
before `down_proj` overflows. Before it was run: the plan names exactly those five, its peak and the predicted one are within
2 % of the run's, the run finds the same five, and no step is skipped after the first 20, in which the gradient scale finds its
place. Exit code 1 when not. Beside it a plan of the same weights without anything to overflow, for what the five blocks cost.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import small
from harness.arguments import flag, parser
from harness.children import budgetft, environment
from harness.evidence import write

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


def ran(*words: object, cache: Path) -> None:
    """The command, in a process of its own; its end with an error ends this."""
    done = budgetft(*words, env=environment(cache))
    print(done.err[-2500:], flush=True)
    done.checked()


def weights_of(model: str, folder: Path, blocks: tuple[str, ...], device: str) -> Path:
    save_overflowing = small.tests("overflowing").save_overflowing
    save_overflowing(model, folder, blocks, factor=FACTOR.get(model, 256.0), device=device)
    for path in (profiles_folder() / "models" / model).iterdir():
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    return folder


def planned(weights: Path, data: Path, out: Path, asked: argparse.Namespace, cache: Path, *more: str) -> Plan:
    budget = ["--budget", "1GiB"] if asked.device == "cpu" else []
    fixed = ["--gpu", "v100-16g", "--model", weights, "--data", data, "--effective-batch", 8, "--max-probes", asked.probes]
    ran("plan", *fixed, *budget, *more, "--out", out, cache=cache)
    return read_plan(out)


def report(plan: Plan, sound: Plan, run: Path, blocks: tuple[str, ...], seconds: float) -> dict[str, Any]:
    """The figures, and whether what was said before holds."""
    summary, rows = small.summary(run), small.log(run)
    found = max(summary["process_peak_bytes"], summary["preflight_peak_bytes"])
    both = zip(plan.evidence.predictions, plan.evidence.outcomes, strict=True)
    said = next((each for each, outcome in both if outcome.knobs == plan.knobs), plan.estimate).process_peak_bytes
    planned_peak, skipped = plan.estimate.process_peak_bytes, [row["step"] for row in rows if not row["finite"]]
    holds = {
        "the plan has exactly the five": set(plan.knobs.fp32_blocks) == set(blocks),
        "the run found the same": set(summary["fp32_blocks"]) == set(blocks),
        "planned peak within 2 %": abs(planned_peak / found - 1) <= NEAR,
        "predicted peak within 2 %": abs(said / found - 1) <= NEAR,
        "no step skipped after warm-up": all(step <= WARM_UP for step in skipped),
    }
    return {
        "note": summary["note"],
        "evidence": summary["evidence"],
        "budget_bytes": plan.gpu.budget_bytes,
        "planned_peak_bytes": planned_peak,
        "predicted_peak_bytes": said,
        "found_peak_bytes": found,
        "planned_over_found": planned_peak / found - 1,
        "predicted_over_found": said / found - 1,
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


options = parser(__doc__, model="qwen2.5-vl-3b", device="cuda", steps=60, out=...)
flag(options, "--probes", type=int, default=6)


def main() -> None:
    asked = options.parse_args()
    blocks = tuple(dict.fromkeys(name.format(*LAYERS.get(asked.model, (2, 11, 30))) for name in BLOCKS))
    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary), Path(os.environ.get("BUDGETFT_CACHE", f"{temporary}/cache"))
        data, path = folder / "data", folder / "plan.json"
        write_sample(data, count=24)
        weights = weights_of(asked.model, folder / "weights", blocks, asked.device)
        began = time.monotonic()
        plan = planned(weights, data, path, asked, cache)
        seconds = time.monotonic() - began
        words = ["--steps", asked.steps, "--device", asked.device, "--save-every", 10 * asked.steps, "--quiet"]
        ran("train", "--plan", path, "--out", folder / "run", *words, cache=cache)
        shutil.rmtree(weights)
        weights = weights_of(asked.model, folder / "sound", (), asked.device)
        sound = planned(weights, data, folder / "sound.json", asked, cache, "--probe", "never")
        made = report(plan, sound, folder / "run", blocks, seconds)
    write(asked.out, made, made["evidence"])
    print(json.dumps(made, indent=1))
    sys.exit(not made["holds"])


if __name__ == "__main__":
    main()
