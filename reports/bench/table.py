"""The best of each path at each image size among the probes of a ledger: python reports/bench/table.py LEDGER"""

import sys
from pathlib import Path
from statistics import median

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


def main() -> None:
    """Print a Markdown table; a setting probed several times counts with its median."""
    found: dict[tuple[tuple[int, int], str], dict[Knobs, list[Outcome]]] = {}
    emulated: dict[tuple[int, int], Job] = {}
    for job, outcome in Ledger(Path(sys.argv[1])).rows():
        if outcome.fits and outcome.samples_per_second:
            key = job.workload.worst[0].images[0], path_of(outcome.knobs)
            found.setdefault(key, {}).setdefault(outcome.knobs, []).append(outcome)
            if outcome.evidence == "emulated":
                emulated[key[0]] = job
    best = {
        key: max(by_knobs.values(), key=lambda outcomes: median(o.samples_per_second or 0.0 for o in outcomes))
        for key, by_knobs in found.items()
    }
    print("| image | path | micro-batch | checkpointed | allocator | probes | samples/s | over stock | process peak | |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for (size, path), outcomes in sorted(best.items(), key=lambda item: (item[0][0], item[0][1] != "stock", item[0][1])):
        knobs, speed = outcomes[0].knobs, median(o.samples_per_second or 0.0 for o in outcomes)
        stock = best.get((size, "stock"))
        ratio = "-" if stock is None else f"{speed / median(o.samples_per_second or 0.0 for o in stock):.2f}x"
        peak = max(outcome.process_peak_bytes or 0 for outcome in outcomes)
        print(
            f"| {size[0]}x{size[1]} | {path} | {knobs.micro_batch} | {knobs.checkpointed_layers} | {knobs.allocator}"
            f" | {len(outcomes)} | {speed:.2f} | {ratio} | {format_gib(peak)} | {outcomes[0].evidence} |"
        )
    if emulated:
        print("\nThe speeds are those of the GPU that stood in. On\n")
        for size, job in sorted(emulated.items()):
            print(f"- {size[0]}x{size[1]}, {expected_text(job)}")


if __name__ == "__main__":
    main()
