"""Do plans hold? Plans each request, trains the plan for many steps on drawn examples of varied sizes, compares the peaks.

    PYTHONPATH=. python reports/guard/soak.py reports/guard/soak.txt --steps 1000 --device cuda --at-once 4 --out FOLDER

A request is a line of ``budgetft plan`` options after a name; its plan stays in FOLDER/NAME.json, and is not made again. The
examples of a run are drawn up to the plan's heaviest shape: a few are exactly that, the others smaller, each in its own way.
A step takes at most two micro-batches (accumulation holds no more with more of them), so that 1,000 steps take minutes.
Weights are random: memory does not depend on their values. Every run is a process of its own under its plan's cap. Several
at once show what the peaks are, not the speeds.
"""

import argparse
import json
import random
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
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
ONE_AT_A_TIME = threading.Lock()
"""transformers cannot be imported by two threads at once."""


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


def make_plan(name: str, words: list[str], chosen: argparse.Namespace) -> Path:
    """The file of the plan called ``name``, made now unless it is there."""
    path = chosen.out / f"{name}.json"
    if not path.exists():
        command = [
            sys.executable,
            "-m",
            "budgetft",
            "plan",
            *words,
            "--out",
            path,
            "--max-probes",
            chosen.max_probes,
            "--quiet",
        ]
        command += ["--ledger", chosen.out / f"{name}.sqlite3"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"no plan: {done.stderr.strip()[-1500:]}")
    return path


def soak(name: str, words: list[str], folder: Path, chosen: argparse.Namespace) -> dict:
    """Plan and train; what came of it."""
    began = time.monotonic()
    try:
        plan = read_plan(make_plan(name, words, chosen))
    except RuntimeError as error:
        return {"plan": name, "error": str(error)}
    planned = time.monotonic()
    with ONE_AT_A_TIME:
        write_plan(shortened(plan, folder, chosen.examples), folder / "plan.json")
    command = [sys.executable, "-m", "budgetft", "train", "--plan", folder / "plan.json", "--out", folder / "run"]
    command += ["--weights", "random", "--steps", chosen.steps, "--device", chosen.device, "--save-every", chosen.steps]
    command += ["--ledger", folder / "ledger.sqlite3", "--json", "--quiet"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    row = {
        "plan": name, "model": plan.model.name, "gpu": plan.gpu.name, "rank": plan.contract.rank,
        "images": [list(size) for size in plan.workload.worst[0].images], "knobs": plan.knobs.model_dump(),
        "budget_bytes": plan.gpu.budget_bytes, "planned_evidence": plan.estimate.evidence,
        "planned_peak_bytes": plan.estimate.process_peak_bytes, "planning_seconds": planned - began,
        "seconds": time.monotonic() - planned,
    }  # fmt: skip
    if done.returncode:
        return {**row, "error": done.stderr.strip()[-1500:]}
    summary = json.loads(done.stdout)
    kept = ("steps", "process_peak_bytes", "preflight_peak_bytes", "over_budget", "ooms", "alloc_retries", "skipped_steps",
            "evidence", "note", "samples_per_second", "neighbours", "islands", "stack")  # fmt: skip
    return {**row, **{name: summary[name] for name in kept}, "fallbacks": len(summary["fallbacks"])}


def line(row: dict) -> str:
    if "model" not in row:
        return f"{row['plan']:<24}  {row['error'].splitlines()[-1]}"
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


def read_requests(path: Path) -> list[tuple[str, list[str]]]:
    lines = [shlex.split(text, comments=True) for text in path.read_text().splitlines()]
    return [(words[0], words[1:]) for words in lines if words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requests", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--examples", type=int, default=96, help="drawn besides the heaviest")
    parser.add_argument("--max-probes", type=int, default=5)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder of the plans and of soak.json, written after every run")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = []
    print("plan, model, budget, planned peak, peak of the run, difference", flush=True)
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(chosen.at_once) as pool:
        runs = []
        for name, words in read_requests(chosen.requests):
            (folder := Path(temporary) / name).mkdir()
            runs.append(pool.submit(soak, name, words, folder, chosen))
        for run in as_completed(runs):
            rows.append(run.result())
            print(line(rows[-1]), flush=True)
            (chosen.out / "soak.json").write_text(json.dumps(rows, indent=1) + "\n")
    bad = [row for row in rows if "error" in row or row["over_budget"] or row["fallbacks"]]
    print(f"{len(rows) - len(bad)} of {len(rows)} plans held for {chosen.steps} steps without running out of memory")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
