"""Does a plan's LoRA run learn to tell what is seen? Made-up winter streets, a base that only saw days.

    python reports/convergence/converge.py      # half an hour of one core, no GPU; measured

Every step is a budgetft command, printed as it runs, but the base model (base.py). What is in the work folder is kept,
so that an interrupted run goes on. Writes results.json, table.md and curve.png beside this file.
"""

import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser
from harness.children import BUDGETFT, budgetft, run
from harness.small import log, summary
from harness.tables import head, row
from pictures import MAX_SIDE, SIZE
from wording import facts_of

from budgetft.data.examples import Example, read_dataset, write_dataset
from budgetft.evaluate.predictions import read_predictions
from budgetft.report.axes import Axes, legend
from budgetft.report.drawing import Drawing

HERE = Path(__file__).parent
SYNTHETIC = ("--style", "winter", "--scenarios", "240", "--seed", "2", "--split-fractions", "1,0,0")
VIDEO = ("--size", f"{SIZE[0]}x{SIZE[1]}", "--seconds", "2", "--fps", "5")
FRAMES = ("--split", "train", "--tasks", "captions", "--frames", "crop", "--max-side", str(MAX_SIDE), "--no-external")
BASE = ("--tower-steps", "550", "--steps", "600")
PLAN = ("--gpu", "rtx3060-12g", "--rank", "32", "--effective-batch", "8", "--learning-rate", "4e-3", "--probe", "never")
GENERATE = ("--batch", "128", "--max-new-tokens", "200", "--device", "cpu")
STEPS = (60, 120, 240, 480)
"""Of one run: its checkpoints on the way, and its end."""
SAVE_EVERY = 60
HOLDOUT = "0.07"
SHOWN_FACTS = ("car", "top", "trousers", "side", "where", "moving", "noticed", "crossing", "weather", "time")


def said(*words: object) -> str:
    """What a budgetft command prints, its words and what it says shown."""
    print("$ budgetft", *words, file=sys.stderr, flush=True)
    return budgetft(*words, env=None, live=True).checked().out


def prepare(work: Path) -> None:
    """The winter synthetic data and its datasets, the base model and the plan."""
    if not (work / "twin").exists():
        said("data", "synthetic", work / "twin", *SYNTHETIC, *VIDEO)
    if not (work / "winter").exists():
        said("data", "wts", work / "twin", "--out", work / "winter", *FRAMES, "--holdout", HOLDOUT)
    if not (work / "winter-swapped").exists():
        swap_pictures(work / "winter-holdout", work / "winter-swapped")
    if not (work / "base/model.safetensors").exists():
        print(f"$ {HERE.name}/base.py", work / "base", *BASE, file=sys.stderr, flush=True)
        print(run([sys.executable, HERE / "base.py", work / "base", *BASE], live=True).checked().out, file=sys.stderr)
    if not (work / "plan.json").exists():
        said("plan", "--model", work / "base", "--data", work / "winter", *PLAN, "--out", work / "plan.json")


def swap_pictures(data: Path, out: Path) -> None:
    """The dataset ``data`` with the pictures of another scenario in every example, of the same phase, actor and view."""
    alike: dict[tuple[Any, ...], list[Example]] = {}
    for one in sorted(read_dataset(data), key=lambda one: (one.scenario or "", one.id)):
        alike.setdefault((one.actor, one.phase, one.view), []).append(one)
    swapped = [one.replace(images=group[place - 1].images) for group in alike.values() for place, one in enumerate(group)]
    write_dataset(swapped, out, images_root=data)


def train(work: Path) -> None:
    """The plan's run; adapters that it saved after some of ``STEPS`` are kept as runs of their own, ``work/at-N``."""
    out = work / "run"
    if not (out / "summary.json").exists():
        words = ["train", "--plan", str(work / "plan.json"), "--out", str(out), "--device", "cpu", "--quiet"]
        words += ["--steps", str(STEPS[-1]), "--save-every", str(SAVE_EVERY)]
        words += ["--resume"] if (out / "run.json").exists() else []
        print("$ budgetft", *words, file=sys.stderr, flush=True)
        process = subprocess.Popen([*BUDGETFT, *words], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            keep_adapters(work)
            time.sleep(0.2)
        if process.returncode:
            sys.exit(f"the run failed with exit status {process.returncode}")
    keep_adapters(work)


def keep_adapters(work: Path) -> None:
    """Copy what the newest checkpoints have of ``STEPS``: older checkpoints are dropped by the run."""
    out = work / "run"
    for steps in STEPS:
        saved, kept, partial = out / f"checkpoints/step-{steps}/adapter", work / f"at-{steps}", work / f".at-{steps}"
        if saved.is_dir() and not kept.exists():
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(saved, partial / "adapter")
            for name in ("plan.json", "run.json"):
                shutil.copy(out / name, partial / name)
            partial.rename(kept)


def score(work: Path, name: str, data: str, *source: str | Path) -> dict[str, Any]:
    """What ``source`` scores on the dataset ``data``; its predictions are kept as ``name``."""
    predictions, held = work / f"{name}.jsonl", work / data
    said("predict", *source, "--data", held, "--out", predictions, *GENERATE)
    found = json.loads(said("evaluate", predictions, "--data", held, "--json"))
    captions = found["captions"]
    parts = {metric: round(value, 4) for metric, value in captions["scores"].items()}
    texts = {each.text for each in read_predictions(predictions)}
    told = {"captions": captions["captions"], "length_ratio": captions["length_ratio"], "distinct": len(texts)}
    shares = right_facts(work, name).values()
    return {"s1": round(found["s1"], 2), **parts, **told, "facts": round(sum(shares) / len(shares), 1)}


def right_facts(work: Path, name: str) -> dict[str, float]:
    """Percent of the facts in the held-out captions that the predictions ``name`` tell rightly, by kind of fact."""
    texts = {each.id: each.text for each in read_predictions(work / f"{name}.jsonl")}
    told = [(facts_of(one.answer), facts_of(texts[one.id])) for one in read_dataset(work / "winter-holdout")]
    shares = {}
    for fact in SHOWN_FACTS:
        asked = [(true[fact], found.get(fact)) for true, found in told if fact in true]
        shares[fact] = round(100 * sum(true == found for true, found in asked) / len(asked), 1)
    return shares


def commonest(work: Path) -> dict[str, float]:
    """Percent of the same facts that are right when the commonest of the held-out captions is always told."""
    told = [facts_of(one.answer) for one in read_dataset(work / "winter-holdout")]
    counts = {fact: Counter(true[fact] for true in told if fact in true) for fact in SHOWN_FACTS}
    return {fact: round(100 * max(count.values()) / count.total(), 1) for fact, count in counts.items()}


def measure(work: Path) -> dict[str, Any]:
    """Base, the adapters along the run, and the last adapter on pictures of other scenarios."""
    plan, last = work / "plan.json", f"adapter-{STEPS[-1]}"
    base = json.loads((work / "base/base_log.json").read_text())
    train(work)
    losses = {each["step"]: each["loss"] for each in log(work / "run")}
    rows = [{"steps": 0, **score(work, "base", "winter-holdout", "--plan", plan)}]
    for steps in STEPS:
        near = [losses[step] for step in range(steps - 9, steps + 1)]
        found = score(work, f"adapter-{steps}", "winter-holdout", "--run", work / f"at-{steps}")
        rows.append({"steps": steps, **found, "loss": round(sum(near) / len(near), 4)})
    swapped = score(work, "swapped", "winter-swapped", "--run", work / f"at-{STEPS[-1]}")
    first, texts = ({each.id: each.text for each in read_predictions(work / f"{name}.jsonl")} for name in ("base", last))
    shown = list(read_dataset(work / "winter-holdout"))[:: max(1, len(texts) // 2)][:2]
    told = [{"truth": one.answer, "base": first[one.id], "adapter": texts[one.id]} for one in shown]
    planned = json.loads(plan.read_text())
    return {
        "base": {name: base[name] for name in ("parameters", "pictures", "seconds", "sees", "losses")},
        "contract": planned["contract"],
        "knobs": planned["knobs"],
        "train_examples": len(read_dataset(work / "winter")),
        "run_seconds": round(summary(work / "run")["train_seconds"]),
        "rows": rows,
        "swapped": swapped,
        "facts": {"commonest": commonest(work), "adapter": right_facts(work, last), "swapped": right_facts(work, "swapped")},
        "samples": told,
    }


def table(results: dict[str, Any]) -> str:
    """The scores as a Markdown table, then the facts in the captions, then what the base sees when it is asked."""
    meteor = next(name for name in results["rows"][0] if name.startswith("meteor"))
    names = ("s1", "bleu", meteor, "rouge_l", "cider", "distinct")
    titles = ("", "S1", "BLEU-4", meteor, "ROUGE-L", "CIDEr", "distinct texts", "facts right, %", "loss")
    lines = [head(*titles).replace("|  |", "| |", 1)]
    rows = [("base" if not each["steps"] else f"adapter, {each['steps']} steps", each) for each in results["rows"]]
    for title, each in [*rows, ("the last, pictures swapped", results["swapped"])]:
        lines.append(row(title, *(each[name] for name in names), each["facts"], each.get("loss", "")))
    facts, sees = results["facts"], results["base"]["sees"]
    lines += ["", head("facts told rightly, %", "last adapter", "pictures swapped", "always the commonest")]
    lines += [row(fact, share, facts["swapped"][fact], facts["commonest"][fact]) for fact, share in facts["adapter"].items()]
    lines += ["", head("base, asked for the fact, % right", "day", "winter")]
    lines += [row(fact, share, sees["winter"][fact]) for fact, share in sees["day"].items()]
    return "\n".join(lines) + "\n"


def curve(results: dict[str, Any]) -> Drawing:
    """S1 over the steps of the run, base and control included."""
    drawing = Drawing(640, 300, "S1 on held-out scenarios over the steps of the LoRA run")
    shown = [("plan", "S1, held-out winter scenarios (measured)"), ("bad", "the last, pictures swapped")]
    top = legend(drawing, shown, 16) + 22
    rows, swapped = results["rows"], results["swapped"]["s1"]
    highest = max(each["s1"] for each in rows) * 1.15
    axes = Axes(drawing=drawing, left=40, top=top, right=628, bottom=260, x_range=(0, rows[-1]["steps"]), y_range=(0, highest))
    axes.grid_y("S1")
    axes.grid_x("optimizer steps")
    axes.level(swapped, "bad")
    points = [(axes.x(each["steps"]), axes.y(each["s1"])) for each in rows]
    drawing.line(points, "plan", width=2)
    for (x, y), each in zip(points, rows, strict=True):
        drawing.dot(x, y, "plan")
        drawing.text(x, y - 9, f"{each['s1']:.1f}", anchor="end" if x > 600 else "start", size=11)
    return drawing


options = flag(parser(__doc__), "--work", type=Path, default=Path("runs/convergence"), help="what is made on the way")


def main() -> None:
    work = options.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    prepare(work)
    results = measure(work)
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "table.md").write_text(table(results))
    curve(results).write_png(HERE / "curve.png")
    print(table(results))


if __name__ == "__main__":
    main()
