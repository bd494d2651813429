"""The best of each path at each image size among the probes of a ledger, and what that says of the emulated GPU.

    python reports/bench/table.py reports/bench/ledger.sqlite3        # printed: table.txt; seconds, no GPU

Each row says whether it is measured or emulated; a setting probed several times counts with its median.
"""

import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser, there
from harness.tables import head, row

from budgetft.knobs import Knobs, is_stock
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome
from budgetft.search.predicted import expected_text
from budgetft.units import format_gib


def path_of(knobs: Knobs) -> str:
    """The name of the path that a setting belongs to."""
    if is_stock(knobs):
        return "stock"
    return "planned, cached features" if knobs.vision == "cached" else "planned"


def rate(outcomes: list[Outcome]) -> float:
    """Median examples a second."""
    return median(outcome.samples_per_second or 0.0 for outcome in outcomes)


options = flag(parser(__doc__), "ledger", type=there)


def main() -> None:
    found: dict[tuple[tuple[int, int], str], dict[Knobs, list[Outcome]]] = {}
    emulated: dict[tuple[int, int], Job] = {}
    for job, outcome in Ledger(options.parse_args().ledger).rows():
        if outcome.fits and outcome.samples_per_second:
            key = job.workload.worst[0].images[0], path_of(outcome.knobs)
            found.setdefault(key, {}).setdefault(outcome.knobs, []).append(outcome)
            if outcome.evidence == "emulated":
                emulated[key[0]] = job
    best = {key: max(by_knobs.values(), key=rate) for key, by_knobs in found.items()}
    setting = ("micro-batch", "checkpointed", "allocator")
    print(head("image", "path", *setting, "probes", "samples/s", "over stock", "process peak", "").replace(" |  |", " | |"))
    for (size, path), outcomes in sorted(best.items(), key=lambda item: (item[0][0], item[0][1] != "stock", item[0][1])):
        knobs, stock = outcomes[0].knobs, best.get((size, "stock"))
        ratio = "-" if stock is None else f"{rate(outcomes) / rate(stock):.2f}x"
        peak = format_gib(max(outcome.process_peak_bytes or 0 for outcome in outcomes))
        place = f"{size[0]}x{size[1]}", path, knobs.micro_batch, knobs.checkpointed_layers, knobs.allocator
        print(row(*place, len(outcomes), f"{rate(outcomes):.2f}", ratio, peak, outcomes[0].evidence))
    if emulated:
        print("\nThe speeds are those of the GPU that stood in. On\n")
        for size, job in sorted(emulated.items()):
            print(f"- {size[0]}x{size[1]}, {expected_text(job)}")


if __name__ == "__main__":
    main()
