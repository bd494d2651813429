"""Does a plan's LoRA run learn? Made-up winter streets, a base that only saw days: python reports/convergence/converge.py

Every step is a budgetft command, printed as it runs, but the base model (base.py). What is in the work folder is kept,
so that an interrupted run goes on. Writes results.json, table.md and curve.png beside this file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from wording import facts_of

from budgetft.data.examples import read_dataset
from budgetft.evaluate.predictions import Prediction, read_predictions
from budgetft.report.axes import Axes, legend
from budgetft.report.drawing import Drawing

HERE = Path(__file__).parent
VIDEO = ("--size", "224x168", "--seconds", "2", "--fps", "5", "--split-fractions", "1,0,0")
FRAMES = ("--split", "train", "--tasks", "captions", "--max-side", "112")
BASE = ("--steps", "250", "--batch", "16")
PLAN = ("--gpu", "rtx3060-12g", "--rank", "32", "--effective-batch", "4", "--learning-rate", "4e-3", "--probe", "never")
GENERATE = ("--batch", "128", "--max-new-tokens", "160", "--device", "cpu")
STEPS = (480,)
SHOWN_FACTS = ("weather", "time", "crossing", "side", "where", "moving", "noticed", "car", "top", "gender")


def run(*command: str) -> str:
    """The standard output of ``command``, which is shown."""
    print("$", " ".join(command), file=sys.stderr, flush=True)
    return subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, check=True).stdout


def budgetft(*command: str | Path) -> str:
    """The same of a budgetft command."""
    return run("-m", "budgetft", *map(str, command))


def prepare(work: Path) -> None:
    """Two twins of other colours and cameras, their datasets, the base model and the plan."""
    for name, style, scenarios, seed in (("a", "day", 240, 1), ("b", "winter", 90, 2)):
        twin = work / f"twin-{name}"
        if not twin.exists():
            budgetft("data", "twin", twin, "--style", style, "--scenarios", str(scenarios), "--seed", str(seed), *VIDEO)
        if not (work / name).exists():
            cut = ("--cameras", "all") if name == "a" else ("--holdout", "0.15")
            budgetft("data", "wts", twin, "--out", work / name, *FRAMES, *cut)
    if not (work / "base/model.safetensors").exists():
        run(str(HERE / "base.py"), str(work / "a"), str(work / "base"), *BASE)
    if not (work / "plan.json").exists():
        budgetft("plan", "--model", work / "base", "--data", work / "b", *PLAN, "--out", work / "plan.json")


def score(work: Path, name: str, *source: str | Path) -> dict[str, Any]:
    """What ``source`` scores on the held-out scenarios; without a source its predictions are there."""
    predictions, held = work / f"{name}.jsonl", work / "b-holdout"
    if source:
        budgetft("predict", *source, "--data", held, "--out", predictions, *GENERATE)
    found = json.loads(budgetft("evaluate", predictions, "--data", held, "--json"))
    captions = found["captions"]
    parts = {metric: round(value, 4) for metric, value in captions["scores"].items()}
    return {"s1": round(found["s1"], 2), **parts, "captions": captions["captions"], "length_ratio": captions["length_ratio"]}


def swap_scenarios(work: Path, name: str) -> str:
    """Predictions ``name``, each given to the next scenario of the same phase, actor and view: right words, wrong street."""
    rows, swapped = read_predictions(work / f"{name}.jsonl"), f"{name}-swapped"
    alike: dict[tuple[Any, ...], list[Prediction]] = {}
    for row in sorted(rows, key=lambda row: (row.scenario or "", row.id)):
        alike.setdefault((row.actor, row.phase, row.view), []).append(row)
    moved = [one.replace(text=group[index - 1].text) for group in alike.values() for index, one in enumerate(group)]
    lines = (one.model_dump_json(exclude_none=True) + "\n" for one in moved)
    (work / f"{swapped}.jsonl").write_text("".join(lines))
    return swapped


def right_facts(work: Path, name: str) -> dict[str, float]:
    """Percent of the facts in the held-out captions that the predictions ``name`` tell rightly, by kind of fact."""
    texts = {row.id: row.text for row in read_predictions(work / f"{name}.jsonl")}
    told = [(facts_of(one.answer), facts_of(texts[one.id])) for one in read_dataset(work / "b-holdout")]
    shares = {}
    for fact in SHOWN_FACTS:
        asked = [(true[fact], found.get(fact)) for true, found in told if fact in true]
        shares[fact] = round(100 * sum(true == found for true, found in asked) / len(asked), 1)
    return shares


def measure(work: Path) -> dict[str, Any]:
    """Base, adapters of more and more steps, and the last adapter's captions with the streets swapped."""
    plan = work / "plan.json"
    base = json.loads((work / "base/base_log.json").read_text())
    rows = [{"steps": 0, **score(work, "base", "--plan", plan)}]
    for steps in STEPS:
        out = work / f"run-{steps}"
        if not (out / "summary.json").exists():
            budgetft("train", "--plan", plan, "--out", out, "--steps", str(steps), "--device", "cpu")
        summary = json.loads((out / "summary.json").read_text())
        losses = {"first_loss": round(summary["first_loss"], 4), "last_loss": round(summary["last_loss"], 4)}
        rows.append({"steps": steps, **score(work, f"adapter-{steps}", "--run", out), **losses})
    last = f"adapter-{STEPS[-1]}"
    swapped = swap_scenarios(work, last)
    samples = {row.id: row.text for row in read_predictions(work / f"{last}.jsonl")}
    first = {row.id: row.text for row in read_predictions(work / "base.jsonl")}
    shown = list(read_dataset(work / "b-holdout"))[:: max(1, len(samples) // 2)][:2]
    told = [{"truth": one.answer, "base": first[one.id], "adapter": samples[one.id]} for one in shown]
    planned = json.loads(plan.read_text())
    return {
        "base": {name: base[name] for name in ("parameters", "batch", "seconds")} | {"losses": base["losses"][::10]},
        "contract": planned["contract"],
        "knobs": planned["knobs"],
        "train_examples": len(read_dataset(work / "b")),
        "held_out_examples": len(samples),
        "rows": rows,
        "swapped": score(work, swapped),
        "facts": {"adapter": right_facts(work, last), "swapped": right_facts(work, swapped)},
        "samples": told,
    }


def table(results: dict[str, Any]) -> str:
    """The scores as a Markdown table, then the facts."""
    meteor = next(name for name in results["rows"][0] if name.startswith("meteor"))
    names = ("s1", "bleu", meteor, "rouge_l", "cider")
    lines = [f"| | S1 | BLEU-4 | {meteor} | ROUGE-L | CIDEr | loss |", "|---|---|---|---|---|---|---|"]
    rows = [("base" if not row["steps"] else f"adapter, {row['steps']} steps", row) for row in results["rows"]]
    for title, row in [*rows, ("the last, streets swapped", results["swapped"])]:
        lines.append(f"| {title} | {' | '.join(str(row[name]) for name in names)} | {row.get('last_loss', '')} |")
    facts = results["facts"]
    lines += ["", "| facts told rightly, % | last adapter | streets swapped |", "|---|---|---|"]
    lines += [f"| {fact} | {share} | {facts['swapped'][fact]} |" for fact, share in facts["adapter"].items()]
    return "\n".join(lines) + "\n"


def curve(results: dict[str, Any]) -> Drawing:
    """S1 over steps, base and control included."""
    drawing = Drawing(640, 300, "S1 on held-out scenarios over the steps of the LoRA run")
    top = legend(drawing, [("plan", "S1, held-out winter scenarios (measured)"), ("bad", "the last, streets swapped")], 16) + 22
    rows, swapped = results["rows"], results["swapped"]["s1"]
    highest = max(row["s1"] for row in rows) * 1.15
    axes = Axes(drawing=drawing, left=40, top=top, right=628, bottom=260, x_range=(0, rows[-1]["steps"]), y_range=(0, highest))
    axes.grid_y("S1")
    axes.grid_x("optimizer steps")
    axes.level(swapped, "bad")
    points = [(axes.x(row["steps"]), axes.y(row["s1"])) for row in rows]
    drawing.line(points, "plan", width=2)
    for (x, y), row in zip(points, rows, strict=True):
        drawing.dot(x, y, "plan")
        drawing.text(x, y - 9, f"{row['s1']:.1f}", anchor="end" if x > 600 else "start", size=11)
    return drawing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/convergence"))
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    prepare(work)
    results = measure(work)
    (HERE / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "table.md").write_text(table(results))
    curve(results).write_png(HERE / "curve.png")
    print(table(results))


if __name__ == "__main__":
    main()
