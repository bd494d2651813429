"""What the sizes of loss chunks and vision groups are worth: the least peak and the fastest setting, with other ones.

    python reports/bench/parts.py > reports/bench/parts.txt        # no GPU: predicted, about 5 minutes of tracing

One image, 256 text tokens, 160 of them supervised, rank 16, 16 examples a step, V100 kernels.
"""

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.estimator import Estimator
from budgetft.search.ranking import speed
from budgetft.search.space import settings
from budgetft.workload import Shape, Workload

GIB = 2**30
JOBS = (("qwen2-vl-2b", 6, (448, 448)), ("qwen2.5-vl-3b", 14, (448, 448)), ("qwen2.5-vl-3b", 14, (1288, 728)))
SIZES = ((64, 2048), (256, 8192), (1024, 32768))


def main() -> None:
    """A table line for each job and size."""
    print("| model | image | budget | loss_chunk, vision_group | least peak | fastest: micro-batch, checkpointed | samples/s |")
    print("|---|---|---|---|---|---|---|")
    for name, budget, size in JOBS:
        shape = Shape(images=(size,), text_tokens=256, supervised_tokens=160)
        job = Job(
            gpu=load_gpu("v100-16g"),
            budget_bytes=budget * GIB,
            model=load_model(name),
            contract=Contract(rank=16, effective_batch=16),
            workload=Workload.uniform(shape),
            evidence="predicted",
        )
        estimator = Estimator(job)
        for chunk, group in SIZES:
            grid = [knobs.replace(loss_chunk=chunk, vision_group=group) for knobs in settings(job)]
            found = {knobs: estimator.estimate(knobs) for knobs in grid}
            least = min(estimate.process_peak_bytes for estimate in found.values()) / GIB
            fitting = {knobs: estimate for knobs, estimate in found.items() if estimate.fits}
            best = max(fitting, key=lambda knobs: speed(found[knobs]), default=None)
            fastest = "nothing fits | -"
            if best is not None:
                fastest = f"{best.micro_batch}, {best.checkpointed_layers} | {found[best].samples_per_second:.2f}"
            line = f"| {name} | {size[0]}x{size[1]} | {budget} GiB | {chunk}, {group} | {least:.2f} GiB | {fastest} |"
            print(line, flush=True)


if __name__ == "__main__":
    main()
