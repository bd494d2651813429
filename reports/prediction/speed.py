"""Seconds predicted against measured, for every ledger in reports whose probes had a GPU to themselves.

    python reports/prediction/speed.py > reports/prediction/speed.md

Three predictions: by the priors of the GPU's class and its data sheet alone; after the ten seconds of measuring the machine,
where that was done; and after the first four probes that a search of the planner makes. Errors are of the settings that were
not probed. Ledgers whose probes ran side by side on one GPU (most of ground_truth.sqlite3) say nothing of seconds.
"""

import math
import statistics
from pathlib import Path

import numpy as np
from replaying import Replay, True_, percentile

from budgetft.gpu import gpu_of_device
from budgetft.knobs import Allocator, Knobs, is_stock
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome
from budgetft.predict.calibrate import load_calibration
from budgetft.predict.clock import launch_share
from budgetft.predict.estimator import Estimator
from budgetft.predict.learn import Learner, Reading
from budgetft.predict.machine import Machine
from budgetft.search.planner import Planner
from budgetft.search.sampler import log_seconds, places
from budgetft.search.space import settings, stock_settings
from budgetft.value import read_json

HERE = Path(__file__).parent
LEDGERS = {
    "ground_truth": HERE / "ground_truth.sqlite3",
    "h200-speed": HERE / "h200-speed.sqlite3",
    "bench": HERE.parent / "bench/ledger.sqlite3",
    "bench, native": HERE.parent / "bench/native.sqlite3",
    "spine, shapes": HERE.parent / "spine/ledger-shapes.sqlite3",
    "spine, first": HERE.parent / "spine/ledger-448-first.sqlite3",
    "spine, real data": HERE.parent / "spine/ledger-real.sqlite3",
}
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
        for job, outcome in Ledger(path).rows():
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
    job = estimator.job.replace(budget_bytes=14 * 2**30)
    estimator = Estimator(job, calibration=estimator.calibration, speeds=estimator.speeds)
    grid = [k for k in (*settings(job, allocator=allocator), *stock_settings(job)) if k in truth]
    if len(grid) < 3 * PROBED:
        return {}
    table = {
        k: True_(
            samples_per_second=o.samples_per_second or 1.0,
            process_peak_bytes=o.process_peak_bytes or 0,
            step_noise=0.0,
            drift=0.0,
        )
        for k, o in truth.items()
    }
    replay = Replay(job, table, 0)
    Planner(job=job, estimator=estimator, prober=replay, max_probes=PROBED + 1, allocator=allocator).plan()  # type: ignore[arg-type]
    asked = [knobs for knobs in dict.fromkeys(replay.asked) if knobs in truth][:PROBED]
    estimates = [estimator.estimate(knobs) for knobs in grid]
    learner = Learner(places(grid), log_seconds(estimates), clock=estimator.clock(grid), speeds=estimator.speeds)
    readings = [
        Reading(
            setting=grid.index(knobs),
            log_seconds=-math.log(truth[knobs].samples_per_second or 1.0),
            error=truth[knobs].speed_error or READING_ERROR,
        )
        for knobs in asked
    ]
    learned = learner.learn(readings)
    return {
        knobs: float(learned.mean_G[i]) + math.log(truth[knobs].samples_per_second or 1.0)
        for i, knobs in enumerate(grid)
        if knobs not in asked
    }


def cell(values: list[float]) -> str:
    """Median and 90th percentile of the factor between predicted and measured, and the median of predicted over measured."""
    if not values:
        return " - |"
    factors = [math.exp(abs(each)) for each in values]
    return (
        f" {statistics.median(factors) - 1:.0%}, {percentile(factors, 0.9) - 1:.0%};"
        f" {math.exp(statistics.median(values)):.2f}x |"
    )


def main() -> None:
    """Print the table, and all ledgers together."""
    print(
        "Seconds of a step: how far predicted and measured are apart (median, 90th percentile), and predicted over measured.\n"
    )
    print("| ledger | model, GPU whose kernels ran, on | settings | priors alone | after ten seconds | and four probes |")
    print("|---|---|---|---|---|---|")
    every: dict[str, list[float]] = {"priors alone": [], "after ten seconds": [], "and four probes": []}
    waiting: dict[str, dict[bool, list[float]]] = {column: {False: [], True: []} for column in every}
    inside: list[bool] = []
    for (name, _), (job, truth) in groups().items():
        outcomes = list(truth.values())
        gpu = outcomes[0].stack.gpu if outcomes[0].stack else ""
        estimator = Estimator(job, calibration=load_calibration("no GPU has this name"))
        clock = estimator.clock(list(truth))
        prior = errors(clock.log_seconds(estimator.speeds.middle_Q[None])[0], outcomes)
        machine = machine_of(gpu)
        looked: list[float] = []
        if machine is not None:
            estimator.speeds = machine.teach(estimator.speeds, job.gpu)
            looked = errors(clock.log_seconds(estimator.speeds.middle_Q[None])[0], outcomes)
            estimator = Estimator(job, calibration=load_calibration("no GPU has this name"), speeds=estimator.speeds)
        probed = after_probes(estimator, truth)
        share = launch_share(clock.derivatives(estimator.speeds.middle_Q))
        waits = {knobs: bool(each > HOST_DECIDES) for knobs, each in zip(truth, share, strict=True)}
        kept = ({**dict(zip(truth, each, strict=False))} for each in (prior, looked))
        for column, values in zip(every, (*kept, probed), strict=True):
            every[column] += values.values()
            for knobs, value in values.items():
                waiting[column][waits[knobs]].append(value)
        for knobs, outcome in truth.items():
            estimate = Estimator(job, calibration=load_calibration("no GPU has this name")).estimate(knobs)
            inside.append((estimate.speed_low or 0) <= (outcome.samples_per_second or 0) <= (estimate.speed_high or 0))
        size = job.workload.worst[0].images[0]
        print(
            f"| {name} | {job.model.name} {size[0]}x{size[1]}, {job.gpu.name}, {gpu} | {len(truth)} |"
            + cell(prior)
            + cell(looked)
            + cell(list(probed.values()))
        )
    print(f"| all | | {len(inside)} |" + "".join(cell(values) for values in every.values()))
    for waits, text in ((True, "of these, the host decides"), (False, "of these, the GPU decides")):
        count = len(waiting["priors alone"][waits])
        print(f"| {text} | | {count} |" + "".join(cell(waiting[column][waits]) for column in every))
    shares = [sum(math.exp(abs(each)) <= 1.6 for each in every["priors alone"]) / len(every["priors alone"])]
    shares.append(sum(abs(math.expm1(each)) <= 0.25 for each in every["after ten seconds"]) / len(every["after ten seconds"]))
    print(
        f"\nBy the priors alone {shares[0]:.0%} are within a factor of 1.6, and {statistics.mean(inside):.0%} of the measured"
        f" speeds lie in the printed 80 % range. After ten seconds {shares[1]:.0%} are within 25 %."
    )


if __name__ == "__main__":
    main()
