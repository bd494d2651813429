"""Do plans hold? Plans each request, trains the plan for many steps on drawn examples of varied sizes, compares the peaks.

    PYTHONPATH=. python reports/guard/soak.py reports/guard/soak.txt --steps 1000 --device cuda --at-once 4 --out FOLDER

A request is a line of options after a name: a GPU, a model, and the heaviest example. A dataset is drawn for it, a few
examples of exactly that shape and others smaller, each in its own way; it is planned for, and trained on. The plan stays in
FOLDER/NAME.json, and is not made again. Weights are random: memory does not depend on their values. Every run is a process
of its own under its plan's cap. Several at once show what the peaks are, not the speeds.
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
from budgetft.data.stats import measure_shapes
from budgetft.errors import BudgetftError
from budgetft.model import Model, load_model
from budgetft.plan import Plan, read_plan
from budgetft.units import format_gib, parse_size
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


def drawn_data(shape: Shape, folder: Path, model: Model, contract: Contract, count: int) -> Examples:
    """A few examples of exactly ``shape`` and ``count`` smaller ones, drawn anew for every rank."""
    draw = random.Random(contract.rank)
    shapes = [shape] * contract.effective_batch + [smaller(shape, model.pixel_step, draw) for _ in range(count)]
    draw.shuffle(shapes)
    with ONE_AT_A_TIME:
        return examples_of(shapes, folder / "data", model, contract, draw)


def options_of(words: list[str]) -> argparse.Namespace:
    """A request's line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpu", required=True)
    parser.add_argument("--budget")
    parser.add_argument("--model", required=True)
    parser.add_argument("--image", type=parse_size, required=True)
    parser.add_argument("--images", type=int, default=1)
    for name in ("text-tokens", "supervised-tokens", "rank", "effective-batch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args(words)


def plan_on(data: Path, out: Path, asked: argparse.Namespace, chosen: argparse.Namespace) -> Plan:
    """The plan in ``out``, made now unless it is there, for the examples in ``data``."""
    if not out.exists():
        words = ["plan", "--data", data, "--out", out, "--gpu", asked.gpu, "--model", asked.model, "--rank", asked.rank]
        words += ["--effective-batch", asked.effective_batch, "--max-pixels", asked.image[0] * asked.image[1], "--quiet"]
        words += ["--budget", asked.budget] if asked.budget else []
        words += ["--max-probes", chosen.max_probes, "--ledger", out.with_suffix(".sqlite3"), "--probe", chosen.probe]
        done = budgetft(words)
        if done.returncode:
            raise RuntimeError(f"no plan: {done.stderr.strip()[-1500:]}")
    return read_plan(out)


def budgetft(words: list) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "budgetft", *map(str, words)], capture_output=True, text=True)


def soak(name: str, words: list[str], folder: Path, chosen: argparse.Namespace) -> dict:
    """Draw, plan and train; what came of it."""
    began, asked = time.monotonic(), options_of(words)
    model = load_model(asked.model)
    contract = Contract(
        rank=asked.rank, alpha=2 * asked.rank, effective_batch=asked.effective_batch, max_pixels=asked.image[0] * asked.image[1]
    )
    heaviest = Shape(
        images=(asked.image,) * asked.images, text_tokens=asked.text_tokens, supervised_tokens=asked.supervised_tokens
    )
    try:
        data = drawn_data(heaviest, folder, model, contract, chosen.examples)
        plan = plan_on(data.folder, chosen.out / f"{name}.json", asked, chosen)
    except (RuntimeError, BudgetftError) as error:
        return {"plan": name, "error": str(error)}
    planned = time.monotonic()
    words = [
        "train",
        "--plan",
        chosen.out / f"{name}.json",
        "--data",
        data.folder,
        "--out",
        folder / "run",
        "--json",
        "--quiet",
    ]
    words += ["--weights", "random", "--steps", chosen.steps, "--device", chosen.device, "--save-every", chosen.steps]
    done = budgetft([*words, "--ledger", folder / "ledger.sqlite3"])
    row = {
        "plan": name, "model": plan.model.name, "gpu": plan.gpu.name, "rank": plan.contract.rank, "images": asked.images,
        "image": list(asked.image), "knobs": plan.knobs.model_dump(), "budget_bytes": plan.gpu.budget_bytes,
        "planned_evidence": plan.estimate.evidence, "planned_peak_bytes": plan.estimate.process_peak_bytes,
        "planning_seconds": planned - began, "seconds": time.monotonic() - planned,
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
    parser.add_argument("--probe", choices=("auto", "always"), default="auto", help="always: plan with the CPU's meter too")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--only", type=lambda text: text.split(","), help="names, separated by commas")
    parser.add_argument("--out", type=Path, required=True, help="folder of the plans and of soak.json, written after every run")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    rows = []
    print("plan, model, budget, planned peak, peak of the run, difference", flush=True)
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(chosen.at_once) as pool:
        runs = []
        for name, words in read_requests(chosen.requests):
            if chosen.only and name not in chosen.only:
                continue
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
