"""Searches replayed over a grid whose every setting was measured: probes, failures and regret, for three samplers.

    python reports/prediction/replay.py LEDGER grid.jsonl [SEEDS [SAMPLER,...]]

The planner is the one of ``budgetft plan``; only its prober is replaced, by what the card said: a setting above 14 GiB ends
as out of memory, another has its measured peak, and its measured speed with the noise that repeated steps had (a different
draw each time it is asked). Regret is what the winner's own measured speed lacks of the best in the grid that fits.
After six probes of a search the peaks of all settings not probed are predicted, and compared; for those within 10 % of the
budget it says whether the planner would have run them, and how much of the budget its margin takes.
"""

import math
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any, get_args

from ground_truth import BUDGET_BYTES, CALIBRATION, GIB, Setting, job_of, read

from budgetft.gpu import load_gpu
from budgetft.knobs import Allocator, Knobs, is_stock
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome, Stack
from budgetft.predict.estimator import Estimator
from budgetft.search.planner import Event, Planner
from budgetft.search.sampler import ResidualSampler, peak_prior
from budgetft.search.space import settings, stock_settings
from budgetft.search.study import SamplerName, open_study, study_name, told

MAX_PROBES = 14
ALLOCATOR: Allocator = "default"
"""Of the half of the grid that was measured by one process at a time."""


class Replay:
    """A prober that looks up what a card said."""

    def __init__(self, job: Job, truth: dict[Knobs, Outcome], noise: float, seed: int) -> None:
        self.job, self.truth, self.noise = job, truth, noise
        self.draw = random.Random(seed)
        self.stack: Stack | None = None
        self.asked: list[Knobs] = []

    def probe(self, knobs: Knobs, *, fresh: bool = False) -> Outcome:
        """The measured outcome under the budget; unmeasured settings are those far above it."""
        self.asked.append(knobs)
        true = self.truth.get(knobs)
        ended: dict[str, Any] = {"knobs": knobs, "evidence": self.job.evidence, "budget_bytes": self.job.budget_bytes}
        if true is None or (true.process_peak_bytes or 0) > self.job.budget_bytes:
            return Outcome(status="oom", phase="backward", detail="replayed", **ended)
        factor = math.exp(self.draw.gauss(0.0, self.noise))
        assert true.samples_per_second is not None
        assert true.step_seconds is not None
        return true.replace(
            budget_bytes=self.job.budget_bytes,
            samples_per_second=true.samples_per_second * factor,
            step_seconds=true.step_seconds / factor,
        )


def truth_of(ledger: Path, path: str) -> tuple[Job, dict[Knobs, Outcome]]:
    """The job under its budget, and what was measured of the settings in ``path``."""
    rows = [Setting.read(row, source=path) for row in read(path)]
    key = job_of(rows[0]).fingerprint()
    wanted = frozenset(setting.knobs for setting in rows if setting.knobs.allocator == "default")
    found = {o.knobs: o for job, o in Ledger(ledger).rows() if job.fingerprint() == key and o.knobs in wanted and o.fits}
    missing = len(wanted.difference(found))
    if missing:
        print(f"{missing} of {len(wanted)} settings were not measured: they count as out of memory")
    return job_of(rows[0]).replace(budget_bytes=BUDGET_BYTES, host=load_gpu("h100-80g")), found


def noise_of(truth: dict[Knobs, Outcome]) -> float:
    """Standard deviation of the log of a step's seconds, from the pairs of timed steps."""
    pairs = [outcome.timed_seconds[:2] for outcome in truth.values() if len(outcome.timed_seconds) >= 2]
    return math.sqrt(mean(math.log(a / b) ** 2 / 2 for a, b in pairs))


def main() -> None:
    """Print one line a sampler, and the errors after six probes."""
    ledger, path = Path(sys.argv[1]), sys.argv[2]
    seeds = int(sys.argv[3]) if len(sys.argv) > 3 else 20
    job, truth = truth_of(ledger, path)
    noise = min(0.03, noise_of(truth))
    estimator = Estimator(job, calibration=CALIBRATION)
    fitting = {k: o for k, o in truth.items() if (o.process_peak_bytes or 0) <= BUDGET_BYTES and o.samples_per_second}
    best = max(o.samples_per_second or 0.0 for o in fitting.values())
    print(f"{len(truth)} settings measured, {len(fitting)} fit; best {best:.2f} samples/s; noise of a step {noise:.1%}")
    print("| sampler | probes median | most | out of memory mean | regret median | p90 | worst |")
    print("|---|---|---|---|---|---|---|")
    asked = sys.argv[4].split(",") if len(sys.argv) > 4 else get_args(SamplerName)
    names: list[SamplerName] = [name for name in get_args(SamplerName) if name in asked]
    for name in names:
        runs = [search(job, truth, estimator, name, noise, seed) for seed in range(seeds)]
        regrets = [1 - (truth[winner].samples_per_second or 0.0) / best for winner, _, _ in runs]
        probes, failures = [count for _, count, _ in runs], [lost for _, _, lost in runs]
        print(
            f"| {name} | {median(probes):.0f} | {max(probes)} | {mean(failures):.2f} | {median(regrets):.1%}"
            f" | {quantiles(regrets, n=10)[-1]:.1%} | {max(regrets):.1%} |"
        )
    print("winners of ours:", dict(Counter(_short(search(job, truth, estimator, "residual", noise, s)[0]) for s in range(5))))
    after_six(job, truth, estimator, noise)


def search(
    job: Job, truth: dict[Knobs, Outcome], estimator: Estimator, name: SamplerName, noise: float, seed: int
) -> tuple[Knobs, int, int]:
    """(winner, probes with the confirmation, probes that ran out of memory)."""
    replay: Any = Replay(job, truth, noise, seed)
    seeded = job.replace(contract=job.contract.replace(seed=seed))
    lost = 0

    def count(event: Event) -> None:
        nonlocal lost
        lost += event.outcome is not None and event.outcome.status == "oom"

    planner = Planner(
        allocator=ALLOCATOR,
        job=seeded,
        estimator=estimator,
        prober=replay,
        sampler=name,
        max_probes=MAX_PROBES,
        on_event=count,
    )
    return planner.plan().winner.knobs, len(replay.asked), lost


def after_six(job: Job, truth: dict[Knobs, Outcome], estimator: Estimator, noise: float) -> None:
    """Errors of predicted process peaks of unseen settings, with the first six probes of a search known."""
    replay: Any = Replay(job, truth, noise, 0)
    grid = [*settings(job, allocator=ALLOCATOR), *stock_settings(job)]
    estimates = [estimator.estimate(knobs) for knobs in grid]
    sampler = ResidualSampler(
        grid, estimates, budget_bytes=BUDGET_BYTES, peak_prior=peak_prior(estimator.calibration.uncertainty_share)
    )
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/study.sqlite3"
        Planner(job=job, estimator=estimator, prober=replay, max_probes=7, storage=storage, allocator=ALLOCATOR).plan()
        study = open_study(study_name(job, None, "residual", vision="frozen", base_precision=None), storage, sampler)
        trials = study.get_trials()[:6]
        known = frozenset(outcome.knobs for outcome in told(study)[:6])
    raw, taught, near = [], [], []
    for knobs, peak, bound, estimate in zip(grid, *sampler.peaks(trials), estimates, strict=True):
        true = truth.get(knobs)
        if true is None or knobs in known or not true.process_peak_bytes:
            continue
        raw.append(estimate.process_peak_bytes / true.process_peak_bytes - 1)
        taught.append(float(peak) / true.process_peak_bytes - 1)
        if abs(true.process_peak_bytes / BUDGET_BYTES - 1) <= 0.1:
            near.append((bound <= BUDGET_BYTES, true.process_peak_bytes <= BUDGET_BYTES, bound - peak))
    for label, errors in (("before any probe", raw), (f"after {len(known)} probes", taught)):
        sizes = [abs(error) for error in errors]
        print(
            f"{label}: {len(sizes)} unseen settings, median {median(sizes):.2%}, mean {mean(sizes):.2%},"
            f" p95 {quantiles(sizes, n=20)[-1]:.2%}, worst {max(sizes):.2%}, worst under {min(errors):+.2%}"
        )
    print(
        f"within 10 % of the budget: {len(near)} settings, {sum(s and not t for s, t, _ in near)} false fits,"
        f" {sum(t and not s for s, t, _ in near)} given away by a margin of {max(m for _, _, m in near) / GIB:.2f} GiB at most"
    )


def _short(knobs: Knobs) -> str:
    kind = "stock" if is_stock(knobs) else knobs.allocator
    return f"micro_batch {knobs.micro_batch}, checkpointed {knobs.checkpointed_layers}, {kind}"


if __name__ == "__main__":
    main()
