"""Answers of `budgetft fit` for ten GPUs and for one model everywhere, with their seconds; and that what they rest on is exact.

    python reports/answers/fit.py [--exact]

Writes fit.md and fit.html beside this file. Each command runs in a process of its own, on one core. `--exact` also traces
Qwen3-VL-4B by QLoRA afresh (a minute) and compares it with the recording that ships, setting by setting.
"""

import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from budgetft.api import estimate
from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.estimator import Estimator
from budgetft.search.predicted import settings_with
from budgetft.what_fits import FitTable
from budgetft.workload import Shape, Workload

HERE = Path(__file__).parent
GPUS = (
    *("rtx4060-8g", "rtx3080-10g", "rtx3060-12g", "t4", "v100-16g"),
    *("rtx4090", "rtx5090-32g", "a100-40g", "l40s-48g", "h100-80g"),
)
MODEL = "qwen3-vl-4b"
SIZE = (896, 896)


def answered(words: list[str]) -> tuple[str, float, float]:
    """What ``budgetft fit`` prints with ``words``, its seconds, and those of its processor."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "budgetft", "fit", *words], capture_output=True, text=True, check=True, env=environment
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def exact() -> list[str]:
    """Process peaks of settings from across the grid, from the recording and from a trace made now: rows of a table."""
    model, gpu, rows = load_model(MODEL), load_gpu("rtx3060-12g"), []
    job = Job(
        gpu=gpu,
        budget_bytes=gpu.budget_bytes,
        model=model,
        contract=Contract(max_pixels=SIZE[0] * SIZE[1], allow_nf4=True),
        workload=Workload.uniform(Shape(images=(SIZE,), text_tokens=256, supervised_tokens=160)),
        evidence="predicted",
    )
    with tempfile.TemporaryDirectory() as cache:
        os.environ["BUDGETFT_CACHE"] = cache  # no memory model of before either
        recorded, traced = Estimator(job), Estimator(job, recordings=_NoRecordings())
        grid = [each for each in settings_with(job, {"base_precision": "nf4"}) if each.offload == "none"]
        for knobs in grid[:: max(1, len(grid) // 12)]:
            ours, fresh = (estimator.estimate(knobs).process_peak_bytes for estimator in (recorded, traced))
            same = "the same" if ours == fresh else f"{ours - fresh:+,} bytes"
            rows.append(f"| {knobs.micro_batch} | {knobs.checkpointed_layers} | {fresh:,} | {same} |")
    return rows


def maximal(tables: list[FitTable]) -> tuple[int, int]:
    """How many larger squares than the largest were estimated, each by itself, and how many of these fit."""
    tried = fitting = 0
    for row in (row for table in tables for row in table.rows):
        model = load_model(row.model)
        first = math.ceil(math.sqrt(model.min_pixels) / model.pixel_step) - 1
        steps = row.largest.image[0] // model.pixel_step if row.largest else first
        for side in ((steps + more) * model.pixel_step for more in (1, 2, 5)):
            if side**2 > model.max_pixels:
                continue
            four = {"base_precision": "nf4"} if row.method == "QLoRA" else {}
            contract = Contract(max_pixels=side**2, max_length=32768, allow_nf4=bool(four))
            work = Shape(images=((side, side),), text_tokens=256, supervised_tokens=160)
            tried += 1
            fitting += estimate(row.gpu, row.model, work=work, contract=contract, **four).estimate.fits
    return tried, fitting


class _NoRecordings(dict):
    """Of every recording: that there is none, so that an estimator traces."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: str) -> tuple[None, str]:
        return None, ""


def main() -> None:
    """See the module."""
    told, seconds, tables = [], [], []
    for gpu in GPUS:
        out, wall, busy = answered(["--gpu", gpu])
        tables.append(FitTable.read_text(answered(["--gpu", gpu, "--json"])[0], source="fit --json"))
        seconds.append((f"`--gpu {gpu}`", wall, busy))
        told.append(f"## budgetft fit --gpu {gpu}\n\n```text\n{out}```\n")
    out, wall, busy = answered(["--model", MODEL])
    seconds.append((f"`--model {MODEL}`", wall, busy))
    told.append(f"## budgetft fit --model {MODEL}\n\n```text\n{out}```\n")
    page = HERE / "fit.html"
    answered(["--gpu", "rtx3060-12g", "--html", str(page)])
    lines = [
        "# What fits where",
        "",
        "Made by `python reports/answers/fit.py`. All of it is **predicted**: nothing was run, and no GPU but the H100 is",
        f"calibrated. {len(tables[0].rows)} rows a GPU; the page of one of them is [fit.html](fit.html).",
        "",
        "| command | seconds | of the processor |",
        "| --- | --- | --- |",
        *(f"| {name} | {wall:.2f} | {busy:.2f} |" for name, wall, busy in seconds),
        "",
    ]
    if "--exact" in sys.argv:
        tried, fitting = maximal(tables)
        lines += [
            f"Of {tried} squares that are one, two or five steps larger than the largest picture of a row above, each"
            f" estimated by itself, {fitting} fit.",
            "",
            f"Peaks of {MODEL} by QLoRA at 896x896 from the recording that ships, beside a trace made for this table:",
            "",
            "| micro-batch | checkpointed layers | process peak, traced | from the recording |",
            "| --- | --- | --- | --- |",
            *exact(),
            "",
        ]
    (HERE / "fit.md").write_text("\n".join(lines) + "\n" + "\n".join(told))


if __name__ == "__main__":
    main()
