"""Plans made by hand, runs of them, and what a run on disk learned."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rounding import UNITS, distance, farthest

from budgetft.contract import Contract
from budgetft.data.examples import Examples, read_dataset
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.outcome import Estimate
from budgetft.plan import Plan, Proof, Target, refer
from budgetft.train.record import Summary
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

MODEL = "tiny-qwen2.5-vl"


@functools.cache
def _model():
    return load_model(MODEL)


def plan_of(
    dataset: Examples,
    *,
    budget_bytes: int = GIB,
    gpus: int = 1,
    micro_batch: int = 2,
    knobs: dict | None = None,
    data: Path | None = None,
    **contract,
) -> Plan:
    """A plan for the tiny model; keyword arguments change the contract, the knobs or the budget."""
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
        gpu=Target(name="v100-16g", budget_bytes=budget_bytes, profile=load_gpu("v100-16g"), gpus=gpus, shared=gpus > 1),
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


def train_plan(plan: Plan, out: Path, **options: Any) -> Summary:
    """``run_training`` on the CPU with random weights."""
    from budgetft.train.run import run_training

    # A step that is slow on a busy machine would be saved by itself: no checkpoint unless a test asks for one.
    fixed = {"weights": "random", "device": "cpu", "save_every": 50}
    return run_training(plan, out=out, **{**fixed, **options})


def log_of(run: Path) -> list[dict[str, Any]]:
    """The record of every step."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> list[float]:
    return [line["loss"] for line in log_of(run)]


def adapter_of(run: Path) -> dict[str, Any]:
    """The tensors of a finished run's adapter."""
    from safetensors.torch import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")


def adapters_apart(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest distance of two adapters' tensors: the small ones after few steps, B of each pair, count as the others."""
    return max(distance(found[name], expected[name]) for name in expected)


@dataclass(frozen=True, kw_only=True)
class SameRun:
    """Whether two runs in fp64 learned the same: as near to each other as another order of their sums may bring them."""

    loss: float
    """Largest relative difference of a step's loss."""
    adapter: float
    """Largest difference of a tensor of the adapter, by norms."""

    def in_fp32(self) -> "SameRun":
        """For runs in fp32: the distance that roundings make is proportional to their unit."""
        larger = UNITS["fp32"] / UNITS["fp64"]
        return SameRun(loss=self.loss * larger, adapter=self.adapter * larger)

    def losses(self, found: Path, expected: Path) -> bool:
        return farthest(losses_of(found), losses_of(expected)) <= self.loss

    def adapters(self, found: Path, expected: Path) -> bool:
        return adapters_apart(adapter_of(found), adapter_of(expected)) <= self.adapter
