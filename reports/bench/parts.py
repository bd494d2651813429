"""What the sizes of loss chunks and vision groups are worth: the least peak and the fastest setting, with other ones.

    python reports/bench/parts.py > reports/bench/parts.txt        # no GPU: predicted, about 5 minutes of tracing

One image, 256 text tokens, 160 of them label tokens, rank 16, 16 examples a step, V100 kernels.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.arguments import parser
from harness.jobs import LARGE, SMALL, job, shape
from harness.tables import GIB, gib, head, show

from budgetft.contract import Contract
from budgetft.predict.estimator import Estimator
from budgetft.search.ranking import speed
from budgetft.search.space import settings

JOBS = (("qwen2-vl-2b", 6, SMALL), ("qwen2.5-vl-3b", 14, SMALL), ("qwen2.5-vl-3b", 14, LARGE))
SIZES = ((64, 2048), (256, 8192), (1024, 32768))


options = parser(__doc__)


def main() -> None:
    options.parse_args()
    fastest = ("fastest: micro-batch, checkpointed", "samples/s")
    print(head("model", "image", "budget", "loss_chunk, vision_group", "least peak", *fastest))
    for name, budget, size in JOBS:
        problem = job("v100-16g", name, shape(size), Contract(rank=16, effective_batch=16), budget_bytes=budget * GIB)
        estimator = Estimator(problem)
        for chunk, group in SIZES:
            grid = [knobs.replace(loss_chunk=chunk, vision_group=group) for knobs in settings(problem)]
            found = {knobs: estimator.estimate(knobs) for knobs in grid}
            least = min(estimate.process_peak_bytes for estimate in found.values())
            best = max((knobs for knobs in grid if found[knobs].fits), key=lambda knobs: speed(found[knobs]), default=None)
            told = ("nothing fits", "-")
            if best is not None:
                told = (f"{best.micro_batch}, {best.checkpointed_layers}", f"{found[best].samples_per_second:.2f}")
            show(name, f"{size[0]}x{size[1]}", f"{budget} GiB", f"{chunk}, {group}", f"{gib(least)} GiB", *told)


if __name__ == "__main__":
    main()
