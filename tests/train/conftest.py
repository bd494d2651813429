"""A tiny model, a few drawn images and a plan made by hand: enough to train on a CPU in seconds."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from drawn import draw_examples

import budgetft
from budgetft.contract import Contract
from budgetft.data.examples import Examples, read_dataset
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.outcome import Estimate
from budgetft.plan import Plan, Proof, Target, refer, write_plan
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

MODEL = "tiny-qwen2.5-vl"


@pytest.fixture(scope="session", autouse=True)
def _offline():
    os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Examples:
    """Seven examples: no effective batch divides them."""
    return draw_examples(tmp_path_factory.mktemp("data") / "seven", 7)


@functools.cache
def _model():
    return load_model(MODEL)


@pytest.fixture
def make_plan(dataset) -> Callable[..., Plan]:
    """A plan for the tiny model; keyword arguments change the contract, the knobs or the budget."""

    def make(
        *,
        budget_bytes: int = GIB,
        cards: int = 1,
        micro_batch: int = 2,
        knobs: dict | None = None,
        data: Path | None = None,
        **contract,
    ) -> Plan:
        agreed = Contract(**{"rank": 4, "alpha": 8, "effective_batch": 4, "learning_rate": 1e-3, **contract})
        shape = Shape(images=((84, 84),), text_tokens=40, supervised_tokens=8)
        examples = dataset if data is None else read_dataset(data)
        workload = Workload.uniform(shape).replace(examples=len(examples), fingerprint=examples.fingerprint)
        estimate = Estimate(
            tensor_peak_bytes=1, reserved_peak_bytes=1, process_peak_bytes=1, step_seconds=None,
            samples_per_second=None, fits=True, terms=(),
        )  # fmt: skip
        chosen = {
            "micro_batch": micro_batch,
            "grad_accum": agreed.effective_batch // micro_batch,
            "checkpointed_layers": 1,
            "base_precision": "fp32",
            **(knobs or {}),
        }
        return Plan(
            gpu=Target(name="v100-16g", budget_bytes=budget_bytes, profile=load_gpu("v100-16g"), cards=cards, shared=cards > 1),
            model=refer(_model()),
            contract=agreed,
            knobs=Knobs(**chosen),
            estimate=estimate,
            evidence=Proof(kind="predicted", outcomes=(), confirmed=None, statement="made by hand"),
            baseline=None,
            workload=workload,
            data=str(examples.folder),
            environment={},
        )

    return make


@pytest.fixture
def train(tmp_path):
    """``run_training`` on the CPU with random weights, into ``tmp_path/run`` unless told otherwise."""
    from budgetft.train.loop import run_training

    def run(plan: Plan, **options):
        # A step that is slow on a busy machine would be saved by itself: no checkpoint unless a test asks for one.
        fixed = {"out": tmp_path / "run", "weights": "random", "device": "cpu", "save_every": 50}
        return run_training(plan, **{**fixed, **options})

    return run


@pytest.fixture
def launch(tmp_path):
    """``budgetft train`` in two processes by ``accelerate launch`` on the CPU, into ``tmp_path/run``.

    With ``--multi_gpu``, for with ``--cpu`` accelerate starts a single one; ``shared`` with ``--use_fsdp``.
    ``module`` in place of budgetft is run with its command line.
    """

    def start(plan: Plan, *options: str, shared: bool = False, module: str = "budgetft", weights: str = "random"):
        write_plan(plan, tmp_path / "plan.json")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
        command += [*(["--use_fsdp", "--fsdp_version", "2"] if shared else ["--multi_gpu"]), "-m", module, "train"]
        command += ["--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "run"), "--weights", weights]
        path = os.pathsep.join(map(str, (Path(budgetft.__file__).parent.parent, Path(__file__).parent)))
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*command, "--device", "cpu", *options], env=environment, capture_output=True, text=True, timeout=120
        )

    return start
