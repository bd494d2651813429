"""Speed of every setting that a plan may choose, on one GPU: what a search is judged by.

    python reports/prediction/speed_grids.py choose > reports/prediction/speed-grids.jsonl          # no GPU
    python reports/prediction/speed_grids.py measure reports/prediction/speed-grids.jsonl LEDGER SECONDS    # on the GPU
    python reports/prediction/speed_grids.py machine OUT.json                                       # on the GPU

Full-size models on random weights; 14 GiB for the process; two images, two models, effective batch 8 and 32, with the kernels
of a V100 and of the GPU itself. A setting counts as too large when it is predicted above 14 GiB (peaks are predicted to 1 %).
The process has no cap, so that a setting a little above ends well too. Started again with the same ledger it goes on.
"""

import json
import sys
import time
from pathlib import Path

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings, stock_settings
from budgetft.value import Value
from budgetft.workload import Shape, Workload

GIB = 2**30
BUDGET_BYTES = 14 * GIB
UNCAPPED_BYTES = 70 * GIB
GRIDS = (
    ("v100-16g", "qwen2.5-vl-3b", (448, 448), 32),
    ("v100-16g", "qwen2.5-vl-3b", (1288, 728), 32),
    ("v100-16g", "qwen2-vl-2b", (448, 448), 8),
    ("h200-141g", "qwen2.5-vl-3b", (448, 448), 32),
)
"""(GPU whose kernels run, model, image, effective batch)."""


class Cell(Value):
    """One setting of one grid."""

    gpu: str
    model: str
    image: tuple[int, int]
    knobs: Knobs

    def job(self, budget_bytes: int = UNCAPPED_BYTES) -> Job:
        """Its planning problem: one image, 256 text tokens of which 160 are supervised, rank 16."""
        shape = Shape(images=(self.image,), text_tokens=256, supervised_tokens=160)
        return Job(
            gpu=load_gpu(self.gpu),
            host=None if self.gpu == "h200-141g" else load_gpu("h200-141g"),
            budget_bytes=budget_bytes,
            model=load_model(self.model),
            contract=Contract(effective_batch=self.knobs.micro_batch * self.knobs.grad_accum, max_length=8192),
            workload=Workload.uniform(shape),
            evidence="measured" if self.gpu == "h200-141g" else "emulated",
        )


def choose() -> None:
    """Print every setting of every grid that is predicted within the budget, those of a grid together."""
    for gpu, model, image, effective in GRIDS:
        like = Cell(gpu=gpu, model=model, image=image, knobs=Knobs(micro_batch=1, grad_accum=effective, checkpointed_layers=0))
        job = like.job()
        estimator = Estimator(job)
        for knobs in (*settings(job), *stock_settings(job)):
            if estimator.estimate(knobs).process_peak_bytes <= 1.01 * BUDGET_BYTES:
                print(like.replace(knobs=knobs).model_dump_json())


def cells(path: str) -> list[Cell]:
    """Those in ``path``."""
    return [Cell.read(json.loads(line), source=path) for line in Path(path).read_text().splitlines()]


def measure(path: str, ledger_path: str, seconds: float) -> None:
    """Measure until the time is up; a process a model and kernels, as memory and kernels of another stay in a process."""
    from subprocess import run

    started = time.monotonic()
    for group in dict.fromkeys((cell.gpu, cell.model) for cell in cells(path)):
        left = seconds - (time.monotonic() - started)
        if left > 20:
            run([sys.executable, __file__, "measure-group", path, ledger_path, str(left), *group])


def measure_group(path: str, ledger_path: str, seconds: float, gpu: str, model: str) -> None:
    """One group in this process, every other setting first, so that a stop leaves a coarser grid."""
    import os

    os.environ["PYTORCH_ALLOC_CONF"] = os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    import torch

    from budgetft.measure.child import Probing, current_stack
    from budgetft.measure.ledger import Ledger

    started, ledger, stack = time.monotonic(), Ledger(Path(ledger_path)), current_stack("cuda")
    wanted = [cell for cell in cells(path) if (cell.gpu, cell.model) == (gpu, model)]
    left = [cell for cell in wanted if ledger.find(cell.job(), cell.knobs, stack) is None]
    if not left:
        return
    probing = Probing(left[0].job(), left[0].knobs, lambda phase: None)
    for number, cell in enumerate([*left[::2], *left[1::2]]):
        if time.monotonic() - started > seconds:
            print(f"time is up after {number} of {len(left)}")
            return
        job, begun = cell.job(), time.monotonic()
        probing.rebind(job)
        outcome = probing.probe(cell.knobs, timed_steps=4)
        outcome = outcome.replace(stack=stack, wall_seconds=time.monotonic() - begun)
        ledger.append(job, outcome)
        speed, error = outcome.samples_per_second or 0.0, outcome.speed_error or 0.0
        print(
            f"{gpu} {model} {cell.image} {cell.knobs.micro_batch}/{cell.knobs.checkpointed_layers}/{cell.knobs.loss}"
            f" {outcome.status} {(outcome.process_peak_bytes or 0) / GIB:.2f} GiB {speed:.2f}/s +-{error:.1%}"
            f" {len(outcome.timed_seconds)} readings {outcome.wall_seconds:.1f} s",
            flush=True,
        )
        torch.cuda.empty_cache()


def machine(out: str) -> None:
    """Measure this GPU and its host; printed and written."""
    import torch

    from budgetft.measure.child import current_stack
    from budgetft.predict.look import read_machine

    begun, stack = time.monotonic(), current_stack("cuda")
    found = read_machine(stack.gpu, stack.driver, dtype=torch.float16)
    print(f"{time.monotonic() - begun:.1f} s")
    print(found.model_dump_json(indent=1))
    Path(out).write_text(found.model_dump_json(indent=1) + "\n")


def main() -> None:
    """See the module."""
    command, *words = sys.argv[1:]
    if command == "choose":
        choose()
    elif command == "measure":
        measure(words[0], words[1], float(words[2]))
    elif command == "measure-group":
        measure_group(words[0], words[1], float(words[2]), words[3], words[4])
    else:
        machine(words[0])


if __name__ == "__main__":
    main()
