"""The figures that README and docs state, computed from what is committed.

    python reports/figures.py            writes them, in about ten seconds, without a GPU
    python reports/figures.py --check    writes nothing, names the parts that differ, and ends with 1 if any does

Each is read from a ledger, a JSON file or a recorded table under reports/, from pyproject.toml, or asked of budgetft itself
where it is predicted; beside each stands whether it is predicted, emulated or measured. It goes between
``<!-- figures: NAME -->`` and ``<!-- figures: end -->``. tests/docs holds these, and the reports that state the same.
"""

import argparse
import functools
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from budgetft.knobs import Knobs, is_stock
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome
from budgetft.units import GIB

options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
options.add_argument("--check", action="store_true", help="write nothing; end with 1 where a figure differs")
ROOT = Path(__file__).resolve().parent.parent
REPORTS = ROOT / "reports"
BLOCK = re.compile(r"(?<=<!-- figures: )(?!end )(\w+)( -->\n)(.*?)(?=<!-- figures: end -->)", re.DOTALL)
FILES = ("README.md", "docs/results.md", "docs/comparison.md", "reports/prediction/README.md")
GPUS = {
    "rtx4060-8g": "RTX 4060, 8 GB",
    "rtx3060-12g": "RTX 3060, 12 GB",
    "v100-16g": "V100, 16 GB",
    "rtx4090": "RTX 4090, 24 GB",
}
"""The columns of the table of what fits where."""
FINISHED_STEPS = 1000
NEAR = 0.02
"""How far from the planned peak counts as near, in docs/results.md."""
NUMBERS = """\
| Qwen2.5-VL-3B, unless said | Hugging Face Trainer defaults -> plan | evidence |
| --- | --- | --- |
| Largest example in 14 GiB | {baseline_frames} frame -> {frames} frames of 1288x728 | emulated |
| Peak memory, predicted before anything ran | {chosen_n} settings of two models: {chosen_mean} off on average, \
{chosen_worst} at worst; \
with the math attention kernel, which no plan uses, {every_n}: {every_mean}, worst {every_worst}; \
on a GPU never calibrated +- {uncalibrated} | emulated |
| {runs} plans, {models} models, {budgets}: {steps} steps each | no OOM, none above budget; {others} peaked at most {above} \
above the plan, one {most_above} | emulated |
| Speed, H100 | {h100_baseline} -> {h100_plan} examples/s; the defaults wait for the CPU there, tried at one micro-batch \
| measured |
| Speed, V100 16 GB | {v100_baseline} -> {v100_plan} examples/s, {v100_ratio} times as fast | predicted |
| Speed, H100 limited to 14 GiB and a V100's kernels | {limited_baseline} -> {limited_plan} examples/s: an H100's speed, \
not a V100's | emulated |
"""
MEMORY = """\
- {frames} frames of 1288x728 train in 14 GiB where Hugging Face Trainer defaults hold {baseline_frames};
  {offloaded_frames} with activations in CPU RAM ([reports/bench](../reports/bench/README.md#the-largest-example)).
- Peaks predicted before anything ran, {chosen_n} full-size settings of two models with the kernels that plans use:
  {chosen_mean} off on average, {chosen_p95} at the 95th percentile, {chosen_worst} at worst. With the math kernel, which
  no plan for a known GPU uses, {every_mean} over all {every_n}, {every_worst} at worst, on the unsafe side. They use the
  CUDA context as measured on that H100; on a GPU that was never calibrated the interval is +- {uncalibrated}
  ([reports/prediction](../reports/prediction/README.md)).
- {runs} plans (budgets of {budgets}) trained for {steps} steps each on data of varied sizes: no OOM, never above the
  budget; {others} peaked at most {above} above the plan, one, with the default allocator, {most_above}. All {finished}
  runs of that length, tiny models and repeats too: no OOM; {near} of them within {near_share} of the plan
  ([reports/guard](../reports/guard/README.md#many-steps)).
- A run of {real_steps} steps on real video frames peaked {real_above} above its confirmed peak
  ([reports/spine](../reports/spine/README.md)).
- Plans ported to 8, 12 and 24 GB: peaks within {ported} of what was predicted before any trial there
  ([reports/port](../reports/port/README.md)).
"""
SEARCH = """\
On a GPU that was never calibrated the search took {least} to {most} trials (medians) and ended at most {regret} below the best
setting, replayed over five grids that an H100 and an H200 measured ([replay.txt](../reports/prediction/replay.txt)).
"""
V100 = """\
**The V100** (predicted, 80 %): plan {plan} examples/s, baseline {baseline}, ratio {ratio} (448x448, 514 tokens, rank 16).
"""
Best = dict[tuple[str, str], list[Outcome]]


def lines_of(path: str) -> list[dict[str, Any]]:
    """The values of a file of JSON lines under reports/."""
    return [json.loads(line) for line in (REPORTS / path).read_text().splitlines() if line.strip()]


def gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def speed_of(outcomes: Iterable[Outcome]) -> float:
    """The median over all trials of one setting, in examples/s."""
    return median(outcome.samples_per_second or 0.0 for outcome in outcomes)


def best_of(ledger: str) -> tuple[Best, dict[str, Job]]:
    """The fastest setting of each (image size, path) of a ledger with its trials, and a job of each image size."""
    found: dict[tuple[str, str], dict[Knobs, list[Outcome]]] = {}
    jobs: dict[str, Job] = {}
    for job, outcome in Ledger(REPORTS / ledger).rows():
        if outcome.fits and outcome.samples_per_second:
            size = "x".join(map(str, job.workload.worst[0].images[0]))
            cached = ", cached features" if outcome.knobs.vision == "cached" else ""
            path = "baseline" if is_stock(outcome.knobs) else f"plan{cached}"
            found.setdefault((size, path), {}).setdefault(outcome.knobs, []).append(outcome)
            jobs[size] = job
    return {key: max(settings.values(), key=speed_of) for key, settings in found.items()}, jobs


def ratio(best: Best, size: str, path: str = "plan") -> float:
    return speed_of(best[size, path]) / speed_of(best[size, "baseline"])


def errors_of_peaks() -> dict[str, dict[str, str]]:
    """Rows of reports/prediction/table.md for the peak of the process, by their name."""
    rows = [line.strip("| ").split(" | ") for line in (REPORTS / "prediction/table.md").read_text().splitlines() if "|" in line]
    head = rows[0]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows[2:] if row[1] == "process"}


def frames() -> dict[str, int]:
    """Frames of 1288x728 in the largest example that trained in 14 GiB, by path, and that one more or a tenth more did not."""
    measured = lines_of("bench/largest-measured.jsonl")
    return {row["path"]: row["frames"] for row in measured if row["status"] == "ok"}


def soaks() -> list[dict[str, Any]]:
    """The first plan of each full-size request that was trained for 1,000 steps, on an H100: passes 1 and 2."""
    runs = [run for which in ("first", "second") for run in json.loads((REPORTS / f"guard/soak-{which}.json").read_text())]
    assert all(run["steps"] == FINISHED_STEPS and not run["ooms"] and not run["over_budget"] for run in runs)
    return runs


def all_soaks() -> list[dict[str, Any]]:
    """Every run of passes 1 to 4, those that were cut short and those of tiny models too."""
    names = ("first", "second", "third", "fourth")
    return [run for which in names for run in json.loads((REPORTS / f"guard/soak-{which}.json").read_text())]


def above_plan(run: dict[str, Any]) -> float:
    """How far the peak found (of pre-flight and run) is above the planned one, as a share."""
    return max(run["process_peak_bytes"], run.get("preflight_peak_bytes", 0)) / run["planned_peak_bytes"] - 1


def expected(size: str) -> dict[str, str]:
    """What a V100 itself is predicted to do at a size: ``baseline``, ``plan`` and their ``ratio``, each a range."""
    from budgetft.search.predicted import expected_text

    _, jobs = best_of("bench/ledger.sqlite3")
    spans = re.findall(r"[\d.]+ to [\d.]+", expected_text(jobs[size]))
    return dict(zip(("baseline", "plan", "ratio"), spans, strict=True))


def searches() -> list[list[str]]:
    """The replayed searches without calibration: (probes median, regret worst) of reports/prediction/replay.txt."""
    rows = [line.strip("| ").split(" | ") for line in (REPORTS / "prediction/replay.txt").read_text().splitlines()]
    return [[row[1], row[7]] for row in rows if row[0].startswith("residual")]


def fits_block() -> str:
    """What runs where: 3 epochs of 2,000 pictures at 448x448, by LoRA, else by QLoRA."""
    from budgetft.api import fit
    from budgetft.what_fits import span_text

    table = fit(list(GPUS), images=["448x448"])
    found: dict[str, dict[str, str]] = {model: {} for model in table.models}
    for row in table.rows:  # LoRA comes first
        (cell,) = row.cells
        if cell.fits:
            found[row.model].setdefault(row.gpu, f"{row.method} {span_text(cell.time)}")
    head = ["", *GPUS.values()]
    return as_table(head, [[model, *(cells.get(gpu, "no") for gpu in GPUS)] for model, cells in found.items()])


def plan_block() -> str:
    """The first lines of the plan of the recording."""
    recorded = (ROOT / "docs/terminal.txt").read_text()
    command, _, rest = recorded[recorded.index("$ budgetft plan") :].partition("\n")
    shown, _, after = rest.partition("\n  Settings ")
    assert after, "the recording has no line 'Settings'"
    return f"```\n{command}\n{shown}\n  ...\n```\n"


def supported_block() -> str:
    """Systems and versions as the project file has them, GPUs and models as the commands list them."""
    from budgetft.families import verified_types
    from budgetft.gpu import gpu_names
    from budgetft.model import load_model, trainable_names

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = {re.split(r"[<>=!~\[; ]", each)[0]: each for each in project["dependencies"]}
    ranges = ", ".join(needs[name].replace(">=", " >= ") for name in ("torch", "transformers", "peft"))
    types, names = verified_types(), trainable_names()
    families = ", ".join(f"`{each}`" for each in sorted({load_model(name).family for name in names}))
    rows = [
        [
            "Models",
            f"{len(names)} bundled (`budgetft models`), of the types {families}; from a folder or the Hugging Face Hub, any"
            f" type of images and text in transformers. {len(types)} types are verified: whatever they are offered equals"
            " transformers' own step. Others are checked on their first batch",
        ],
        ["Methods", "LoRA and QLoRA (4-bit) on the language model; the vision tower is frozen"],
        [
            "GPUs",
            f"NVIDIA, Pascal (sm_60) to Blackwell: {len(gpu_names())} by the names people use (`budgetft gpus`), any other as"
            " `--gpu 24GiB`; not AMD, Intel or Apple",
        ],
        [
            "Data",
            "CSV, JSON, parquet, folders of images, archives, Hub datasets; chats of LLaVA, ShareGPT, TRL, LLaMA-Factory,"
            " ms-swift and OpenAI; videos ([more](docs/data.md))",
        ],
        ["Systems", f"Linux, or Windows by WSL; Python {project['requires-python'].replace('>=', '')} or newer; {ranges}"],
    ]
    return as_table(["", "supported"], rows)


def as_table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def memory() -> dict[str, str]:
    """What is said of memory, by name."""
    peaks, found, runs, every = errors_of_peaks(), frames(), soaks(), all_soaks()
    finished = [run for run in every if run["steps"] == FINISHED_STEPS]
    assert not any(run["over_budget"] or run.get("ooms") for run in every)
    above = sorted(above_plan(run) for run in runs)
    budgets = [run["budget_bytes"] / GIB for run in runs]
    spine = json.loads((REPORTS / "spine/summary-real.json").read_text())
    confirmed = json.loads((REPORTS / "spine/plan-real.json").read_text())["estimate"]["process_peak_bytes"]
    ported = max(abs(row["peak_error_share"]) for row in lines_of("port/plans/results.jsonl") if row["kind"] == "ported")
    assumed = json.loads((ROOT / "profiles/calibrations/assumed.json").read_text())["uncertainty_share"]
    names = {"chosen": "all but the math kernel", "every": "all"}
    errors = {f"{short}_{key}": cell for short, name in names.items() for key, cell in peaks[name].items()}
    return {
        **{key: cell.replace("%", " %") for key, cell in errors.items()},
        "frames": str(found["all layers checkpointed"]),
        "baseline_frames": str(found["stock"]),
        "offloaded_frames": str(next(count for path, count in found.items() if "host" in path)),
        "runs": str(len(runs)),
        "models": str(len({run["model"] for run in runs})),
        "others": str(len(runs) - 1),
        "steps": f"{FINISHED_STEPS:,}",
        "budgets": f"{min(budgets):.0f} to {max(budgets):.1f} GiB",
        "above": percent(above[-2], 1),
        "most_above": percent(above[-1]),
        "finished": str(len(finished)),
        "near": str(sum(above_plan(run) <= NEAR for run in finished)),
        "near_share": percent(NEAR),
        "real_steps": str(spine["steps"]),
        "real_above": percent(spine["process_peak_bytes"] / confirmed - 1, 2),
        "ported": percent(ported, 1),
        "uncalibrated": percent(assumed),
    }


def speed() -> dict[str, str]:
    """What is said of speed at 448x448, by name."""
    native, _ = best_of("bench/native.sqlite3")
    limited, _ = best_of("bench/ledger.sqlite3")
    v100 = expected("448x448")
    return {
        "h100_baseline": f"{speed_of(native['448x448', 'baseline']):.2f}",
        "h100_plan": f"{speed_of(native['448x448', 'plan']):.1f}",
        "limited_baseline": f"{speed_of(limited['448x448', 'baseline']):.2f}",
        "limited_plan": f"{speed_of(limited['448x448', 'plan']):.1f}",
        **{f"v100_{key}": span for key, span in v100.items()},
    }


def percent(share: float, digits: int = 0) -> str:
    """``0.009`` as ``0.9 %``."""
    return f"{100 * share:.{digits}f} %"


def numbers_block() -> str:
    """The few figures of the README: memory first, speed by the GPU that it was measured on."""
    return NUMBERS.format(**memory(), **speed())


def memory_block() -> str:
    """Memory, in docs/results.md."""
    return MEMORY.format(**memory())


def speed_block() -> str:
    """Speed by the GPU that it was measured on, in docs/results.md."""
    native, _ = best_of("bench/native.sqlite3")
    limited, _ = best_of("bench/ledger.sqlite3")
    rows = [
        ["H100 80 GB", "448x448", *pair(native, "448x448"), "measured; the baseline is launch-bound, tried at one micro-batch"]
    ]
    for size in ("448x448", "1288x728"):
        v100 = expected(size)
        rows.append(["V100 16 GB", size, v100["baseline"], v100["plan"], f"{v100['ratio']} times", "predicted"])
        stands_in = "emulated: that is an H100's speed, not a V100's"
        rows.append(["H100 limited to 14 GiB and a V100's kernels", size, *pair(limited, size), stands_in])
    head = ["GPU", "image", "Hugging Face Trainer defaults, examples/s", "plan, examples/s", "ratio", "evidence"]
    return as_table(head, rows)


def pair(best: Best, size: str) -> list[str]:
    """Speed of the baseline, of the plan, and their ratio."""
    baseline, plan = (speed_of(best[size, path]) for path in ("baseline", "plan"))
    return [f"{baseline:.2f}", f"{plan:.1f}", f"{plan / baseline:.1f} times"]


def search_block() -> str:
    """How near the search comes to the best setting on a GPU that was never calibrated."""
    found = searches()
    trials, regrets = [float(row[0]) for row in found], [float(row[1].rstrip("%")) for row in found]
    return SEARCH.format(least=f"{min(trials):.0f}", most=f"{max(trials):.0f}", regret=percent(max(regrets) / 100, 1))


def rivals_block() -> str:
    """What users would install instead, under the same cap and kernels as the emulated V100."""
    kinds = {
        "trainer": "Trainer",
        "trl": "TRL SFTTrainer",
        "trl-liger": "TRL SFTTrainer + Liger",
        "trainer-liger": "Trainer + Liger",
    }
    measured = [row for row in json.loads((REPORTS / "bench/rivals.json").read_text())["rows"] if row["status"] == "ok"]
    plan, _ = best_of("bench/ledger.sqlite3")
    rows = []
    for kind, name in kinds.items():
        cells = [name]
        for width in (448, 1288):
            best = max(
                (row for row in measured if (row["kind"], row["width"]) == (kind, width)),
                key=lambda row: row["samples_per_second"],
            )
            cells += [str(best["micro_batch"]), f"{best['samples_per_second']:.2f}", gib(best["process_peak_bytes"])]
        rows.append(cells)
    ours = ["budgetft's plan"]
    for size in ("448x448", "1288x728"):
        trials = plan[size, "plan"]
        peak = max(each.process_peak_bytes or 0 for each in trials)
        ours += [str(trials[0].knobs.micro_batch), f"{speed_of(trials):.2f}", gib(peak)]
    head = ["", *(f"{size}: {what}" for size in ("448x448", "1288x728") for what in ("micro-batch", "examples/s", "peak"))]
    return as_table(head, [*rows, ours])


def v100_block() -> str:
    """What a V100 is predicted to do, in reports/prediction."""
    return V100.format(**expected("448x448"))


BLOCKS: dict[str, Callable[[], str]] = {
    "fits": fits_block,
    "plan": plan_block,
    "supported": supported_block,
    "numbers": numbers_block,
    "memory": memory_block,
    "speed": speed_block,
    "search": search_block,
    "rivals": rivals_block,
    "v100": v100_block,
}


@functools.cache
def block(name: str) -> str:
    """The text of a block as it is to be, with the empty lines around it."""
    return f"\n{BLOCKS[name]()}\n"


def differing(page: str) -> list[str]:
    """The blocks of a page's text, by name, that are not what is computed now."""
    return [found[1] for found in BLOCK.finditer(page) if found[3] != block(found[1])]


def main() -> int:
    """Write every block anew, or with ``--check`` name those that differ; exit code 1 then."""
    check, differ = options.parse_args().check, False
    for path in FILES:
        page = (ROOT / path).read_text()
        for name in differing(page):
            differ = True
            print(f"{path}: {name}" + ("" if check else " written"))
        if not check:
            (ROOT / path).write_text(BLOCK.sub(lambda found: found[1] + found[2] + block(found[1]), page))
    return int(check and differ)


if __name__ == "__main__":
    sys.exit(main())
