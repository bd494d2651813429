"""Two runs of one plan on one GPU, without and with `--deterministic`: whether they have the same bits, and what that costs.

    python reports/guard/same_bits.py --out reports/guard/same_bits.json            # on a GPU, four minutes; emulated
    python reports/guard/same_bits.py --device cpu --model tiny-qwen2.5-vl --steps 4 --out s.json

The full-size model with random weights, micro-batches of 2 of one 448x448 image, as a V100 (memory-efficient attention, fp16)
and as an RTX 3090 (flash attention, bf16). Before it was run: with `--deterministic` all bits are the same; without, losses
differ by roundings (some 1e-5 of the loss) or not at all; it costs at most a tenth of the speed. Exit code 1 when bits differ
with it.
"""

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import parser
from harness.children import budgetft
from harness.evidence import write
from harness.small import apart, hand_made, log, summary

from budgetft.contract import Contract
from budgetft.data.synthetic.sample import write_sample
from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.plan import write_plan

CASES: dict[str, tuple[Any, Any]] = {"v100-16g": ("efficient", "fp16"), "rtx3090": ("flash", "bf16")}
CONTRACT = Contract(effective_batch=8, max_pixels=200_704)


def run(plan: Path, out: Path, asked: argparse.Namespace, *more: str) -> Path:
    place = ("--plan", plan, "--out", out, "--weights", "random", "--device", asked.device)
    budgetft("train", *place, "--steps", asked.steps, "--save-every", 10 * asked.steps, "--quiet", *more, env=None).checked()
    return out


def compared(runs: list[Path]) -> dict[str, Any]:
    far = apart(*runs[::-1])
    return {
        "same_bits": far == (0, 0),
        "losses_apart_at_most": far[0],
        "adapter_apart_at_most": far[1],
        "samples_per_second": [median(row["samples_per_second"] for row in log(out)[2:]) for out in runs],
        "process_peak_bytes": [summary(out)["process_peak_bytes"] for out in runs],
    }


options = parser(__doc__, model="qwen2.5-vl-3b", device="cuda", steps=15, out=...)


def main() -> None:
    asked, cases, said = options.parse_args(), {}, {}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(2) as pool:
        folder, model = Path(temporary), load_model(asked.model)
        write_sample(folder / "data", count=24)
        for gpu, (attention, precision) in CASES.items():
            knobs = Knobs(
                micro_batch=2, grad_accum=4, checkpointed_layers=model.layers // 2, attention=attention, pointwise="fused",
                base_precision=precision, allocator="expandable", batching="bucketed",
            )  # fmt: skip
            path = folder / f"{gpu}.json"
            write_plan(hand_made(gpu, model, folder / "data", CONTRACT, knobs), path)
            for name, more in {"as it is": (), "deterministic": ("--deterministic",)}.items():
                outs = [folder / f"{gpu}-{name.replace(' ', '-')}-{number}" for number in (1, 2)]
                runs = list(pool.map(lambda out, path=path, more=more: run(path, out, asked, *more), outs))  # beside each other
                said, cases[f"{gpu}, {name}"] = summary(runs[0]), compared(runs)
                print(gpu, name, cases[f"{gpu}, {name}"], flush=True)
    write(asked.out, {"steps": asked.steps, "cases": cases, "note": said["note"]}, said["evidence"])
    sys.exit(not all(case["same_bits"] for name, case in cases.items() if name.endswith("deterministic")))


if __name__ == "__main__":
    main()
