"""Compares predictions with every outcome in ledgers: what no probe of the job had any part in.

    python reports/prediction/compare.py LEDGER.sqlite3 [...]      # printed: compare.txt; minutes of one core, no GPU

``memory_model`` is the shipped way: a memory model composed from short traces, with the allocator's share interpolated from
replays. Bytes are in GiB; errors are predicted over measured, less one.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser, there
from harness.tables import GIB, spread

from budgetft.knobs import is_stock
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Estimate, Outcome
from budgetft.predict.calibrate import load_calibration
from budgetft.predict.estimator import Estimator

KINDS = ("tensors", "reserved", "process")


def sizes(value: Outcome | Estimate) -> tuple[int, ...]:
    """Bytes of tensors, reserved and of the process."""
    first = value.tensor_peak_bytes if isinstance(value, Estimate) else value.allocated_peak_bytes
    return (first or 0, value.reserved_peak_bytes or 0, value.process_peak_bytes or 0)


def compared(paths: list[Path]) -> Iterator[tuple[Outcome, list[float]]]:
    """Every outcome that ended well, with the errors of its estimate by ``KINDS``."""
    estimators, calibration = dict[str, Estimator](), load_calibration("h100-80g", "emulated")
    for job, outcome in (row for path in paths for row in Ledger(path).rows()):
        if outcome.allocated_peak_bytes is not None:
            estimator = estimators.setdefault(job.fingerprint(), Estimator(job, calibration=calibration))
            both = zip(sizes(estimator.estimate(outcome.knobs)), sizes(outcome), strict=True)
            yield outcome, [said / true - 1 for said, true in both]


def summary(name: str, rows: list[list[float]]) -> None:
    """Mean, 95th percentile and worst of the absolute errors, and the worst under-prediction, by kind."""
    for kind, values in zip(KINDS, zip(*rows, strict=True), strict=True):
        off = spread(values)
        said = f"mean {off.mean:.2%}, p95 {off.p95:.2%}, worst {off.worst:.2%}, worst under {off.under:+.2%}"
        print(f"{name:>6} {kind:>9}: {off.count} settings, {said}")


options = flag(parser(__doc__), "ledgers", type=there, nargs="+")


def main() -> None:
    """Print one line a setting, then the summaries."""
    groups: dict[str, list[list[float]]] = {"ours": [], "stock": []}
    for outcome, found in compared(options.parse_args().ledgers):
        knobs = outcome.knobs
        groups["stock" if is_stock(knobs) else "ours"].append(found)
        cells = "  ".join(f"{size / GIB:6.3f} {error:+.2%}" for size, error in zip(sizes(outcome), found, strict=True))
        print(f"{knobs.micro_batch:3} {knobs.checkpointed_layers:3} {knobs.loss:10} {knobs.allocator:10} {cells}")
    for name, rows in {**groups, "all": groups["ours"] + groups["stock"]}.items():
        if rows:
            summary(name, rows)


if __name__ == "__main__":
    main()
