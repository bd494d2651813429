"""One, two and three workers plan one job in one journal: probes each, seconds, and what they chose.

    PYTHONPATH=.:tests/train:reports/prediction python reports/guard/share.py [--seeds 5] > share.txt

First with real probes. Every worker is a `budgetft plan --storage journal://...` with a ledger of its own, so that it knows
of the others by the journal alone. Evidence: predicted (the CPU and its byte meter; no GPU took part): workers of one
machine take its cores from each other, so the seconds of a step, and with them the choice, are those of a busy machine.

Then replayed, as on a GPU for each worker: the 54 settings of `reports/prediction/grid-448.jsonl` as they were measured, each
probe taking `PROBE_SECONDS` of sleep. Averages over the seeds of the noise.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

from drawn import draw_examples
from replay import h100_grid, truths
from replaying import Replay, True_

from budgetft.knobs import Knobs, describe
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome
from budgetft.plan import Plan, read_plan
from budgetft.predict.calibrate import load_calibration
from budgetft.predict.estimator import Estimator
from budgetft.search.planner import Planner

PROBE_SECONDS = 4.0
JOB = ("--gpu", "v100-16g", "--model", "tiny-qwen2.5-vl", "--rank", "4", "--effective-batch", "16", "--budget", "700MiB")


def start(folder: Path, data: Path, number: int, *more: str, storage: str | None = None) -> subprocess.Popen:
    """A worker, in a journal unless told otherwise; what it prints goes to a file of its own."""
    files = ("--storage", storage or f"journal://{folder / 'study.log'}", "--ledger", str(folder / f"ledger-{number}.sqlite3"))
    command = [sys.executable, "-m", "budgetft", "plan", *JOB, "--data", str(data), *files, *more]
    cache = str(folder.parent / "cache")
    environment = {**os.environ, "BUDGETFT_CACHE": cache, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with (folder / f"told-{number}").open("wb") as told:
        return subprocess.Popen(
            [*command, "--out", str(folder / f"plan-{number}.json")], env=environment, stdout=told, stderr=told
        )


def share(folder: Path, data: Path, workers: int) -> dict:
    """Start all at once, wait for all, and hold what they wrote against each other."""
    folder.mkdir()
    began = time.monotonic()
    processes = [start(folder, data, number, "--probe", "always") for number in range(workers)]
    for number, process in enumerate(processes):
        if process.wait():
            raise SystemExit((folder / f"told-{number}").read_text()[-3000:])
    seconds = time.monotonic() - began
    plans = [read_plan(folder / f"plan-{number}.json") for number in range(workers)]
    made = [[outcome for _, outcome in Ledger(folder / f"ledger-{number}.sqlite3").rows()] for number in range(workers)]
    searched = Counter(outcome.knobs for outcome in plans[0].evidence.outcomes if outcome != plans[0].evidence.confirmed)
    best = plans[0]
    return {
        "probes_each": [len(outcomes) for outcomes in made],
        "probes": sum(map(len, made)),
        "settings_twice": sum(count - 1 for count in searched.values()),
        "seconds": round(seconds, 1),
        "plans": len({essence(plan) for plan in plans}),
        "samples_per_second": best.estimate.samples_per_second,
        "winner": describe(best.knobs),
    }


def essence(plan: Plan) -> str:
    """The plan without what is each worker's own: how long it took, and since when it knew of the others."""
    return plan.replace(evidence=plan.evidence.replace(wall_seconds=None)).model_dump_json()


class Waiting(Replay):
    """A prober that looks up what a GPU said, after a while."""

    def probe(self, knobs: Knobs, *, fresh: bool = False) -> Outcome:
        time.sleep(PROBE_SECONDS)
        return super().probe(knobs, fresh=fresh)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A measured grid, and the estimator that its job is planned with."""

    job: Job
    truth: dict[Knobs, True_]
    estimator: Estimator


def measured_grid() -> Known:
    """The H100 grid of reports/prediction, its noise as repeated, on a GPU that nobody calibrated."""
    _, job, found, _ = h100_grid()
    estimator = Estimator(job, calibration=load_calibration("no GPU has this name"))
    return Known(job=job, truth=truths(found, flat=False), estimator=estimator)


def replayed(folder: Path, workers: int, seed: int, known: Known) -> dict:
    """The same by workers who look a GPU's answers up, and wait as long as one takes."""
    folder.mkdir()
    context = get_context("fork")
    answers = context.SimpleQueue()

    def work(number: int) -> None:
        prober: Any = Waiting(known.job, known.truth, 100 * seed + number)
        storage = f"journal://{folder / 'study.log'}"
        choice = Planner(job=known.job, estimator=known.estimator, prober=prober, storage=storage, allocator="default").plan()
        answers.put((prober.asked, choice.winner.knobs))

    began = time.monotonic()
    processes = [context.Process(target=work, args=(number,)) for number in range(workers)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    seconds = time.monotonic() - began
    asked = Counter(knobs for settings, _ in found for knobs in settings)
    winners = {winner for _, winner in found}
    within = (true for true in known.truth.values() if true.process_peak_bytes <= known.job.budget_bytes)
    best = max(true.samples_per_second for true in within)
    return {
        "most_of_one": max(len(settings) for settings, _ in found),
        "probes": sum(asked.values()),
        "settings_twice": sum(asked.values()) - len(asked) - 1,  # the winner is confirmed
        "seconds": seconds,
        "winners": len(winners),
        "regret": max(1 - known.truth[winner].samples_per_second / best for winner in winners),
    }


def print_real(folder: Path, numbers: list[int]) -> None:
    print("real probes of a tiny model (predicted: the CPU and its byte meter, two cores; no GPU took part)")
    print("| workers | probes each | all | settings twice | seconds | different plans | samples/s | winner |")
    print("|---|---|---|---|---|---|---|---|")
    data = draw_examples(folder / "data", 24).folder
    (folder / "first").mkdir()
    start(folder / "first", data, 0, "--probe", "never").wait()  # the memory models are traced once, and kept
    for workers in numbers:
        row = share(folder / f"shared-by-{workers}", data, workers)
        each = ", ".join(map(str, row["probes_each"]))
        told = f"{row['settings_twice']} | {row['seconds']:.0f} | {row['plans']} | {row['samples_per_second']:.1f}"
        print(f"| {workers} | {each} | {row['probes']} | {told} | {row['winner']} |", flush=True)


def print_replayed(folder: Path, numbers: list[int], seeds: int) -> None:
    known = measured_grid()
    print(f"\nreplayed: {len(known.truth)} settings measured on an H100, {PROBE_SECONDS:.0f} s a probe, {seeds} seeds")
    print("| workers | most probes of one | all | settings twice | seconds | different plans at most | worst regret |")
    print("|---|---|---|---|---|---|---|")
    for workers in numbers:
        rows = [replayed(folder / f"replay-{workers}-{seed}", workers, seed, known) for seed in range(seeds)]
        most, probes, seconds = (mean(row[name] for row in rows) for name in ("most_of_one", "probes", "seconds"))
        twice, plans = sum(row["settings_twice"] for row in rows), max(row["winners"] for row in rows)
        regret = max(row["regret"] for row in rows)
        print(f"| {workers} | {most:.1f} | {probes:.1f} | {twice} | {seconds:.1f} | {plans} | {regret:.1%} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seeds", type=int, default=5, help="of the replay")
    parser.add_argument("--parts", nargs="+", choices=("real", "replayed"), default=("real", "replayed"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "real" in chosen.parts:
            print_real(folder, chosen.workers)
        if "replayed" in chosen.parts:
            print_replayed(folder, chosen.workers, chosen.seeds)


if __name__ == "__main__":
    main()
