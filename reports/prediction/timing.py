"""How long predicting takes.

    python reports/prediction/timing.py      # printed: timing.txt; a minute of one core, no GPU; measured

Medians of five for `budgetft estimate` of each bundled model in a process of its own (which must not load torch); a thousand
settings in one process; one trace and one whole law of qwen2.5-vl-3b from nothing.
"""

import sys
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import parser
from harness.children import clocked, run
from harness.jobs import UNCAPPED_BYTES, job, shape

from budgetft.contract import Contract
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings

MODELS = ("qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen2-vl-2b", "qwen3-vl-2b", "qwen3-vl-4b")
ESTIMATE = """
import sys
from budgetft.cli import run
sys.argv = ["budgetft", "estimate", "--gpu", "v100-16g", "--model", "{}", "--image", "448x448"]
try:
    run()
finally:
    assert "torch" not in sys.modules, "torch was loaded"
"""


options = parser(__doc__)


def main() -> None:
    """A line each."""
    options.parse_args()
    for model in MODELS:
        command = [sys.executable, "-c", ESTIMATE.format(model)]
        seconds = [run(command).checked().seconds for _ in range(5)]
        print(f"budgetft estimate {model}: {median(seconds):.2f} s, torch not loaded")
    contract = Contract(rank=16, alpha=32, effective_batch=32, max_length=8192)
    problem = job("v100-16g", "qwen2.5-vl-3b", shape(), contract, budget_bytes=UNCAPPED_BYTES, evidence="emulated")
    estimator, grid = Estimator(problem), settings(problem)
    estimator.estimate(grid[0])
    thousand = (grid * (1000 // len(grid) + 1))[:1000]
    print(f"1,000 settings: {clocked(lambda: [estimator.estimate(knobs) for knobs in thousand]):.2f} s")
    from budgetft.predict.fit import fit_law
    from budgetft.predict.trace import trace_step

    model, knobs, place = problem.model, grid[0], {"gpu": problem.gpu}
    traced = clocked(lambda: trace_step(model, contract, knobs, (shape(),), **place))
    print(f"a fresh trace of qwen2.5-vl-3b, imports of torch and transformers included: {traced:.1f} s")
    combination = Estimator.combined(knobs)
    layouts = estimator.layouts(combination)
    fitted = clocked(lambda: fit_law(model, contract, combination, shape(), layouts=layouts, **place))
    print(f"a whole law of it: {fitted:.1f} s")


if __name__ == "__main__":
    main()
