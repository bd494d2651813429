"""Do plans hold? Trains each for many steps on drawn examples of varied sizes, and holds the peak against the plan's.

    budgetft plan --gpu v100-16g --model qwen2.5-vl-3b --image 448x448 --rank 16 --budget 14GiB --out soak/a.json   # and more
    PYTHONPATH=. python reports/guard/soak.py soak/*.json --steps 1000 --device cuda --out soak/soak.json

The examples of a plan are drawn up to its heaviest shape: a few are exactly that, the others smaller, each in its own way.
A step takes at most two micro-batches (accumulation holds no more with more of them), so that 1,000 steps take minutes.
Weights are random: memory does not depend on their values. Every run is a process of its own under its plan's cap.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

from budgetft.contract import Contract
from budgetft.data.examples import Example, Examples, write_dataset
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_shapes, measure_workload
from budgetft.model import Model
from budgetft.plan import Plan, load_planned_model, read_plan, write_plan
from budgetft.units import format_gib
from budgetft.workload import Shape

WORD = " the"
"""One token wherever it stands, but at the start."""


def picture(size: tuple[int, int], path: Path, draw: random.Random) -> None:
    image = Image.new("RGB", size, tuple(draw.randrange(256) for _ in range(3)))
    brush = ImageDraw.Draw(image)
    for _ in range(8):
        x, y = draw.randrange(size[0]), draw.randrange(size[1])
        fill = tuple(draw.randrange(256) for _ in range(3))
        brush.rectangle((x, y, x + draw.randrange(1, size[0]), y + draw.randrange(1, size[1])), fill=fill)
    image.save(path, quality=90)


def smaller(shape: Shape, step: int, draw: random.Random) -> Shape:
    """A shape with smaller images and less text than ``shape``."""
    images = tuple(
        (
            max(4 * step, round(width * draw.uniform(0.3, 1) / step) * step),
            max(4 * step, round(height * draw.uniform(0.3, 1) / step) * step),
        )
        for width, height in shape.images
    )
    images = tuple((min(a, width), min(b, height)) for (a, b), (width, height) in zip(images, shape.images, strict=True))
    supervised = max(2, round(shape.supervised_tokens * draw.uniform(0.1, 1)))
    prompt = shape.text_tokens - shape.supervised_tokens
    return Shape(images=images, text_tokens=supervised + prompt, supervised_tokens=supervised)


def examples_of(shapes: list[Shape], folder: Path, model: Model, contract: Contract, draw: random.Random) -> Examples:
    """Examples with exactly ``shapes``: words are counted by the processor, not assumed."""
    pictures = folder.with_name(folder.name + "-pictures")
    pictures.mkdir(parents=True)
    names = []
    for number, shape in enumerate(shapes):
        names.append(tuple(f"{number}-{part}.jpg" for part in range(len(shape.images))))
        for name, size in zip(names[-1], shape.images, strict=True):
            picture(size, pictures / name, draw)

    def write(words: list[tuple[int, int]], to: Path) -> Examples:
        rows = [
            Example(id=f"soak-{n}", images=names[n], prompt="the" + WORD * prompt, answer="the" + WORD * answer)
            for n, (prompt, answer) in enumerate(words)
        ]
        return write_dataset(rows, to, images_root=pictures)

    bare = write([(0, 0)] * len(shapes), folder.with_name(folder.name + "-bare"))
    found = measure_shapes(bare, load_processor(model), model, contract)
    words = []
    for wanted, least in zip(shapes, found, strict=True):
        answer = max(0, wanted.supervised_tokens - least.supervised_tokens)
        prompt = wanted.text_tokens - wanted.supervised_tokens - (least.text_tokens - least.supervised_tokens)
        words.append((max(0, prompt), answer))
    return write(words, folder)


def shortened(plan: Plan, folder: Path, examples: int) -> Plan:
    """``plan`` with at most two micro-batches a step, on drawn data up to its own heaviest shape."""
    model, draw = load_planned_model(plan), random.Random(plan.contract.rank)
    accumulate = min(2, plan.knobs.grad_accum)
    contract = plan.contract.replace(effective_batch=plan.knobs.micro_batch * accumulate)
    worst = [plan.workload.worst[n % len(plan.workload.worst)] for n in range(plan.knobs.micro_batch * accumulate)]
    others = [smaller(draw.choice(plan.workload.worst), model.pixel_step, draw) for _ in range(examples)]
    drawn = examples_of(worst + others, folder / "data", model, contract, draw)
    workload = measure_workload(drawn, load_processor(model), model, contract)
    return plan.replace(
        contract=contract, knobs=plan.knobs.replace(grad_accum=accumulate), workload=workload, data=str(drawn.folder)
    )


def soak(path: Path, folder: Path, chosen: argparse.Namespace) -> dict:
    """Train the plan in ``path``; what came of it."""
    plan = read_plan(path)
    write_plan(shortened(plan, folder, chosen.examples), folder / "plan.json")
    command = [sys.executable, "-m", "budgetft", "train", "--plan", folder / "plan.json", "--out", folder / "run"]
    command += ["--weights", "random", "--steps", chosen.steps, "--device", chosen.device, "--save-every", chosen.steps]
    began = time.monotonic()
    done = subprocess.run(
        [*map(str, command), "--ledger", str(folder / "ledger.sqlite3"), "--json", "--quiet"], capture_output=True, text=True
    )
    row = {
        "plan": path.name, "model": plan.model.name, "rank": plan.contract.rank, "max_pixels": plan.contract.max_pixels,
        "knobs": plan.knobs.model_dump(), "budget_bytes": plan.gpu.budget_bytes, "planned_evidence": plan.estimate.evidence,
        "planned_peak_bytes": plan.estimate.process_peak_bytes, "seconds": time.monotonic() - began,
    }  # fmt: skip
    if done.returncode:
        return {**row, "error": done.stderr.strip()[-1500:]}
    summary = json.loads(done.stdout)
    kept = ("steps", "process_peak_bytes", "preflight_peak_bytes", "over_budget", "ooms", "alloc_retries", "skipped_steps",
            "evidence", "note", "samples_per_second", "neighbours", "islands")  # fmt: skip
    return {**row, **{name: summary[name] for name in kept}, "fallbacks": len(summary["fallbacks"])}


def line(row: dict) -> str:
    head = f"{row['plan']:<24}  {row['model']:<16}  {format_gib(row['budget_bytes']):>9}"
    head += f"  {format_gib(row['planned_peak_bytes']):>9} ({row['planned_evidence']})"
    if "error" in row:
        return f"{head}  failed: {row['error'].splitlines()[0] if row['error'] else 'no word'}"
    peak = max(row["process_peak_bytes"], row["preflight_peak_bytes"])
    off = 100 * (peak / row["planned_peak_bytes"] - 1)
    over = "  OVER THE BUDGET" if row["over_budget"] else ""
    return (
        f"{head}  {format_gib(peak):>9} ({row['evidence']})  {off:>+7.2f} %  {row['steps']:>5} steps"
        f"  {row['ooms']} ooms  {row['fallbacks']} fallbacks  {row['seconds']:.0f} s{over}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plans", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--examples", type=int, default=96, help="drawn besides the heaviest")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--out", type=Path, help="JSON, written after every plan")
    chosen = parser.parse_args()
    rows = []
    print("plan, model, budget, planned peak, peak of the run, difference")
    with tempfile.TemporaryDirectory() as temporary:
        for number, path in enumerate(chosen.plans):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            rows.append(soak(path, folder, chosen))
            print(line(rows[-1]), flush=True)
            if chosen.out:
                chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
    bad = [row for row in rows if "error" in row or row["over_budget"] or row["fallbacks"]]
    print(f"{len(rows) - len(bad)} of {len(rows)} plans held for {chosen.steps} steps without running out of memory")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
