"""A bench compares paths by medians, against the stock recipe of the same run."""

import json
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna is not installed: a search is a study of it")

import budgetft
from budgetft.cli import main
from budgetft.cli.bench import table
from budgetft.contract import Contract
from budgetft.errors import BudgetftError, UsageError
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs, stock_knobs
from budgetft.model import load_model
from budgetft.outcome import Estimate, Outcome, Stack
from budgetft.plan import Candidate, Plan, Proof, Target, refer
from budgetft.search.bench import Bench, Size, _rows, run_bench
from budgetft.search.events import Event
from budgetft.search.run import PlanRequest
from budgetft.units import GIB
from budgetft.value import read_json
from budgetft.workload import Shape, Workload

WORKLOAD = Workload.uniform(Shape(images=((448, 448),), text_tokens=40, supervised_tokens=20))
REPORTS = sorted((Path(budgetft.__file__).parents[1] / "reports" / "bench").glob("nvidia-*.json"))
SIZE = Size(width=448, height=448, contract=Contract(), workload=WORKLOAD)
STOCK = stock_knobs(micro_batch=1, effective_batch=4, layers=2, base_precision="fp16")
OURS = Knobs(micro_batch=4, grad_accum=1, checkpointed_layers=0, pointwise="fused")
ESTIMATE = Estimate(
    tensor_peak_bytes=1,
    reserved_peak_bytes=1,
    process_peak_bytes=1,
    step_seconds=None,
    samples_per_second=None,
    fits=True,
    terms=(),
)
STACK = Stack(gpu="NVIDIA Some GPU", driver="1", python="3", torch="2", transformers="5", peft="0")


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
        detail="the GPU said no" if status != "ok" else "",
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


class Planned:
    """Planning by hand: ``recalled`` is what the ledger knew, ``probed`` what was measured now."""

    def __init__(self, *, recalled: list[Outcome], probed: list[Outcome]) -> None:
        self.recalled, self.probed = recalled, probed

    def __call__(self, request: PlanRequest) -> Plan:
        for outcomes, known in ((self.recalled, True), (self.probed, False)):
            for each in outcomes:
                request.on_event(Event(stage="search", outcome=each, from_ledger=known))
        proof = Proof(kind="predicted", outcomes=(*self.recalled, *self.probed), confirmed=None, statement="made by hand")
        return Plan(
            gpu=Target(name=request.gpu.name, budget_bytes=request.budget_bytes, profile=request.gpu),
            model=refer(request.model),
            contract=request.contract,
            knobs=OURS,
            estimate=ESTIMATE,
            evidence=proof,
            baseline=Candidate(knobs=STOCK, estimate=ESTIMATE),
            workload=WORKLOAD,
            environment={},
        )


class Prober:
    """Probes by hand: the next of the speeds that each setting is given."""

    def __init__(self, speeds: dict[Knobs, list[float]]) -> None:
        self.speeds = speeds

    def __call__(self, job, *, stack) -> "Prober":
        return self

    def __enter__(self) -> "Prober":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def probe(self, knobs: Knobs, *, fresh: bool) -> Outcome:
        assert fresh
        return outcome(knobs, self.speeds[knobs].pop(0))


def measured(plan: Planned, speeds: dict[Knobs, list[float]], *, rounds: int) -> Bench:
    size = Size(width=448, height=448, contract=Contract(effective_batch=4), workload=WORKLOAD)
    return run_bench(request(probe="always"), [size], cached=False, rounds=rounds, plan=plan, prober=Prober(speeds))


def test_what_an_earlier_run_measured_is_in_no_row():
    earlier, now = [outcome(STOCK, 1000.0), outcome(OURS, 2000.0, peak=2 * GIB)], [outcome(OURS, 8.0)]
    speeds = {STOCK: [2.0, 4.0], OURS: [10.0, 12.0]}
    stock, planned = measured(Planned(recalled=earlier, probed=now), speeds, rounds=2).rows
    assert (stock.speeds, stock.samples_per_second) == ((2.0, 4.0), 3.0)
    assert (planned.speeds, planned.ratio_to_stock, planned.process_peak_bytes) == ((8.0, 10.0, 12.0), 10.0 / 3.0, GIB)


def test_every_path_is_probed_at_least_once(capsys):
    with pytest.raises(UsageError, match="0 rounds"):
        measured(Planned(recalled=[outcome(STOCK, 1000.0)], probed=[]), {}, rounds=0)
    assert main(["bench", "--gpu", "v100-16g", "--rounds", "0"]) == 2
    assert "--rounds" in capsys.readouterr().err


def test_a_row_says_by_itself_what_was_run_and_on_what():
    bench = measured(Planned(recalled=[], probed=[]), {STOCK: [2.0], OURS: [10.0]}, rounds=1)
    _, row = json.loads(bench.model_dump_json())["rows"]
    assert [row[name] for name in ("path", "width", "height", "micro_batch")] == ["planned", 448, 448, 4]
    assert (row["samples_per_second"], row["ratio_to_stock"], row["process_peak_bytes"]) == (10.0, 5.0, GIB)
    for name in ("torch", "transformers", "peft", "driver", "gpu"):
        assert row[name] == getattr(bench.stack, name)


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.stem)
def test_the_benches_of_every_age_can_be_read(path):
    bench = Bench.read(read_json(path), source=str(path))
    assert bench.contract or all(row.contract for row in bench.rows)
    assert Bench.read(bench.model_dump(mode="json"), source="again") == bench


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["bench", "--gpu", "v100-16g", "--probe", "always", "--out", str(tmp_path / "file" / "sub")]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write into {tmp_path}/file/sub: {tmp_path}/file is not a folder")
    assert main(["bench", "--gpu", "v100-16g", "--probe", "never", "--out", str(tmp_path / "new" / "sub")]) == 2
    assert not (tmp_path / "new").exists()


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
    with pytest.raises(BudgetftError, match="no probe of planned succeeded: the GPU said no"):
        _rows(SIZE, {"planned": OURS}, {"planned": [outcome(OURS, 1.0, status="oom")]})


def test_without_a_gpu_nothing_is_measured():
    with pytest.raises(UsageError, match="no CUDA GPU"):
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
