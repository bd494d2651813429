"""A real plan with its memory models, the same as if it had been predicted or measured, and a browser where there is one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser

from budgetft.measure.job import Job
from budgetft.outcome import Outcome
from budgetft.plan import Plan, load_planned_model, read_plan
from budgetft.predict.estimator import Estimator
from budgetft.predict.memory_model import MemoryModel
from budgetft.predict.store import keep_memory_model, memory_model_key
from budgetft.report.gather import Story, gather
from budgetft.value import read_json

SPINE = Path(__file__).parents[2] / "reports" / "spine"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium here: put one on the PATH or name it in $BUDGETFT_CHROMIUM")
    opened = Browser(path)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def plan() -> Plan:
    """A real one: seven emulated probes of the 3B model at 448x448."""
    return read_plan(SPINE / "plan-448.json")


@pytest.fixture(scope="session")
def _memory_models(plan, tmp_path_factory) -> Path:
    """A cache with memory models of the plan, of its baseline and of two frames as they were once traced: a page needs no
    newer ones.
    """
    cache = tmp_path_factory.mktemp("cache")
    job = Job(
        gpu=plan.gpu.profile,
        budget_bytes=plan.gpu.budget_bytes,
        model=load_planned_model(plan),
        contract=plan.contract,
        workload=plan.workload,
        evidence=plan.evidence.kind,
    )
    estimator = Estimator(job)
    (one,), (two,) = plan.workload.worst, plan.workload.with_frames(2, job.model, video=False).worst
    for name, knobs, shape in (("plan", plan.knobs, one), ("stock", plan.baseline.knobs, one), ("frames", plan.knobs, two)):
        path, combination = Path(__file__).with_name(f"law-{name}.json"), estimator.combination(knobs)
        layouts = estimator.layouts(combination)
        key = memory_model_key(job.model, plan.contract, combination, shape, job.gpu, layouts)
        keep_memory_model(key, MemoryModel.read(read_json(path), source=str(path)), cache / "memory_models")
    return cache


@pytest.fixture(autouse=True)
def _traced_before(_memory_models, monkeypatch):
    monkeypatch.setenv("BUDGETFT_CACHE", str(_memory_models))


@pytest.fixture
def tell(tmp_path) -> Callable[..., Story]:
    """Write a plan and gather its story, with the ledger of its probes unless another is given."""

    def make(plan: Plan, *, ledger: Path = SPINE / "ledger-shapes.sqlite3") -> Story:
        (tmp_path / "plan.json").write_text(plan.model_dump_json())
        return gather(tmp_path / "plan.json", ledger=ledger)

    return make


@pytest.fixture(scope="session")
def unprobed(plan) -> Plan:
    """The same job planned without a GPU."""
    proof = plan.evidence.replace(kind="predicted", outcomes=(), confirmed=None, statement="traced, +- 4%; no GPU was used")
    return plan.replace(evidence=proof, estimate=plan.estimate.replace(evidence="predicted"), baseline=None, runners_up=())


@pytest.fixture(scope="session")
def on_the_gpu(plan) -> Plan:
    """The same outcomes, as if the GPU itself had made them."""

    def measured(outcome: Outcome) -> Outcome:
        return outcome.replace(evidence="measured")

    proof = plan.evidence.replace(
        kind="measured",
        outcomes=tuple(measured(outcome) for outcome in plan.evidence.outcomes),
        confirmed=measured(plan.evidence.confirmed),
        statement="measured on Tesla V100-SXM2-16GB",
    )
    estimate = plan.estimate.replace(evidence="measured")
    baseline = plan.baseline.replace(estimate=plan.baseline.estimate.replace(evidence="measured"))
    return plan.replace(evidence=proof, estimate=estimate, baseline=baseline)
