"""One, two and three workers plan one job in one journal: probes each, seconds, and what they chose.

    python reports/guard/share.py [--seeds 5] > reports/guard/share.txt      # a quarter of an hour, no GPU

First with real probes. Every worker is a `budgetft plan --storage journal://...` with a ledger of its own, so that it knows
of the others by the journal alone. Evidence: predicted (the CPU and its byte meter; no GPU was used): workers of one
machine take its cores from each other, so the seconds of a step, and with them the choice, are those of a busy machine.

Then replayed, as on a GPU for each worker: the 54 settings of `reports/prediction/grid-448.jsonl` as they were measured, each
probe taking `PROBE_SECONDS` of sleep. Averages over the seeds of the noise.
"""

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

sys.path.insert(0, str(Path(__file__).parents[1]))

sys.path.insert(0, str(Path(__file__).parents[1] / "prediction"))

from harness.arguments import flag, parser
from harness.children import BUDGETFT, environment
from harness.jobs import uncalibrated
from harness.small import draw_examples
from harness.tables import head, show
from replay import h100_grid, truths
from replaying import Replay, True_

from budgetft.knobs import Knobs, describe
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome
from budgetft.plan import Plan, read_plan
from budgetft.predict.estimator import Estimator
from budgetft.search.planner import Planner

PROBE_SECONDS = 4.0
JOB = ("--gpu", "v100-16g", "--model", "tiny-qwen2.5-vl", "--rank", "4", "--effective-batch", "16", "--budget", "700MiB")


def start(folder: Path, data: Path, number: int, *more: str, storage: str | None = None) -> subprocess.Popen:
    """A worker, in a journal unless told otherwise; what it prints goes to a file of its own."""
    files = ("--storage", storage or f"journal://{folder / 'study.log'}", "--ledger", str(folder / f"ledger-{number}.sqlite3"))
    command = [*BUDGETFT, "plan", *JOB, "--data", str(data), *files, *more, "--out", str(folder / f"plan-{number}.json")]
    with (folder / f"told-{number}").open("wb") as told:
        env = environment(folder.parent / "cache", OMP_NUM_THREADS="1")
        return subprocess.Popen(command, env=env, stdout=told, stderr=told)


def share(folder: Path, data: Path, workers: int) -> tuple[object, ...]:
    """Start all at once, wait for all, and hold what they wrote against each other: cells of a row."""
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
    each, twice = [len(outcomes) for outcomes in made], sum(count - 1 for count in searched.values())
    different, speed = len({essence(plan) for plan in plans}), f"{plans[0].estimate.samples_per_second:.1f}"
    return (", ".join(map(str, each)), sum(each), twice, f"{seconds:.0f}", different, speed, describe(plans[0].knobs))


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
    return Known(job=job, truth=truths(found, flat=False), estimator=Estimator(job, calibration=uncalibrated()))


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
    print(head("workers", "probes each", "all", "settings twice", "seconds", "different plans", "samples/s", "winner"))
    data = draw_examples(folder / "data", 24).folder
    (folder / "first").mkdir()
    start(folder / "first", data, 0, "--probe", "never").wait()  # the memory models are traced once, and kept
    for workers in numbers:
        show(workers, *share(folder / f"shared-by-{workers}", data, workers))


def print_replayed(folder: Path, numbers: list[int], seeds: int) -> None:
    known = measured_grid()
    print(f"\nreplayed: {len(known.truth)} settings measured on an H100, {PROBE_SECONDS:.0f} s a probe, {seeds} seeds")
    print(head("workers", "most probes of one", "all", "settings twice", "seconds", "different plans at most", "worst regret"))
    for workers in numbers:
        rows = [replayed(folder / f"replay-{workers}-{seed}", workers, seed, known) for seed in range(seeds)]
        most, probes, seconds = (mean(row[name] for row in rows) for name in ("most_of_one", "probes", "seconds"))
        twice, plans = sum(row["settings_twice"] for row in rows), max(row["winners"] for row in rows)
        regret = max(row["regret"] for row in rows)
        show(workers, f"{most:.1f}", f"{probes:.1f}", twice, f"{seconds:.1f}", plans, f"{regret:.1%}")


options = flag(parser(__doc__), "--workers", type=int, nargs="+", default=[1, 2, 3])
flag(options, "--seeds", type=int, default=5, help="of the replay")
flag(options, "--parts", nargs="+", choices=("real", "replayed"), default=("real", "replayed"))


def main() -> None:
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if "real" in chosen.parts:
            print_real(folder, chosen.workers)
        if "replayed" in chosen.parts:
            print_replayed(folder, chosen.workers, chosen.seeds)


if __name__ == "__main__":
    main()
