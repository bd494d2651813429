"""A tiny model, a few drawn images and a plan made by hand: enough to train on a CPU in seconds."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from doubles import in_doubles
from drawn import draw_examples
from patience import HANG_SECONDS
from rounding import SIGMAS, farthest, noise
from runs import SameRun, adapter_of, adapters_apart, losses_of, plan_of, train_plan
from warm import warm

import budgetft
from budgetft.data.examples import Examples
from budgetft.plan import Plan, write_plan


@pytest.fixture(autouse=True)
def _read_once(one_tokenizer):
    """See there."""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Examples:
    """Seven examples: no effective batch divides them."""
    return draw_examples(tmp_path_factory.mktemp("data") / "seven", 7)


@pytest.fixture
def make_plan(dataset) -> Callable[..., Plan]:
    """A plan for the tiny model; keyword arguments change the contract, the knobs or the budget."""
    return functools.partial(plan_of, dataset)


@pytest.fixture
def train(tmp_path):
    """``run_training`` on the CPU with random weights, into ``tmp_path/run`` unless told otherwise."""

    def run(plan: Plan, *, out: Path = tmp_path / "run", **options):
        return train_plan(plan, out, **options)

    return run


@pytest.fixture
def launch(tmp_path):
    """``budgetft train`` in two processes by ``accelerate launch`` on the CPU, into ``tmp_path/run``.

    With ``--multi_gpu``, for with ``--cpu`` accelerate starts a single one; ``shared`` with ``--use_fsdp``; in fp64 with
    ``doubles``. The processes are warm, but for those of ``module`` budgetft: these start as a user's.
    """

    def start(
        plan: Plan,
        *options: str,
        shared: bool = False,
        doubles: bool = False,
        module: str = "launched",
        weights: str = "random",
    ):
        write_plan(plan, tmp_path / "plan.json")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        command += [*(["--use_fsdp", "--fsdp_version", "2"] if shared else ["--multi_gpu"]), "-m", module, "train"]
        command += ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "run"), "--weights", weights]
        path = os.pathsep.join(map(str, (Path(budgetft.__file__).parents[1], *Path(__file__).parents[:2])))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "LAUNCHED_IN": str(tmp_path)}
        command += ["--device", "cpu", *options]
        environment |= {"IN_DOUBLES": "yes"} if doubles else {}
        with nullcontext() if module == "budgetft" else warm():
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=2 * HANG_SECONDS)

    return start


@pytest.fixture
def doubles() -> Iterator[None]:
    """Runs in this process are in fp64 during the test."""
    with in_doubles():
        yield


@pytest.fixture(scope="session")
def same_run(dataset, tmp_path_factory) -> SameRun:
    """The bounds are of four steps at a learning rate of 1e-4, by a run whose sums were moved as another order may."""
    folder = tmp_path_factory.mktemp("noise")

    def run(name: str) -> Path:
        train_plan(plan_of(dataset, micro_batch=4, learning_rate=1e-4), folder / name, steps=4)
        return folder / name

    with in_doubles():
        plain = run("plain")
        adapter = noise(lambda: run("moved"), plain, lambda *runs: adapters_apart(*map(adapter_of, runs)))
    return SameRun(loss=SIGMAS * farthest(losses_of(folder / "moved"), losses_of(plain)), adapter=adapter)
