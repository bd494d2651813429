"""Searches replayed over grids whose every setting was measured: probes, failures and regret, for three samplers.

    python reports/prediction/replay.py [SEEDS [SAMPLER,... [PART OF A TITLE]]]      # printed: replay.txt; an hour, no GPU

The planner is the one of ``budgetft plan``; only its prober is replaced, by what a GPU said: a setting above 14 GiB ends as out
of memory, another has its measured peak and speed. The calibration is ``assumed``, which every GPU has that nobody calibrated;
the rates are those of the GPU's data sheet. Regret is what the plan's own measured speed lacks of the best in the grid.

Noise, twice. "as repeated": the readings of a probe scatter as the repeats of settings with the same micro-batch did, and where
that is above 3 % (the host decides there) the whole probe is off by 14 % beside, as one setting was that was timed three times
in an hour (17.4, 21.0 and 22.9 samples/s). "14 %": every reading of every setting scatters by the 14 % that a step of the H100
grid did on average.
"""

import math
import sys
from pathlib import Path
from statistics import mean, variance
from typing import get_args

sys.path.insert(0, str(Path(__file__).parents[1]))

from ground_truth import job_of, read
from harness.arguments import comma, flag, parser
from harness.jobs import BUDGET_BYTES, uncalibrated
from replaying import HEAD, True_, row, search
from speed_grids import Cell, cells

from budgetft.gpu import load_gpu
from budgetft.knobs import Allocator, Knobs, is_stock
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome
from budgetft.predict.estimator import Estimator
from budgetft.search.study import SamplerName

HERE = Path(__file__).parent
MAX_PROBES = 12
STEP_NOISE = 0.14
HOST_DRIFT = 0.14
"""Of the probes of a setting that the host's launches decide."""
HOST_DECIDES = 0.03
Grid = tuple[str, Job, dict[Knobs, Outcome], Allocator]


def h100_grid() -> Grid:
    """The half of the committed H100 grid that one process measured by itself, with torch's default allocator."""
    rows = read(HERE / "grid-448.jsonl")
    key = job_of(rows[0]).fingerprint()
    wanted = frozenset(setting.knobs for setting in rows if setting.knobs.allocator == "default")
    ledger = Ledger(HERE / "ground_truth.sqlite3")
    found = {o.knobs: o for job, o in ledger.rows() if job.fingerprint() == key and o.knobs in wanted and o.fits}
    job = job_of(rows[0]).replace(budget_bytes=BUDGET_BYTES, host=load_gpu("h100-80g"))
    return "H100 as V100, qwen2.5-vl-3b 448x448, batch 32", job, found, "default"


def h200_grids() -> list[Grid]:
    """Those of speed_grids.py. What plans on the same GPU probed (h200-plans.sqlite3) fills settings that the grid lacks."""
    wanted: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells(str(HERE / "speed-grids.jsonl")):
        wanted.setdefault((cell.gpu, cell.model, cell.image), []).append(cell)
    rows = [(job.fingerprint(), o) for job, o in Ledger(HERE / "h200-speed.sqlite3").rows() if o.fits]
    plans = [(job, o) for job, o in Ledger(HERE / "h200-plans.sqlite3").rows() if o.fits]
    grids: list[Grid] = []
    for (gpu, model, (width, height)), group in wanted.items():
        key = group[0].job().fingerprint()
        found = {o.knobs: o for job_key, o in rows if job_key == key}
        capped = group[0].job(BUDGET_BYTES)
        for job, outcome in plans:
            same = (job.gpu, job.model.name, job.workload.worst, job.contract.effective_batch)
            if same == (capped.gpu, capped.model.name, capped.workload.worst, capped.contract.effective_batch):
                found.setdefault(outcome.knobs, outcome)
        as_ = "" if gpu == "h200-141g" else " as V100"
        name = f"H200{as_}, {model} {width}x{height}, batch {capped.contract.effective_batch}"
        grids.append((name, capped, found, "expandable"))
    return grids


def step_noise(truth: dict[Knobs, Outcome]) -> dict[Knobs, float]:
    """Scatter of a reading, pooled over the settings with a micro-batch (stock aside): standard deviation of a logarithm."""
    squares: dict[tuple[int, bool], list[float]] = {}
    for knobs, outcome in truth.items():
        logs = [math.log(seconds) for seconds in outcome.timed_seconds]
        if len(logs) >= 2:
            squares.setdefault((knobs.micro_batch, is_stock(knobs)), []).append(variance(logs))
    return {knobs: math.sqrt(mean(squares[knobs.micro_batch, is_stock(knobs)])) for knobs in truth}


def truths(found: dict[Knobs, Outcome], *, flat: bool) -> dict[Knobs, True_]:
    """``flat``: the same noise for all."""
    noise, made = step_noise(found), {}
    for knobs, outcome in found.items():
        assert outcome.samples_per_second is not None
        assert outcome.process_peak_bytes is not None
        made[knobs] = True_(
            samples_per_second=outcome.samples_per_second,
            process_peak_bytes=outcome.process_peak_bytes,
            step_noise=STEP_NOISE if flat else noise[knobs],
            drift=HOST_DRIFT if not flat and noise[knobs] > HOST_DECIDES else 0.0,
        )
    return made


options = flag(parser(__doc__), "seeds", type=int, nargs="?", default=20)
flag(options, "samplers", type=comma, nargs="?", default=list(get_args(SamplerName)), help="separated by commas")
flag(options, "only", nargs="?", default="", help="grids with this in their title")


def main() -> None:
    """Print a table a grid."""
    asked = options.parse_args()
    names: list[SamplerName] = [name for name in get_args(SamplerName) if name in asked.samplers]
    for title, job, found, allocator in [h100_grid(), *h200_grids()]:
        if asked.only not in title:
            continue
        fitting = [o for o in found.values() if (o.process_peak_bytes or 0) <= BUDGET_BYTES]
        best = max(fitting, key=lambda o: o.samples_per_second or 0.0)
        noise = step_noise(found)
        print(
            f"\n{title}: {len(found)} settings measured, {len(fitting)} fit; the best {best.samples_per_second:.2f} samples/s"
            f" (micro-batch {best.knobs.micro_batch}, {best.knobs.checkpointed_layers} layers checkpointed);"
            f" a reading scatters by {min(noise.values()):.1%} to {max(noise.values()):.1%}\n"
        )
        print(HEAD)
        estimator = Estimator(job, calibration=uncalibrated())
        for name in names:
            for flat in (False, True):
                truth = truths(found, flat=flat)
                how = {"sampler": name, "max_probes": MAX_PROBES, "allocator": allocator}
                runs = [search(estimator, truth, seed=seed, **how) for seed in range(asked.seeds)]
                print(row(f"{name}, noise {'14 %' if flat else 'as repeated'}", runs), flush=True)


if __name__ == "__main__":
    main()
