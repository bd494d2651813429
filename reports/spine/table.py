"""Prints the figures of reports/spine/README.md from the plans and the run log beside it.

python reports/spine/table.py
"""

import json
import re
from pathlib import Path

from budgetft.knobs import describe
from budgetft.plan import Plan, read_plan

HERE = Path(__file__).parent
GIB = 2**30


def row(name: str, plan: Plan) -> str:
    outcomes = plan.evidence.outcomes
    baseline, confirmed = plan.baseline, plan.evidence.confirmed
    assert baseline is not None
    assert baseline.outcome is not None
    assert confirmed is not None
    ratio = (confirmed.samples_per_second or 0) / (baseline.outcome.samples_per_second or 1)
    ooms = sum(outcome.status == "oom" for outcome in outcomes)
    probing = sum(outcome.wall_seconds for outcome in outcomes)
    return (
        f"| {name} | {baseline.outcome.samples_per_second:.2f} (micro-batch {baseline.knobs.micro_batch})"
        f" | {confirmed.samples_per_second:.2f} ({describe(plan.knobs)}) | {ratio:.2f}x"
        f" | {(confirmed.process_peak_bytes or 0) / GIB:.2f} | {len(outcomes)} | {ooms} | {probing:.0f} |"
    )


def main() -> None:
    print(
        "| job | stock, samples/s | plan, samples/s | ratio | plan's process peak, GiB"
        " | probes | of them OOM | seconds probing |"
    )
    print("|---|---|---|---|---|---|---|---|")
    jobs = {"448": "448x448", "448-first": "448x448, earlier run", "1288": "1288x728", "real": "video frames"}
    for name, title in jobs.items():
        print(row(title, read_plan(HERE / f"plan-{name}.json")))
    plan = read_plan(HERE / "plan-real.json")
    records = [json.loads(line) for line in (HERE / "log-real.jsonl").read_text().splitlines()]
    confirmed = plan.evidence.confirmed
    assert confirmed is not None
    assert confirmed.process_peak_bytes is not None
    peak = max(record["process_peak_bytes"] for record in records)
    print(f"\nrun of {len(records)} steps: process peak {peak / GIB:.3f} GiB, budget {plan.gpu.budget_bytes / GIB:.2f} GiB,")
    print(f"confirmed {confirmed.process_peak_bytes / GIB:.3f} GiB, difference {peak / confirmed.process_peak_bytes - 1:+.2%};")
    print(
        f"loss {records[0]['loss']:.3f} to {records[-1]['loss']:.4f}; steps over the budget: "
        f"{sum(record['process_peak_bytes'] > plan.gpu.budget_bytes for record in records)}"
    )
    pairs = [pair for name in ("448", "1288", "real") for pair in predicted_and_measured(HERE / f"plan-{name}.txt")]
    errors = [abs(predicted / measured - 1) for predicted, measured in pairs]
    print(
        f"process peak predicted before the first probe of each job: mean error {sum(errors) / len(errors):.1%},"
        f" worst {max(errors):.1%} over {len(errors)} settings (calibration 'assumed')"
    )


def predicted_and_measured(transcript: Path) -> list[tuple[float, float]]:
    """(predicted, measured) GiB of every probe that ended well, as the plan's progress printed them."""
    found = re.findall(r"samples/s, ([\d.]+) GiB \(predicted ([\d.]+) GiB[,)]", transcript.read_text())
    return [(float(predicted), float(measured)) for measured, predicted in found]


if __name__ == "__main__":
    main()
