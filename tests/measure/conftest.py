"""A tiny job on the CPU's byte meter, children that write down their process id, and what may be held of a process."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from patience import until

from budgetft.contract import Contract
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import load_model
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

SHAPE = Shape(images=((56, 56),), text_tokens=40, supervised_tokens=8)

REAL_CHILD = """
import os, sys
with open({pids!r}, "a") as pids:
    print(os.getpid(), file=pids)
from budgetft.measure import child
child.TIMED_SECONDS = float("inf")  # no step is left out because the machine is busy
{clock}
child.main()
"""
FLOPS = """
def clock(self, act):
    from torch.utils.flop_counter import FlopCounterMode
    with FlopCounterMode(display=False) as counter:
        act()
    return 1e-9 + counter.get_total_flops() / 1e12
child.Probing._clock = clock
"""
"""A clock that no other process on the machine can slow down: a second is a million million operations."""


@pytest.fixture
def make_job() -> Callable[..., Job]:
    """The tiny model with one small image an example; keyword arguments replace fields of the job."""

    def make(**changes) -> Job:
        job = Job(
            gpu=load_gpu("v100-16g"),
            budget_bytes=GIB,
            model=load_model("tiny-qwen2.5-vl"),
            contract=Contract(rank=4, alpha=8, effective_batch=4),
            workload=Workload.uniform(SHAPE),
            device="cpu",
            evidence="predicted",
        )
        return job.replace(**changes)

    return make


@pytest.fixture
def make_knobs() -> Callable[..., Knobs]:
    def make(micro_batch: int = 1, **changes) -> Knobs:
        fields = {"grad_accum": 4 // micro_batch, "checkpointed_layers": 2, "base_precision": "fp32", **changes}
        return Knobs(micro_batch=micro_batch, **fields)

    return make


@pytest.fixture
def script(tmp_path) -> Callable[[str], tuple[str, str]]:
    """The command that runs Python source as a probe's child; the result pipe's number is its only argument."""

    def write(source: str) -> tuple[str, str]:
        path = tmp_path / f"child-{len(list(tmp_path.glob('child-*.py')))}.py"
        path.write_text(source)
        return sys.executable, str(path)

    return write


@pytest.fixture
def pids(tmp_path) -> Path:
    """Where children started by ``real_child`` write their process ids, a line each."""
    return tmp_path / "pids"


@pytest.fixture
def real_child(script, pids) -> tuple[str, str]:
    """The command of budgetft's own child, which first writes its process id to ``pids``."""
    return script(REAL_CHILD.format(pids=str(pids), clock=""))


@pytest.fixture
def counting_child(script, pids) -> tuple[str, str]:
    """The same, whose seconds are the operations of what it times."""
    return script(REAL_CHILD.format(pids=str(pids), clock=FLOPS))


def is_running(pid: int) -> bool:
    """Whether the process exists and is not merely waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def gone_within() -> Callable[[int, float], bool]:
    """Whether a process is gone, waiting at most so many seconds for it: none for one that was waited for, else many."""

    def wait(pid: int, seconds: float) -> bool:
        with suppress(AssertionError):
            until(lambda: not is_running(pid), f"the end of process {pid}", seconds=seconds)
        return not is_running(pid)

    if not os.path.isdir("/proc/self"):
        pytest.skip("needs /proc to see processes")
    return wait
