"""A bench compares paths by medians, against the stock recipe of the same run."""

import pytest

from budgetft.cli.bench import table
from budgetft.contract import Contract
from budgetft.errors import BudgetftError, UsageError
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, stock_knobs
from budgetft.model import load_model
from budgetft.outcome import Outcome, Stack
from budgetft.search.bench import Bench, Size, _rows, run_bench
from budgetft.search.run import PlanRequest
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

WORKLOAD = Workload.uniform(Shape(images=((448, 448),), text_tokens=40, supervised_tokens=20))
SIZE = Size(width=448, height=448, contract=Contract(), workload=WORKLOAD)
STOCK = stock_knobs(micro_batch=1, effective_batch=4, layers=2, base_precision="fp16")
OURS = Knobs(micro_batch=4, grad_accum=1, checkpointed_layers=0, pointwise="fused")
STACK = Stack(card="NVIDIA Some Card", driver="1", python="3", torch="2", transformers="5", peft="0")


def outcome(knobs: Knobs, speed: float, peak: int = GIB, status: str = "ok") -> Outcome:
    return Outcome.make(
        status=status,
        knobs=knobs,
        evidence="emulated",
        budget_bytes=2 * GIB,
        process_peak_bytes=peak,
        allocated_peak_bytes=peak,
        reserved_peak_bytes=peak,
        samples_per_second=speed,
        detail="the card said no" if status != "ok" else "",
        phase="backward" if status != "ok" else None,
    )


def request(**changes) -> PlanRequest:
    fields = {
        "gpu": load_gpu("v100-16g"),
        "budget_bytes": 2 * GIB,
        "model": load_model("tiny-qwen2.5-vl"),
        "contract": Contract(),
        "workload_under": lambda contract: WORKLOAD,
    }
    return PlanRequest(**{**fields, **changes})


def test_a_row_has_the_median_speed_the_highest_peak_and_the_ratio_to_stock():
    outcomes = {
        "stock": [outcome(STOCK, 1.0), outcome(STOCK, 3.0), outcome(STOCK, 2.0)],
        "planned": [outcome(OURS, 9.0, GIB), outcome(OURS, 11.0, 2 * GIB)],
    }
    stock, planned = _rows(SIZE, {"stock": STOCK, "planned": OURS}, outcomes)
    assert (stock.samples_per_second, stock.ratio_to_stock) == (2.0, 1.0)
    assert (planned.samples_per_second, planned.ratio_to_stock) == (10.0, 5.0)
    assert planned.process_peak_bytes == 2 * GIB
    assert planned.speeds == (9.0, 11.0)


def test_a_failed_probe_has_no_speed_and_a_path_without_any_is_an_error():
    outcomes = {"planned": [outcome(OURS, 9.0), outcome(OURS, 1.0, status="oom")]}
    (row,) = _rows(SIZE, {"planned": OURS}, outcomes)
    assert (row.samples_per_second, row.ratio_to_stock) == (9.0, None)
    assert row.contract == SIZE.contract
    with pytest.raises(BudgetftError, match="no probe of planned succeeded: the card said no"):
        _rows(SIZE, {"planned": OURS}, {"planned": [outcome(OURS, 1.0, status="oom")]})


def test_without_a_card_nothing_is_measured():
    with pytest.raises(UsageError, match="no CUDA card"):
        run_bench(request(probe="never"), [SIZE], cached=False, rounds=1)


def test_the_table_names_the_evidence_of_every_row():
    rows = _rows(SIZE, {"stock": STOCK, "planned": OURS}, {"stock": [outcome(STOCK, 2.0)], "planned": [outcome(OURS, 9.0)]})
    bench = Bench(
        gpu="v100-16g",
        budget_bytes=2 * GIB,
        model="tiny-qwen2.5-vl",
        statement="emulated on a test",
        stack=STACK,
        wall_seconds=1.0,
        rows=tuple(rows),
    )
    text = table(bench)
    assert "emulated on a test" in text
    assert "| 448x448 | planned | 4 | 0 | default | 9.00 | 4.50x | 1.00 GiB | emulated |" in text
    assert Bench.read(bench.model_dump(mode="json"), source="a bench") == bench
