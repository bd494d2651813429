"""How long predicting takes: python reports/prediction/timing.py

Medians of five for `budgetft estimate` of each bundled model in a process of its own (which must not load torch); a thousand
settings in one process; one trace and one whole memory model of qwen2.5-vl-3b from nothing.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from ground_truth import Setting, job_of

from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings
from budgetft.workload import Shape

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


def clocked(act: Callable[[], object]) -> float:
    """Seconds that ``act`` takes."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def main() -> None:
    """A line each."""
    for model in MODELS:
        command = [sys.executable, "-c", ESTIMATE.format(model)]
        seconds = [clocked(partial(subprocess.run, command, check=True, capture_output=True)) for _ in range(5)]
        print(f"budgetft estimate {model}: {median(seconds):.2f} s, torch not loaded")
    shape = Shape(images=((448, 448),), text_tokens=256, supervised_tokens=160)
    job = job_of(Setting(rank=16, shape=shape, knobs=Knobs(micro_batch=1, grad_accum=32, checkpointed_layers=36)))
    estimator, grid = Estimator(job), settings(job)
    estimator.estimate(grid[0])
    thousand = (grid * (1000 // len(grid) + 1))[:1000]
    print(f"1,000 settings: {clocked(lambda: [estimator.estimate(knobs) for knobs in thousand]):.2f} s")
    from budgetft.predict.fit import fit_memory_model
    from budgetft.predict.trace import trace_step

    model, knobs = load_model("qwen2.5-vl-3b"), grid[0]
    traced = clocked(lambda: trace_step(model, job.contract, knobs, (shape,), gpu=job.gpu))
    print(f"a fresh trace of qwen2.5-vl-3b, imports of torch and transformers included: {traced:.1f} s")
    combination = Estimator.combined(knobs)
    layouts = estimator.layouts(combination)
    fitted = clocked(lambda: fit_memory_model(model, job.contract, combination, shape, gpu=job.gpu, layouts=layouts))
    print(f"a whole memory model of it: {fitted:.1f} s")


if __name__ == "__main__":
    main()
