"""Prints the figures of reports/spine/README.md from the plans and the run log beside it.

python reports/spine/table.py      # a second, no GPU; emulated: an H100 stood in for a V100
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import parser
from harness.evidence import read_lines
from harness.tables import gib, head, row

from budgetft.knobs import describe
from budgetft.plan import Plan, read_plan

HERE = Path(__file__).parent
GIB = 2**30

options = parser(__doc__)


def line(name: str, plan: Plan) -> str:
    outcomes, baseline, confirmed = plan.evidence.outcomes, plan.baseline, plan.evidence.confirmed
    assert baseline is not None
    assert baseline.outcome is not None
    assert confirmed is not None
    stock, speed = baseline.outcome.samples_per_second or 1, confirmed.samples_per_second or 0
    probing, ooms = sum(each.wall_seconds for each in outcomes), sum(each.status == "oom" for each in outcomes)
    both = (f"{stock:.2f} (micro-batch {baseline.knobs.micro_batch})", f"{speed:.2f} ({describe(plan.knobs)})")
    return row(
        name, *both, f"{speed / stock:.2f}x", gib(confirmed.process_peak_bytes or 0), len(outcomes), ooms, f"{probing:.0f}"
    )


def predicted_and_measured(transcript: Path) -> list[tuple[float, float]]:
    """(predicted, measured) GiB of every probe that ended well, as the plan's progress printed them."""
    found = re.findall(r"samples/s, ([\d.]+) GiB \(predicted ([\d.]+) GiB[,)]", transcript.read_text())
    return [(float(predicted), float(measured)) for measured, predicted in found]


def main() -> None:
    options.parse_args()
    names = ("job", "baseline, examples/s", "plan, examples/s", "ratio", "plan's peak GPU memory, GiB")
    print(head(*names, "probes", "of them OOM", "seconds probing"))
    jobs = {"448": "448x448", "448-first": "448x448, earlier run", "1288": "1288x728", "real": "video frames"}
    for name, title in jobs.items():
        print(line(title, read_plan(HERE / f"plan-{name}.json")))
    plan, records = read_plan(HERE / "plan-real.json"), read_lines(HERE / "log-real.jsonl")
    assert plan.evidence.confirmed is not None
    confirmed, budget = plan.evidence.confirmed.process_peak_bytes or 0, plan.gpu.budget_bytes
    peaks = [record["process_peak_bytes"] for record in records]
    print(f"\nrun of {len(records)} steps: process peak {max(peaks) / GIB:.3f} GiB, budget {gib(budget)} GiB,")
    print(f"confirmed {confirmed / GIB:.3f} GiB, difference {max(peaks) / confirmed - 1:+.2%};")
    over = sum(peak > budget for peak in peaks)
    print(f"loss {records[0]['loss']:.3f} to {records[-1]['loss']:.4f}; steps over the budget: {over}")
    pairs = [pair for name in ("448", "1288", "real") for pair in predicted_and_measured(HERE / f"plan-{name}.txt")]
    errors = [abs(predicted / measured - 1) for predicted, measured in pairs]
    print(
        f"process peak predicted before the first probe of each job: mean error {sum(errors) / len(errors):.1%},"
        f" worst {max(errors):.1%} over {len(errors)} settings (calibration 'assumed')"
    )


if __name__ == "__main__":
    main()
