"""What ground_truth.py and speed_grids.py share: many settings measured on a GPU until the time is up, going on from a ledger.

A process measures the settings of one group: memory, kernels and the allocator's kind of another stay in a process.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from harness.tables import gib

from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.measure.ledger import Ledger
from budgetft.outcome import Outcome

Asked = tuple[Job, Knobs, str]
"""A problem, a setting of it, and what is printed before its outcome."""


def in_groups(
    command: Sequence[str], groups: Iterable[str], seconds: float, *, workers: int = 1,
    environment: Callable[[str], Mapping[str, str] | None] = lambda group: None,
) -> None:  # fmt: skip
    """Run ``command`` SECONDS GROUP for every group, ``workers`` side by side, until the time is up."""
    started, running = time.monotonic(), list[subprocess.Popen]()
    for group in groups:
        while sum(process.poll() is None for process in running) >= workers:
            time.sleep(0.2)
        left = seconds - (time.monotonic() - started)
        if left <= 0:
            print("time is up")
            break
        running.append(subprocess.Popen([sys.executable, *command, str(left), group], env=environment(group)))
    for process in running:
        process.wait()


def group(
    asked: Sequence[Asked], ledger_path: Path, seconds: float, *, timed_steps: int, told: Callable[[Outcome], str]
) -> None:
    """Measure those that are not in the ledger yet, in this process; an outcome is there when its line is printed."""
    import torch

    from budgetft.measure.child import Probing, current_stack

    started, ledger, stack = time.monotonic(), Ledger(ledger_path), current_stack("cuda")
    left = [each for each in asked if ledger.find(each[0], each[1], stack) is None]
    if not left:
        return
    probing = Probing(left[0][0], left[0][1], lambda phase: None)
    for number, (job, knobs, name) in enumerate(left):
        if time.monotonic() - started > seconds:
            print(f"time is up after {number} of {len(left)}")
            return
        begun = time.monotonic()
        probing.rebind(job)
        outcome = probing.probe(knobs, timed_steps=timed_steps)
        outcome = outcome.replace(stack=stack, wall_seconds=time.monotonic() - begun)
        ledger.append(job, outcome)
        peak = gib(outcome.process_peak_bytes or 0)
        print(f"{name} {outcome.status} {peak} GiB{told(outcome)} {outcome.wall_seconds:.1f} s", flush=True)
        torch.cuda.empty_cache()
