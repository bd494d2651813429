"""Answers in a second: `estimate` of bundled models at any image size, length of text and rank, against traces made now.

    python reports/prediction/instant.py [CASES [SEED]] > reports/prediction/instant.txt    # a minute a case: predicted

Each case draws a full-size model, the kernels of a GPU (V100, RTX 3090), an image of 224 to 2048 pixels a side, 16 to 8,192
text tokens and a rank of 1 to 256. `budgetft estimate --json` runs as a process of its own; what it says of its setting is
then computed once more from a memory model that is traced here for exactly this case. Traces are the independent truth: a
recording was made at none of these points. The last lines have the settings of every case in the grid, not only the chosen
one.
"""

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import jobs
from harness.arguments import flag, parser
from harness.children import budgetft

from budgetft.contract import Contract
from budgetft.data.tokens import resized_size
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model, model_names
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings

options = flag(parser(__doc__), "cases", type=int, nargs="?", default=20)
flag(options, "seed", type=int, nargs="?", default=0)


def main() -> None:
    asked = options.parse_args()
    draw, cases = random.Random(asked.seed), asked.cases
    walls, peaks, speeds = [], [], []
    print("model          GPU       image      text  rank  estimate  trace    peak      seconds a step  all of the grid")
    for _ in range(cases):
        name = draw.choice([name for name in model_names() if not name.startswith("tiny")])
        gpu = draw.choice(("v100-16g", "rtx3090"))
        width, height = draw.randint(224, 2048), draw.randint(224, 2048)
        text, rank = round(2 ** draw.uniform(4, 13)), draw.randint(1, 256)
        supervised = draw.randint(1, text - 1)
        words = f"--gpu {gpu} --model {name} --image {width}x{height} --text-tokens {text} --rank {rank} --max-length 16384"
        done = budgetft("estimate", *words.split(), "--supervised-tokens", supervised, "--json").checked()
        said = json.loads(done.out)
        walls.append(done.seconds)
        job = job_of(name, gpu, (width, height), text, supervised, rank)
        began = time.monotonic()
        own, traced = Estimator(job), traced_estimator(job)
        knobs = Knobs.read(said["knobs"], source="estimate")
        truth = traced.estimate(knobs)
        trace_seconds = time.monotonic() - began
        peak = said["process_peak_bytes"] / truth.process_peak_bytes - 1
        speed = said["step_seconds"] / truth.step_seconds - 1
        grid = [each for each in settings(job) if traced.may_fit(each)] or [knobs]
        both = [(own.estimate(each), traced.estimate(each)) for each in grid]
        peaks += [abs(ours.process_peak_bytes / true.process_peak_bytes - 1) for ours, true in both]
        speeds += [abs(ours.step_seconds / true.step_seconds - 1) for ours, true in both]
        print(
            f"{name:14} {gpu:9} {width:4}x{height:<4} {text:6} {rank:5}  {walls[-1]:6.2f} s  {trace_seconds:4.0f} s"
            f"  {peak:+8.4%}  {speed:+8.4%}        {len(grid):4} settings",
            flush=True,
        )
    print(f"\n{cases} estimates, each a process: median {median(walls):.2f} s, longest {max(walls):.2f} s")
    for what, errors in (("peak of the process", peaks), ("seconds of a step", speeds)):
        p99 = quantiles(errors, n=100, method="inclusive")[-1]
        print(f"{what}, {len(errors)} settings: mean {sum(errors) / len(errors):.4%}, p99 {p99:.4%}, worst {max(errors):.4%}")


def job_of(name: str, gpu: str, size: tuple[int, int], text: int, supervised: int, rank: int) -> Job:
    """The planning problem of the command line that is run."""
    model, contract = load_model(name), Contract(max_pixels=size[0] * size[1], max_length=16384, rank=rank, alpha=2 * rank)
    work = jobs.shape(resized_size(*size, model, contract), text=text, labels=supervised)
    return jobs.job(gpu, model, work, contract)


def traced_estimator(job: Job) -> Estimator:
    """One that traces what it needs, whatever is stored."""
    estimator = Estimator(job)
    with (
        tempfile.TemporaryDirectory() as cache,
        patch.dict(os.environ, {"BUDGETFT_CACHE": cache}),
        patch("budgetft.predict.estimator.find_recording", lambda key: None),
    ):
        for knobs in {estimator.combination(each) for each in settings(job)}:
            estimator.memory_model(knobs)
    return estimator


if __name__ == "__main__":
    main()
