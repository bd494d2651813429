"""Seconds predicted against measured, for every ledger in reports whose probes had a GPU to themselves.

    python reports/prediction/speed.py > reports/prediction/speed.md      # half a minute of one core, no GPU

Three predictions: by the priors of the GPU's class and its data sheet alone; after the ten seconds of measuring the machine,
where that was done; and after the first four probes that a search of the planner makes. Errors are of the settings that were
not probed. Ledgers whose probes ran side by side on one GPU (most of ground_truth.sqlite3) say nothing of seconds.
"""

import math
import sys
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from harness import REPORTS
from harness.arguments import parser
from harness.jobs import BUDGET_BYTES, uncalibrated
from harness.tables import head, row
from replaying import Replay, True_

from budgetft.gpu import gpu_of_device
from budgetft.knobs import Allocator, Knobs, is_stock
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome
from budgetft.predict.clock import launch_share
from budgetft.predict.estimator import Estimator
from budgetft.predict.learn import Learner, Reading
from budgetft.predict.machine import Machine
from budgetft.search.planner import Planner
from budgetft.search.sampler import log_seconds, places
from budgetft.search.space import settings, stock_settings
from budgetft.value import read_json

HERE = REPORTS / "prediction"
LEDGERS = {
    "ground_truth": "prediction/ground_truth",
    "h200-speed": "prediction/h200-speed",
    "bench": "bench/ledger",
    "bench, native": "bench/native",
    "spine, shapes": "spine/ledger-shapes",
    "spine, first": "spine/ledger-448-first",
    "spine, real data": "spine/ledger-real",
}
COLUMNS = ("priors alone", "after ten seconds", "and four probes")
PROBED = 4
READING_ERROR = 0.03
HOST_DECIDES = 0.3
"""Share of a step's seconds that move with the host's launches."""


def machine_of(gpu: str) -> Machine | None:
    """Measured on such a GPU, if that was done."""
    files = sorted((HERE / "machines").glob("*.json"))
    return next((found for path in files if (found := Machine.read(read_json(path), source=path.name)).gpu == gpu), None)


def groups() -> dict[tuple[str, str], tuple[Job, dict[Knobs, Outcome]]]:
    """By ledger and job: the last outcome of each setting that was timed more than once."""
    found: dict[tuple[str, str], tuple[Job, dict[Knobs, Outcome]]] = {}
    for name, path in LEDGERS.items():
        for job, outcome in Ledger(REPORTS / f"{path}.sqlite3").rows():
            if outcome.step_seconds is None or len(outcome.timed_seconds) < 2 or outcome.stack is None:
                continue
            host = gpu_of_device(outcome.stack.gpu)
            own = host is None or host.name == job.gpu.name
            key = name, job.fingerprint()
            found.setdefault(key, (job.replace(host=None if own else host), {}))[1][outcome.knobs] = outcome
    return found


def errors(said: np.ndarray, outcomes: list[Outcome]) -> list[float]:
    """Logarithms of predicted over measured seconds."""
    return [float(each) - math.log(outcome.step_seconds or 1.0) for each, outcome in zip(said, outcomes, strict=True)]


def after_probes(estimator: Estimator, truth: dict[Knobs, Outcome]) -> dict[Knobs, float]:
    """Errors of the settings that the first probes of a search are not of; none where there are too few to search."""
    allocator: Allocator = "expandable" if any(k.allocator == "expandable" for k in truth if not is_stock(k)) else "default"
    job = estimator.job.replace(budget_bytes=BUDGET_BYTES)
    estimator = Estimator(job, calibration=estimator.calibration, speeds=estimator.speeds)
    grid = [k for k in (*settings(job, allocator=allocator), *stock_settings(job)) if k in truth]
    if len(grid) < 3 * PROBED:
        return {}
    table = {
        k: True_(
            samples_per_second=o.samples_per_second or 1, process_peak_bytes=o.process_peak_bytes or 0, step_noise=0, drift=0
        )
        for k, o in truth.items()
    }
    replay = Replay(job, table, 0)
    Planner(job=job, estimator=estimator, prober=replay, max_probes=PROBED + 1, allocator=allocator).plan()  # type: ignore[arg-type]
    asked = [knobs for knobs in dict.fromkeys(replay.asked) if knobs in truth][:PROBED]
    estimates = [estimator.estimate(knobs) for knobs in grid]
    learner = Learner(places(grid), log_seconds(estimates), clock=estimator.clock(grid), speeds=estimator.speeds)
    logs = {knobs: math.log(truth[knobs].samples_per_second or 1.0) for knobs in grid}
    learned = learner.learn(
        [Reading(setting=grid.index(k), log_seconds=-logs[k], error=truth[k].speed_error or READING_ERROR) for k in asked]
    )
    return {knobs: float(learned.mean_G[i]) + logs[knobs] for i, knobs in enumerate(grid) if knobs not in asked}


def cell(values: list[float]) -> str:
    """Median and 90th percentile of the factor between predicted and measured, and the median of predicted over measured."""
    if not values:
        return "-"
    factors = [math.exp(abs(each)) for each in values]
    middle, p90 = median(factors) - 1, float(np.quantile(factors, 0.9)) - 1
    return f"{middle:.0%}, {p90:.0%}; {math.exp(median(values)):.2f}x"


def of_job(job: Job, truth: dict[Knobs, Outcome]) -> tuple[list[dict[Knobs, float]], dict[Knobs, bool], list[bool]]:
    """Errors by ``COLUMNS``, which settings wait for the host, and which measured speeds are inside the printed range."""
    outcomes = list(truth.values())
    estimator = Estimator(job, calibration=uncalibrated())
    clock = estimator.clock(list(truth))
    found = [errors(clock.log_seconds(estimator.speeds.middle_Q[None])[0], outcomes), list[float]()]
    machine = machine_of(outcomes[0].stack.gpu if outcomes[0].stack else "")
    if machine is not None:
        estimator.speeds = machine.teach(estimator.speeds, job.gpu)
        found[1] = errors(clock.log_seconds(estimator.speeds.middle_Q[None])[0], outcomes)
        estimator = Estimator(job, calibration=uncalibrated(), speeds=estimator.speeds)
    probed = after_probes(estimator, truth)
    share = launch_share(clock.derivatives(estimator.speeds.middle_Q))
    waits = {knobs: bool(each > HOST_DECIDES) for knobs, each in zip(truth, share, strict=True)}
    fresh = Estimator(job, calibration=uncalibrated())
    said = ((fresh.estimate(knobs), outcome.samples_per_second or 0) for knobs, outcome in truth.items())
    inside = [(estimate.speed_low or 0) <= speed <= (estimate.speed_high or 0) for estimate, speed in said]
    return [*(dict(zip(truth, each, strict=False)) for each in found), probed], waits, inside


options = parser(__doc__)


def main() -> None:
    """Print the table, and all ledgers together."""
    options.parse_args()
    print(
        "Seconds of a step: how far predicted and measured are apart (median, 90th percentile), and predicted over measured.\n"
    )
    print(head("ledger", "model, GPU whose kernels ran, on", "settings", *COLUMNS))
    every: list[list[float]] = [[], [], []]
    waiting: dict[bool, list[list[float]]] = {False: [[], [], []], True: [[], [], []]}
    inside: list[bool] = []
    for (name, _), (job, truth) in groups().items():
        columns, waits, within = of_job(job, truth)
        inside += within
        for number, values in enumerate(columns):
            every[number] += values.values()
            for knobs, value in values.items():
                waiting[waits[knobs]][number].append(value)
        (width, height), first = job.workload.worst[0].images[0], next(iter(truth.values()))
        title = f"{job.model.name} {width}x{height}, {job.gpu.name}, {first.stack.gpu if first.stack else ''}"
        print(row(name, title, len(truth), *(cell(list(values.values())) for values in columns)))
    print(row("all", "", len(inside), *map(cell, every)).replace("|  |", "| |"))
    for waits, text in ((True, "of these, the host decides"), (False, "of these, the GPU decides")):
        print(row(text, "", len(waiting[waits][0]), *map(cell, waiting[waits])).replace("|  |", "| |"))
    priors, looked, _ = every
    near = mean(math.exp(abs(each)) <= 1.6 for each in priors), mean(abs(math.expm1(each)) <= 0.25 for each in looked)
    print(
        f"\nBy the priors alone {near[0]:.0%} are within a factor of 1.6, and {mean(inside):.0%} of the measured"
        f" speeds lie in the printed 80 % range. After ten seconds {near[1]:.0%} are within 25 %."
    )


if __name__ == "__main__":
    main()
