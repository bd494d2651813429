"""What replay.py and made_up.py share: a prober that answers from a table of true speeds and peaks, as a probe would.

A probe's repeats are drawn one by one and end by the rule of the product's own child: more while their standard error is large.
"""

import math
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from harness import tables

from budgetft.knobs import Allocator, Knobs
from budgetft.measure.child import MOST_READINGS, PRECISE, standard_error
from budgetft.measure.job import Job
from budgetft.outcome import Outcome, Stack
from budgetft.predict.estimator import Estimator
from budgetft.search.events import Event
from budgetft.search.planner import Planner
from budgetft.search.study import SamplerName

TIMED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class True_:
    """What a setting really needs, and how its readings scatter: within a probe, and from one probe to the next."""

    samples_per_second: float
    process_peak_bytes: int
    step_noise: float
    drift: float


class Replay:
    """A prober that looks up what a GPU said; a setting without an entry counts as out of memory."""

    def __init__(self, job: Job, truth: Mapping[Knobs, True_], seed: int) -> None:
        self.job, self.truth, self.draw = job, truth, random.Random(seed)
        self.stack: Stack | None = None
        self.asked: list[Knobs] = []
        self.lost = 0

    def probe(self, knobs: Knobs, *, fresh: bool = False) -> Outcome:
        """The outcome under the budget, its seconds with noise."""
        self.asked.append(knobs)
        true = self.truth.get(knobs)
        ended: dict[str, Any] = {"knobs": knobs, "evidence": self.job.evidence, "budget_bytes": self.job.budget_bytes}
        if true is None or true.process_peak_bytes > self.job.budget_bytes:
            self.lost += 1
            return Outcome(status="oom", phase="backward", detail="replayed", **ended)
        effective, now = self.job.contract.effective_batch, math.exp(self.draw.gauss(0.0, true.drift))
        readings: list[float] = []
        while len(readings) < MOST_READINGS:
            readings += [now * math.exp(self.draw.gauss(0.0, true.step_noise)) for _ in range(TIMED_STEPS)]
            error = standard_error([readings])
            if error is not None and error <= PRECISE:
                break
        seconds = effective / true.samples_per_second * median(readings)
        return Outcome(
            status="ok",
            allocated_peak_bytes=int(0.9 * true.process_peak_bytes),
            reserved_peak_bytes=int(0.95 * true.process_peak_bytes),
            process_peak_bytes=true.process_peak_bytes,
            alloc_retries=0,
            step_seconds=seconds,
            samples_per_second=effective / seconds,
            speed_error=standard_error([readings]),
            **ended,
        )


@dataclass(frozen=True, kw_only=True)
class Found:
    """One search: the truth of its plan against the best, and what it cost."""

    regret: float
    probes: int
    lost: int
    winner: Knobs


def search(
    estimator: Estimator,
    truth: Mapping[Knobs, True_],
    *,
    sampler: SamplerName,
    seed: int,
    max_probes: int,
    allocator: Allocator = "expandable",
    on_event: Callable[[Event], None] = lambda event: None,
) -> Found:
    """A search by the planner of the product over ``truth``. Regret is of the plan's true speed against the best that fits."""
    job = estimator.job
    replay: Any = Replay(job, truth, seed)
    seeded = job.replace(contract=job.contract.replace(seed=seed))
    how = {"sampler": sampler, "max_probes": max_probes, "allocator": allocator, "on_event": on_event}
    winner = Planner(job=seeded, estimator=estimator, prober=replay, **how).plan().winner.knobs
    best = max(true.samples_per_second for true in truth.values() if true.process_peak_bytes <= job.budget_bytes)
    return Found(regret=1 - truth[winner].samples_per_second / best, probes=len(replay.asked), lost=replay.lost, winner=winner)


def row(name: str, found: list[Found]) -> str:
    """A line of the table."""
    regrets, probes = [each.regret for each in found], [float(each.probes) for each in found]
    lost, (middle, p90) = [each.lost for each in found], np.quantile(regrets, (0.5, 0.9))
    cells = (f"{np.quantile(probes, 0.5):.0f}", f"{max(probes):.0f}", f"{np.mean(lost):.2f}", max(lost))
    return tables.row(name, *cells, f"{middle:.1%}", f"{p90:.1%}", f"{max(regrets):.1%}")


HEAD = tables.head("search", "probes median", "most", "out of memory mean", "most", "regret median", "p90", "worst")
