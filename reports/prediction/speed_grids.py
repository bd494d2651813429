"""Grids whose every fitting setting was measured on an H200: the truth that searches are replayed over (replay.py).

    python reports/prediction/speed_grids.py choose > speed-grids.jsonl                          # no GPU: by the memory model,
    seconds
    python reports/prediction/speed_grids.py measure speed-grids.jsonl LEDGER SECONDS            # on the GPU
    python reports/prediction/speed_grids.py machine OUT.json                                    # on the GPU, ten seconds

Each setting is one probe without a cap for the process; two images, two models, effective batch 8 and 32, with the kernels
of a V100 and of the GPU itself. A setting counts as too large when it is predicted above 14 GiB (peaks are predicted to 1 %).
The process has no cap, so that a setting a little above ends well too. Started again with the same ledger it goes on.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import measuring
from harness.arguments import commands, parser, there
from harness.evidence import read_lines
from harness.jobs import BUDGET_BYTES, LARGE, SMALL, UNCAPPED_BYTES, job, shape

from budgetft.contract import Contract
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.outcome import Outcome
from budgetft.predict.estimator import Estimator
from budgetft.search.space import settings, stock_settings
from budgetft.value import Value

GRIDS = (
    ("v100-16g", "qwen2.5-vl-3b", SMALL, 32),
    ("v100-16g", "qwen2.5-vl-3b", LARGE, 32),
    ("v100-16g", "qwen2-vl-2b", SMALL, 8),
    ("h200-141g", "qwen2.5-vl-3b", SMALL, 32),
)
"""(GPU whose kernels run, model, image, effective batch)."""


class Cell(Value):
    """One setting of one grid."""

    gpu: str
    model: str
    image: tuple[int, int]
    knobs: Knobs

    def job(self, budget_bytes: int = UNCAPPED_BYTES) -> Job:
        """Its planning problem: one image, 256 text tokens of which 160 are label tokens, rank 16."""
        contract = Contract(effective_batch=self.knobs.micro_batch * self.knobs.grad_accum, max_length=8192)
        own = self.gpu == "h200-141g"
        place = {"host": None, "evidence": "measured"} if own else {"host": "h200-141g", "evidence": "emulated"}
        return job(self.gpu, self.model, shape(self.image), contract, budget_bytes=budget_bytes, **place)


def of_grid(gpu: str, model: str, image: tuple[int, int], effective: int) -> Cell:
    """The smallest setting of a grid of ``GRIDS``."""
    return Cell(gpu=gpu, model=model, image=image, knobs=Knobs(micro_batch=1, grad_accum=effective, checkpointed_layers=0))


def choose() -> None:
    """Print every setting of every grid that is predicted within the budget, those of a grid together."""
    for grid in GRIDS:
        like = of_grid(*grid)
        problem = like.job()
        estimator = Estimator(problem)
        for knobs in (*settings(problem), *stock_settings(problem)):
            if estimator.estimate(knobs).process_peak_bytes <= 1.01 * BUDGET_BYTES:
                print(like.replace(knobs=knobs).model_dump_json())


def cells(path: str) -> list[Cell]:
    """Those in ``path``."""
    return [Cell.read(line, source=path) for line in read_lines(path)]


def measure_group(path: str, ledger: Path, seconds: float, name: str) -> None:
    """One model and GPU in this process, every other setting first, so that a stop leaves a coarser grid."""
    os.environ["PYTORCH_ALLOC_CONF"] = os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    wanted = [cell for cell in cells(path) if f"{cell.gpu}/{cell.model}" == name]
    asked = [
        (
            cell.job(),
            cell.knobs,
            f"{name} {cell.image} {cell.knobs.micro_batch}/{cell.knobs.checkpointed_layers}/{cell.knobs.loss}",
        )
        for cell in [*wanted[::2], *wanted[1::2]]
    ]

    def told(outcome: Outcome) -> str:
        speed, error = outcome.samples_per_second or 0.0, outcome.speed_error or 0.0
        return f" {speed:.2f}/s +-{error:.1%} {len(outcome.timed_seconds)} readings"

    measuring.group(asked, ledger, seconds, timed_steps=4, told=told)


def machine(out: Path) -> None:
    """Measure this GPU and its host; printed and written."""
    import torch

    from budgetft.measure.child import current_stack
    from budgetft.predict.look import read_machine

    begun, stack = time.monotonic(), current_stack("cuda")
    found = read_machine(stack.gpu, stack.driver, dtype=torch.float16).model_dump_json(indent=1)
    print(f"{time.monotonic() - begun:.1f} s", found, sep="\n")
    out.write_text(found + "\n")


options = parser(__doc__)
_measure = {"settings": there, "ledger": Path, "seconds": float}
commands(options, {"choose": {}, "measure": _measure, "measure-group": {**_measure, "group": str}, "machine": {"out": Path}})


def main() -> None:
    asked = options.parse_args()
    if asked.what == "choose":
        choose()
    elif asked.what == "machine":
        machine(asked.out)
    elif asked.what == "measure":
        groups = dict.fromkeys(f"{cell.gpu}/{cell.model}" for cell in cells(asked.settings))
        measuring.in_groups([__file__, "measure-group", str(asked.settings), str(asked.ledger)], groups, asked.seconds)
    else:
        measure_group(str(asked.settings), asked.ledger, asked.seconds, asked.group)


if __name__ == "__main__":
    main()
