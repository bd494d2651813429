"""What plans predicted before each of their probes, beside what the probes found.

    python reports/prediction/planned.py PLAN.json [...]      # printed: planned.md; seconds, no GPU

The planner computes the estimates of its whole grid before it probes; a plan keeps those of the settings that it probed.
"""

import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import flag, parser, there
from harness.tables import head, row

from budgetft.knobs import describe
from budgetft.plan import read_plan

options = flag(parser(__doc__), "plans", type=there, nargs="+")


def main() -> None:
    """A line a setting, then the mean and worst errors."""
    found: dict[str, list[float]] = {"tensors": [], "process": []}
    print(head("plan", "setting", *found))
    for path in options.parse_args().plans:
        plan, seen = read_plan(path), set()
        for said, outcome in zip(plan.evidence.predictions, plan.evidence.outcomes, strict=True):
            if outcome.knobs in seen or outcome.allocated_peak_bytes is None or outcome.process_peak_bytes is None:
                continue
            seen.add(outcome.knobs)
            errors = (
                said.tensor_peak_bytes / outcome.allocated_peak_bytes - 1,
                said.process_peak_bytes / outcome.process_peak_bytes - 1,
            )
            for values, error in zip(found.values(), errors, strict=True):
                values.append(error)
            print(row(path.stem, describe(outcome.knobs), *(f"{error:+.2%}" for error in errors)))
    for kind, values in found.items():
        worst = max(values, key=abs)
        print(f"\n{kind}: {len(values)} settings, mean {mean(map(abs, values)):.2%}, worst {worst:+.2%}")


if __name__ == "__main__":
    main()
