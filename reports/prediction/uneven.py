"""What micro-batches that do not divide the effective batch would gain.

    python reports/prediction/uneven.py      # printed: uneven.txt; a minute of one core, no GPU

By the memory model and the calibrations alone: 32 examples as so many micro-batches of each size and a shorter last one, any
number of layers checkpointed, against the planner's grid. Predicted.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from harness.arguments import parser
from harness.jobs import BUDGET_BYTES, SMALL
from speed_grids import GRIDS, of_grid

from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.predict.calibrate import load_calibration
from budgetft.predict.clock import Clock, StepWork
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings

options = parser(__doc__)


def main() -> None:
    """One line a job."""
    options.parse_args()
    for gpu, model, image, effective in (*GRIDS, ("v100-16g itself", "qwen2.5-vl-3b", SMALL, 32)):
        name = gpu.split()[0]
        job = of_grid(name, model, image, effective).job(BUDGET_BYTES)
        alone = job.replace(host=None) if "itself" in gpu else job.replace(host=load_gpu("h200-141g"))
        calibration = load_calibration(name if "itself" in gpu else "h200-141g", alone.evidence)
        estimator = Estimator(alone, calibration=calibration)
        grid = [knobs for knobs in settings(alone) if estimator.estimate(knobs).fits]
        even = min(grid, key=lambda knobs: estimator.estimate(knobs).step_seconds or np.inf)
        best, best_seconds = even, estimator.estimate(even).step_seconds or np.inf
        for size in range(1, effective + 1):
            whole, rest = divmod(effective, size)
            for checkpointed in range(job.model.layers + 1):
                if checkpointed in (1, job.model.layers - 1):
                    continue
                knobs = even.replace(micro_batch=size, grad_accum=max(2, whole), checkpointed_layers=checkpointed)
                if not estimator.estimate(knobs).fits:
                    continue
                works = [_work(estimator, knobs, float(size), whole), _work(estimator, knobs, float(rest or 1), int(rest > 0))]
                clock = Clock(works=works, tflops=estimator.speeds.tflops, gb_per_s=estimator.speeds.gb_per_s)
                seconds = float(np.exp(clock.log_seconds(estimator.speeds.middle_Q[None])[0])[: 1 + (rest > 0)].sum())
                if seconds < best_seconds:
                    best, best_seconds = knobs, seconds
        gain = (estimator.estimate(even).step_seconds or 0.0) / best_seconds - 1
        print(
            f"{gpu}, {model} {image[0]}x{image[1]}, batch {effective}: grid {even.micro_batch}/{even.checkpointed_layers},"
            f" any {best.micro_batch}/{best.checkpointed_layers}: {gain:+.1%}"
        )


def _work(estimator: Estimator, knobs: Knobs, size: float, times: int) -> StepWork:
    made = estimator.step_work(knobs.replace(micro_batch=1, grad_accum=estimator.job.contract.effective_batch))
    rows = made.micro_RSF[:1]
    double = estimator.step_work(knobs.replace(micro_batch=2, grad_accum=estimator.job.contract.effective_batch // 2))
    slope = double.micro_RSF[:1] - rows
    optimizer = made.optimizer_bytes if size == knobs.micro_batch else 0.0
    return StepWork(micro_RSF=rows + slope * (size - 1), times_R=np.array([float(times)]), optimizer_bytes=optimizer)


if __name__ == "__main__":
    main()
