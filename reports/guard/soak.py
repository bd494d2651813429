"""Do plans hold? Plans each request, trains the plan for many steps on drawn examples of varied sizes, compares the peaks.

    python reports/guard/soak.py reports/guard/soak.txt --steps 1000 --device cuda --at-once 4 --out FOLDER    # a GPU: hours

A request is a line of options after a name: a GPU, a model, and the heaviest example. A dataset is drawn for it, a few examples
of exactly that shape and others smaller, each in its own way; it is planned for, and trained on. The plan stays in
FOLDER/NAME.json, and is not made again. Weights are random: memory does not depend on their values. Every run is a process of
its own under its plan's cap. Several at once show what the peaks are, not the speeds. Each row says whether it is emulated or
measured.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import comma, flag, parser, there
from harness.children import budgetft
from harness.evidence import write
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

KEPT = (
    *("steps", "process_peak_bytes", "preflight_peak_bytes", "over_budget", "ooms", "alloc_retries", "skipped_steps"),
    *("evidence", "note", "samples_per_second", "other_processes", "fp32_blocks", "stack"),
)
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

    def less(side: int) -> int:
        return min(side, max(4 * step, round(side * draw.uniform(0.3, 1) / step) * step))

    images = tuple((less(width), less(height)) for width, height in shape.images)
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


def request_of(words: list[str]) -> argparse.Namespace:
    """A request's line, with the training settings and the heaviest example that it says."""
    made = flag(argparse.ArgumentParser(), "--image", type=parse_size, required=True)
    for name in ("gpu", "model"):
        flag(made, f"--{name}", required=True)
    for name in ("text-tokens", "supervised-tokens", "rank", "effective-batch"):
        flag(made, f"--{name}", type=int, required=True)
    asked = flag(flag(made, "--budget"), "--images", type=int, default=1).parse_args(words)
    pixels = asked.image[0] * asked.image[1]
    asked.contract = Contract(rank=asked.rank, alpha=2 * asked.rank, effective_batch=asked.effective_batch, max_pixels=pixels)
    images, tokens = (
        (asked.image,) * asked.images,
        {"text_tokens": asked.text_tokens, "supervised_tokens": asked.supervised_tokens},
    )
    asked.heaviest = Shape(images=images, **tokens)
    return asked


def plan_on(data: Path, out: Path, request: argparse.Namespace, asked: argparse.Namespace) -> Plan:
    """The plan in ``out``, made now unless it is there, for the examples in ``data``."""
    if not out.exists():
        words = [
            "--gpu",
            request.gpu,
            "--model",
            request.model,
            "--rank",
            request.rank,
            "--quiet",
            "--data",
            data,
            "--out",
            out,
        ]
        words += ["--effective-batch", request.effective_batch, "--max-pixels", request.contract.max_pixels]
        words += ["--budget", request.budget] if request.budget else []
        words += ["--max-probes", asked.max_probes, "--ledger", out.with_suffix(".sqlite3"), "--probe", asked.probe]
        done = budgetft("plan", *words, env=None)
        if done.code:
            raise RuntimeError(f"no plan: {done.err.strip()[-1500:]}")
    return read_plan(out)


def soak(name: str, words: list[str], folder: Path, asked: argparse.Namespace) -> dict:
    """Draw, plan and train; what came of it."""
    began, request, path = time.monotonic(), request_of(words), asked.out / f"{name}.json"
    try:
        data = drawn_data(request.heaviest, folder, load_model(request.model), request.contract, asked.examples)
        plan = plan_on(data.folder, path, request, asked)
    except (RuntimeError, BudgetftError) as error:
        return {"plan": name, "error": str(error)}
    planned = time.monotonic()
    place = ["--plan", path, "--data", data.folder, "--out", folder / "run", "--ledger", folder / "ledger.sqlite3"]
    fixed = ["--weights", "random", "--steps", asked.steps, "--device", asked.device, "--save-every", asked.steps]
    done = budgetft("train", *place, *fixed, "--json", "--quiet", env=None)
    row = {
        "plan": name, "model": plan.model.name, "gpu": plan.gpu.name, "rank": plan.contract.rank, "images": request.images,
        "image": list(request.image), "knobs": plan.knobs.model_dump(), "budget_bytes": plan.gpu.budget_bytes,
        "planned_evidence": plan.estimate.evidence, "planned_peak_bytes": plan.estimate.process_peak_bytes,
        "planning_seconds": planned - began, "seconds": time.monotonic() - planned,
    }  # fmt: skip
    if done.code:
        return {**row, "error": done.err.strip()[-1500:]}
    summary = json.loads(done.out)
    return {**row, **{name: summary[name] for name in KEPT}, "fallbacks": len(summary["fallbacks"])}


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


options = flag(parser(__doc__, steps=1000, device="auto", out=...), "requests", type=there)
flag(options, "--examples", type=int, default=96, help="drawn besides the heaviest")
flag(options, "--max-probes", type=int, default=5)
flag(options, "--probe", choices=("auto", "always"), default="auto", help="always: plan with the CPU's meter too")
flag(options, "--at-once", type=int, default=1)
flag(options, "--only", type=comma, help="names, separated by commas")


def main() -> None:
    asked, rows, runs = options.parse_args(), [], []
    print("plan, model, budget, planned peak, peak of the run, difference", flush=True)
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(asked.at_once) as pool:
        for name, words in read_requests(asked.requests):
            if not asked.only or name in asked.only:
                (folder := Path(temporary) / name).mkdir()
                runs.append(pool.submit(soak, name, words, folder, asked))
        for run in as_completed(runs):
            rows.append(run.result())
            print(line(rows[-1]), flush=True)
            write(asked.out / "soak.json", rows, rows[-1].get("evidence", "predicted"))
    bad = [row for row in rows if "error" in row or row["over_budget"] or row["fallbacks"]]
    print(f"{len(rows) - len(bad)} of {len(rows)} plans held for {asked.steps} steps without running out of memory")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
