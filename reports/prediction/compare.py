"""Compares predictions with every outcome in ledgers: what no probe of the job had any part in.

    python reports/prediction/compare.py LEDGER.sqlite3 [...]      # printed: compare.txt; minutes of one core, no GPU

``law`` is the shipped way: a law composed from short traces, with the allocator's share interpolated from replays.
Bytes are in GiB; errors are predicted over measured, less one.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser
from harness.tables import GIB, spread

from budgetft.knobs import is_stock
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Estimate, Outcome
from budgetft.predict.calibrate import load_calibration
from budgetft.predict.estimator import Estimator

KINDS = ("tensors", "reserved", "process")


def compared(paths: list[Path]) -> Iterator[tuple[Job, Outcome, Estimate]]:
    """Every outcome that ended well, with the estimate of its setting."""
    estimators: dict[str, Estimator] = {}
    calibration = load_calibration("h100-80g", "emulated")
    for path in paths:
        for job, outcome in Ledger(path).rows():
            if outcome.allocated_peak_bytes is None:
                continue
            key = job.fingerprint()
            estimator = estimators.setdefault(key, Estimator(job, calibration=calibration))
            yield job, outcome, estimator.estimate(outcome.knobs)


def errors(outcome: Outcome, estimate: Estimate) -> list[float]:
    """Of tensors, reserved and process bytes."""
    assert outcome.allocated_peak_bytes is not None
    assert outcome.reserved_peak_bytes is not None
    assert outcome.process_peak_bytes is not None
    return [
        estimate.tensor_peak_bytes / outcome.allocated_peak_bytes - 1,
        estimate.reserved_peak_bytes / outcome.reserved_peak_bytes - 1,
        estimate.process_peak_bytes / outcome.process_peak_bytes - 1,
    ]


def summary(name: str, rows: list[list[float]]) -> None:
    """Mean, 95th percentile and worst of the absolute errors, and the worst under-prediction, by kind."""
    for kind, values in zip(KINDS, zip(*rows, strict=True), strict=True):
        off = spread(values)
        said = f"mean {off.mean:.2%}, p95 {off.p95:.2%}, worst {off.worst:.2%}, worst under {off.under:+.2%}"
        print(f"{name:>6} {kind:>9}: {off.count} settings, {said}")


options = flag(parser(__doc__), "ledgers", type=Path, nargs="+")


def main() -> None:
    """Print one line a setting, then the summaries."""
    paths = options.parse_args().ledgers
    ours, stock = [], []
    for _, outcome, estimate in compared(paths):
        knobs = outcome.knobs
        found = errors(outcome, estimate)
        (stock if is_stock(knobs) else ours).append(found)
        measured = [outcome.allocated_peak_bytes, outcome.reserved_peak_bytes, outcome.process_peak_bytes]
        cells = "  ".join(f"{(size or 0) / GIB:6.3f} {error:+.2%}" for size, error in zip(measured, found, strict=True))
        print(f"{knobs.micro_batch:3} {knobs.checkpointed_layers:3} {knobs.loss:10} {knobs.allocator:10} {cells}")
    for name, rows in (("ours", ours), ("stock", stock), ("all", ours + stock)):
        if rows:
            summary(name, rows)


if __name__ == "__main__":
    main()
