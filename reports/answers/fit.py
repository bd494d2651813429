"""Answers of `budgetft fit` for ten GPUs and for one model everywhere, with their seconds; and that what they rest on is exact.

    python reports/answers/fit.py [--exact]      # half a minute of one core, --exact a minute more; no GPU: predicted

Writes fit.md and fit.html beside this file. Each command runs in a process of its own, on one core. `--exact` also traces
Qwen3-VL-4B by QLoRA afresh (a minute) and compares it with the recording that ships, setting by setting.
"""

import math
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser
from harness.children import Ended, budgetft, environment
from harness.jobs import job, shape
from harness.tables import head, row

from budgetft.api import estimate
from budgetft.contract import Contract
from budgetft.model import load_model
from budgetft.predict.estimator import Estimator
from budgetft.search.predicted import settings_with
from budgetft.what_fits import FitTable

HERE = Path(__file__).parent
GPUS = (
    *("rtx4060-8g", "rtx3080-10g", "rtx3060-12g", "t4", "v100-16g"),
    *("rtx4090", "rtx5090-32g", "a100-40g", "l40s-48g", "h100-80g"),
)
MODEL = "qwen3-vl-4b"
SIZE = (896, 896)


def answered(*words: str) -> Ended:
    """What ``budgetft fit`` prints with ``words``, and takes."""
    return budgetft("fit", *words, env=environment(COLUMNS="80", OMP_NUM_THREADS="1")).checked()


def exact() -> list[str]:
    """Process peaks of settings from across the grid, from the recording and from a trace made now: rows of a table."""
    problem, rows = job("rtx3060-12g", MODEL, shape(SIZE), Contract(max_pixels=SIZE[0] * SIZE[1], allow_nf4=True)), []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["BUDGETFT_CACHE"] = cache  # nothing of before either
        recorded, traced = Estimator(problem), Estimator(problem, recordings=_NoRecordings())
        grid = [each for each in settings_with(problem, {"base_precision": "nf4"}) if each.offload == "none"]
        for knobs in grid[:: max(1, len(grid) // 12)]:
            ours, fresh = (estimator.estimate(knobs).process_peak_bytes for estimator in (recorded, traced))
            same = "the same" if ours == fresh else f"{ours - fresh:+,} bytes"
            rows.append(row(knobs.micro_batch, knobs.checkpointed_layers, f"{fresh:,}", same))
    return rows


def maximal(tables: list[FitTable]) -> tuple[int, int]:
    """How many larger squares than the largest were estimated, each by itself, and how many of these fit."""
    tried = fitting = 0
    for each in (each for table in tables for each in table.rows):
        model = load_model(each.model)
        first = math.ceil(math.sqrt(model.min_pixels) / model.pixel_step) - 1
        steps = each.largest.image[0] // model.pixel_step if each.largest else first
        for side in ((steps + more) * model.pixel_step for more in (1, 2, 5)):
            if side**2 > model.max_pixels:
                continue
            four = {"base_precision": "nf4"} if each.method == "QLoRA" else {}
            contract = Contract(max_pixels=side**2, max_length=32768, allow_nf4=bool(four))
            tried += 1
            fitting += estimate(each.gpu, each.model, work=shape((side, side)), contract=contract, **four).estimate.fits
    return tried, fitting


class _NoRecordings(dict):
    """Of every recording: that there is none, so that an estimator traces."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> tuple[None, str]:
        return None, ""


options = flag(parser(__doc__), "--exact", action="store_true", help="compare with a trace made now")


def main() -> None:
    asked, told, seconds = options.parse_args(), [], []
    tables = [FitTable.read_text(answered("--gpu", gpu, "--json").out, source="fit --json") for gpu in GPUS]
    for words in (*(("--gpu", gpu) for gpu in GPUS), ("--model", MODEL)):
        ended, typed = answered(*words), " ".join(words)
        seconds.append(row(f"`{typed}`", f"{ended.seconds:.2f}", f"{ended.processor_seconds:.2f}"))
        told.append(f"## budgetft fit {typed}\n\n```text\n{ended.out}```\n")
    answered("--gpu", "rtx3060-12g", "--html", str(HERE / "fit.html"))
    lines = [
        "# What fits where",
        "",
        "Made by `python reports/answers/fit.py`. All of it is **predicted**: nothing was run, and no GPU but the H100 is",
        f"calibrated. {len(tables[0].rows)} rows a GPU; the page of one of them is [fit.html](fit.html).",
        "",
        head("command", "seconds", "of the processor", rule=" --- "),
        *seconds,
        "",
    ]
    if asked.exact:
        tried, fitting = maximal(tables)
        lines += [
            f"Of {tried} squares that are one, two or five steps larger than the largest picture of a row above, each"
            f" estimated by itself, {fitting} fit.",
            "",
            f"Peaks of {MODEL} by QLoRA at 896x896 from the recording that ships, beside a trace made for this table:",
            "",
            head("micro-batch", "checkpointed layers", "process peak, traced", "from the recording", rule=" --- "),
            *exact(),
            "",
        ]
    (HERE / "fit.md").write_text("\n".join(lines) + "\n" + "\n".join(told))


if __name__ == "__main__":
    main()
