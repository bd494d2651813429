"""A time to a contract: the largest that ends in it, found among all combinations, and what is said where none does."""

import math
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pytest

pytest.importorskip("optuna", reason="optuna is not installed: probes of contracts are a study of it")

import optuna

from budgetft.contract import Contract
from budgetft.errors import NothingFits, UsageError
from budgetft.goal import MOST_ROWS, Goal, GoalRow, pixel_steps, preferred
from budgetft.gpu import load_gpu
from budgetft.knobs import Knobs
from budgetft.model import load_model
from budgetft.outcome import Estimate, Outcome, Stack, Term
from budgetft.plan import Plan, Proof, Target, refer
from budgetft.predict.calibrate import load_calibration
from budgetft.search.goal import NEAR, GoalRequest, largest, others, plan_goal
from budgetft.search.goal_probes import GOAL_PROBES, TIME_CONSTRAINT
from budgetft.search.place import Place
from budgetft.search.run import PlanRequest
from budgetft.search.space import settings
from budgetft.search.study import CONSTRAINT
from budgetft.units import GIB
from budgetft.workload import Shape, Workload

RANGES = {"max_pixels": [401_408, 802_816, 1_605_632], "rank": [16, 32, 64], "frames_per_example": [1, 2, 4]}
LOW = Contract(max_pixels=200_704, rank=8, alpha=16, epochs=3)
EXAMPLES = 10_000
STACK = Stack(gpu="a GPU", driver="550", torch="2.14", transformers="5.23", peft="0.21", python="3.12")
MEASURED = Place(device="cuda", evidence="measured", stack=STACK, statement="measured on a GPU")


class Clock:
    def __init__(self, seconds: list[float]) -> None:
        self._seconds = seconds

    def seconds(self, speeds) -> list[float]:
        return self._seconds


class Fake:
    """An estimator by formula: seconds and bytes rise with pixels, frames and rank; ``wobble`` is the allocator's."""

    speeds = None
    calibration = load_calibration("no such GPU")

    def __init__(self, job, wobble: float = 0.0) -> None:
        self.job, self._wobble = job, wobble

    def _size(self) -> float:
        shape, rank = self.job.workload.worst[0], self.job.contract.rank
        return (200 + shape.total_tokens(28)) / 456 * (1 + rank / 200)

    def clock(self, grid) -> Clock:
        return Clock([self._seconds(knobs) for knobs in grid])

    def _seconds(self, knobs: Knobs) -> float:
        each = self._size() * (0.2 + 0.004 * knobs.checkpointed_layers) + 0.3 / knobs.micro_batch
        return each * self.job.contract.effective_batch

    def least_bytes(self, knobs: Knobs) -> int:
        layers = self.job.model.layers - 0.9 * knobs.checkpointed_layers
        return int((7 + knobs.micro_batch * self._size() * (0.1 + 0.04 * layers) + self.job.contract.rank / 64) * GIB)

    def may_fit(self, knobs: Knobs) -> bool:
        return self.least_bytes(knobs) * 1.04 <= self.job.budget_bytes

    def uncertainty_of(self, knobs: Knobs) -> float:
        return 0.04

    def estimate(self, knobs: Knobs) -> Estimate:
        draw = np.random.default_rng([self.job.contract.rank, self.job.contract.max_pixels, knobs.micro_batch]).random()
        peak = int(self.least_bytes(knobs) * (1 + self._wobble * draw))
        seconds = self._seconds(knobs)
        speed = self.job.contract.effective_batch / seconds
        return Estimate(
            tensor_peak_bytes=peak, reserved_peak_bytes=peak, process_peak_bytes=peak, step_seconds=seconds,
            samples_per_second=speed, speed_low=speed / 1.3, speed_high=speed * 1.3, fits=peak * 1.04 <= self.job.budget_bytes,
            terms=(Term(name="weights", memory_bytes=peak),),
        )  # fmt: skip


def shape_of(contract: Contract) -> Workload:
    side = math.isqrt(contract.max_pixels) // 28 * 28
    return Workload.uniform(Shape(images=((side, side),), text_tokens=200, supervised_tokens=100))


def request_of(hours: float, ranges=RANGES, *, wobble: float = 0.0, budget=14 * GIB, contract=LOW, **options) -> GoalRequest:
    planning = PlanRequest(
        gpu=load_gpu("v100-16g"),
        budget_bytes=budget,
        model=load_model("qwen2.5-vl-3b"),
        contract=contract,
        workload_under=shape_of,
        ranges=ranges,
        probe="never",
    )
    given = {"make_estimator": lambda job, on_trace: Fake(job, wobble), "plan_one": planner(wobble), "examples": EXAMPLES}
    return GoalRequest(planning=planning, hours=hours, **{**given, **options})


def planner(wobble: float = 0.0, slower: float = 1.0):
    """Plans a contract as the search would, by the fastest of all its settings that fit."""

    def plan(request: PlanRequest) -> Plan:
        from budgetft.search.run import make_job

        job = make_job(request, request.contract, None)
        best = brute(job, wobble)
        if best is None:
            raise NothingFits("nothing fits")
        estimate, knobs = best
        speed = estimate.samples_per_second / slower
        return Plan(
            gpu=Target(name=request.gpu.name, budget_bytes=request.budget_bytes, profile=request.gpu),
            model=refer(request.model),
            contract=request.contract,
            knobs=knobs,
            estimate=estimate.replace(samples_per_second=speed, step_seconds=32 / speed),
            evidence=Proof(kind="predicted", outcomes=(), confirmed=None, statement="by formula"),
            baseline=None,
            workload=job.workload,
            data=request.data,
            environment={},
        )

    return plan


def brute(job, wobble: float) -> tuple[Estimate, Knobs] | None:
    """The fastest setting of ``job`` that fits, of all."""
    estimator = Fake(job, wobble)
    found = [(estimate, knobs) for knobs in settings(job) if (estimate := estimator.estimate(knobs)).fits]
    return max(found, key=lambda each: each[0].samples_per_second, default=None)


def hours_of_all(request: GoalRequest, fields: tuple[str, ...]) -> dict[tuple[int, ...], float]:
    """Hours of every combination of ``fields``; infinite where it does not fit."""
    planning, found = request.planning, {}
    ladders = [
        [*([] if name not in ("rank", "max_pixels") else [getattr(LOW, name)]), *planning.ranges[name]] for name in fields
    ]
    for values in product(*ladders):
        chosen = dict(zip(fields, values, strict=True))
        rank = chosen.get("rank", planning.contract.rank)
        contract = planning.contract.replace(
            rank=rank, alpha=2 * rank, max_pixels=chosen.get("max_pixels", planning.contract.max_pixels)
        )
        workload = shape_of(contract).with_frames(chosen.get("frames_per_example", 1), planning.model, video=False)
        from budgetft.measure.job import Job

        job = Job(
            gpu=planning.gpu, budget_bytes=planning.budget_bytes, model=planning.model, contract=contract, workload=workload,
            evidence="predicted",
        )  # fmt: skip
        too_long = workload.worst[0].total_tokens(28) > contract.max_length
        best = None if too_long else brute(job, request.make_estimator(job, print)._wobble)
        found[values] = math.inf if best is None else EXAMPLES * 3 / best[0].samples_per_second / 3600
    return found


# The choice


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_the_lexicographic_maximum_of_all_combinations(seed):
    draw = np.random.default_rng(seed)
    names = draw.permutation(["pixels", "rank", "frames"])[: draw.integers(1, 4)].tolist()
    fields = tuple({"pixels": "max_pixels", "rank": "rank", "frames": "frames_per_example"}[name] for name in names)
    request = request_of(
        float(draw.uniform(3, 60)), {name: RANGES[name] for name in fields}, prefer=",".join(names),
        wobble=0.03, budget=int(draw.uniform(10, 20) * GIB) if seed % 2 else 14 * GIB,
    )  # fmt: skip
    request = replace(request, planning=replace(request.planning, budget_bytes=min(request.planning.budget_bytes, 16 * GIB)))
    hours = hours_of_all(request, fields)
    possible = [values for values, each in hours.items() if each <= request.hours]
    if not possible:
        with pytest.raises(NothingFits):
            plan_goal(request)
        return
    goal = goal_of(request)
    assert tuple(goal.values[name] for name in fields) == max(possible)
    assert goal.run.hours == pytest.approx(hours[max(possible)])
    listed = {tuple(row.values[name] for name in fields) for row in goal.rows if row.possible}
    best = {a for a in possible if not any(a != b and all(x <= y for x, y in zip(a, b, strict=True)) for b in possible)}
    assert listed == best


def goal_of(request: GoalRequest) -> Goal:
    plan = plan_goal(request)
    assert plan.goal is not None
    assert Plan.read_text(plan.model_dump_json(), source="itself") == plan
    return plan.goal


@pytest.mark.parametrize("seed", range(30))
def test_walking_finds_what_asking_of_all_finds_where_larger_costs_more_but_for_small_steps(seed):
    draw = np.random.default_rng(seed)
    ladders = [sorted(draw.choice(50, size=draw.integers(1, 7), replace=False).tolist()) for _ in range(draw.integers(1, 4))]
    weights, noise, asked = draw.random(len(ladders)), draw.random(), []

    def ask(values) -> float:
        asked.append(values)
        wobble = np.random.default_rng([seed, *values]).random() * NEAR * 0.9
        return float(np.dot(weights, values)) / 40 * (1 + wobble) - 0.2 - noise

    everything = list(product(*ladders))
    possible = [values for values in everything if ask(values) <= 0]
    assert largest(ladders, ask) == max(possible, default=None)
    best = [a for a in possible if not any(a != b and all(x <= y for x, y in zip(a, b, strict=True)) for b in possible)]
    assert sorted(others(ladders, ask, go_on=lambda: True)) == sorted(best)


def test_a_long_ladder_is_walked_and_not_priced_whole():
    ladders, asked = [list(range(1, 9)), list(range(1, 9)), list(range(1, 9))], set()

    def ask(values) -> float:
        asked.add(values)
        return values[0] * values[1] * values[2] / 40 - 1

    assert largest(ladders, ask) == (8, 5, 1)
    assert len(asked) < 30


def test_what_was_given_no_range_is_not_traded():
    goal = goal_of(request_of(20, {"rank": [16, 32, 64]}))
    assert goal.prefer == ("rank",)
    assert set(goal.values) == {"rank"}
    plan = plan_goal(request_of(20, {"rank": [16, 32, 64]}))
    kept = plan.contract.replace(rank=LOW.rank, alpha=LOW.alpha)
    assert kept == LOW
    assert plan.contract.alpha == 2 * plan.contract.rank


def test_an_alpha_of_its_own_stays():
    plan = plan_goal(request_of(20, {"rank": [16]}, contract=LOW.replace(alpha=8)))
    assert (plan.contract.rank, plan.contract.alpha) == (16, 8)


def test_the_order_of_preference_decides():
    first = {name: goal_of(request_of(14, prefer=name)).values for name in ("pixels", "rank", "frames")}
    for name, field_ in (("pixels", "max_pixels"), ("rank", "rank"), ("frames", "frames_per_example")):
        assert first[name][field_] == max(values[field_] for values in first.values())
    assert len({tuple(sorted(values.items())) for values in first.values()}) > 1
    assert goal_of(request_of(14)).values == first["pixels"]


def test_of_contracts_that_cost_the_same_the_largest_is_chosen():
    request = request_of(20, {"max_pixels": [401_408, 802_816]})
    planning = replace(request.planning, workload_under=lambda contract: shape_of(LOW))
    assert goal_of(replace(request, planning=planning)).values == {"max_pixels": 802_816}


def test_frames_that_the_data_does_not_have_leave_the_plan_without_data():
    request = request_of(60, {"frames_per_example": [1, 2, 4]})
    request = replace(request, planning=replace(request.planning, data="/data"))
    plan = plan_goal(request)
    assert plan.goal is not None
    assert plan.goal.values == {"frames_per_example": 4}
    assert plan.goal.data_frames == 1
    assert plan.workload.most_frames == 4
    assert plan.data is None
    assert plan_goal(replace(request, hours=4)).data == "/data"


def test_examples_longer_than_the_contract_allows_are_listed_with_the_reason():
    goal = goal_of(request_of(500, {"frames_per_example": [1, 2, 64]}))
    assert goal.values == {"frames_per_example": 2}
    (row,) = [row for row in goal.rows if row.values == {"frames_per_example": 64}]
    assert "over --max-length 4096" in row.verdict
    assert row.time_text() == "-"


def test_sure_wants_the_slow_end_in_time():
    likely, sure = goal_of(request_of(14)), goal_of(request_of(14, sure=True))
    assert likely.late_at_its_slow_end
    assert not sure.late_at_its_slow_end
    assert tuple(sure.values.values()) < tuple(likely.values.values())


def test_the_list_is_short():
    ranges = {name: [*range(low, low + 40 * step, step)] for name, low, step in (
        ("max_pixels", 201_000, 28_000), ("rank", 9, 1), ("frames_per_example", 1, 1))}  # fmt: skip
    goal = goal_of(request_of(30, ranges))
    assert 1 < len(goal.rows) <= MOST_ROWS
    assert goal.is_chosen(goal.rows[0])


# What is refused


def test_hours_that_nothing_meets_name_the_fastest_contract_its_time_and_ways_on():
    with pytest.raises(NothingFits) as caught:
        plan_goal(request_of(1))
    assert caught.value.exit_code == 3
    assert "even max pixels 200704, rank 8, frames 1, the fastest of these ranges, takes about" in caught.value.message
    assert caught.value.message.count("\n") == 0
    assert caught.value.hint is not None
    assert "--hours 4" in caught.value.hint
    with pytest.raises(NothingFits) as caught:
        plan_goal(request_of(3))
    assert "or --epochs 2" in str(caught.value.hint)
    hours = float(str(caught.value.hint).split("--hours ")[1].split(",")[0])
    goal_of(request_of(hours))


def test_without_a_range_only_the_time_is_checked():
    goal = goal_of(request_of(10, {}))
    assert (goal.values, goal.rows) == ({}, ())
    with pytest.raises(NothingFits, match="nothing ends within 60 min on v100-16g: the run takes about"):
        plan_goal(request_of(1, {}))


def test_a_budget_that_nothing_meets_is_told_as_by_planning():
    with pytest.raises(NothingFits, match="nothing fits"):
        plan_goal(request_of(100, budget=7 * GIB))


def test_what_no_goal_can_have_is_refused():
    with pytest.raises(UsageError, match="not effective_batch"):
        plan_goal(request_of(10, {"effective_batch": [64]}))
    with pytest.raises(UsageError, match="how many examples"):
        plan_goal(request_of(10, examples=None))
    request = request_of(10)
    with pytest.raises(UsageError, match="several workers"):
        plan_goal(replace(request, planning=replace(request.planning, storage="journal:///x")))
    with pytest.raises(UsageError, match="not known of a typed shape"):
        plan_goal(replace(request, planning=replace(request.planning, cache="auto")))
    with pytest.raises(UsageError, match="frames that the data does not have"):
        plan_goal(replace(request, planning=replace(request.planning, cache="auto", data="x")))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("height", "'height' is none of pixels, rank, frames"),
        ("frames", "--prefer frames: it was given no range; those with a range are pixels, rank"),
        ("rank,rank", "names rank twice"),
        ("", "'' is none of"),
    ],
)
def test_a_preference_that_cannot_be_is_told_with_the_names(text, told):
    with pytest.raises(UsageError) as caught:
        preferred(text, ["max_pixels", "rank"])
    assert told in caught.value.message


def test_a_preference_may_leave_names_out_and_use_the_options_own():
    assert preferred("rank", ["max_pixels", "rank"]) == ("rank", "max_pixels")
    assert preferred("frames-per-example, max_pixels", list(RANGES)) == ("frames_per_example", "max_pixels", "rank")
    assert preferred(None, ["rank", "max_pixels"]) == ("max_pixels", "rank")


@pytest.mark.parametrize("step", [28, 32])
def test_steps_of_pixels_are_squares_of_whole_blocks_and_end_where_the_range_does(step):
    for low, high in ((200_704, 1_605_632), (200_704, 200_705), (784, 10**6), (200_704, 200_704)):
        found = pixel_steps(low, high, step)
        assert found == sorted(set(found))
        assert found[-1:] == ([high] if high > low else [])
        sides = [math.isqrt(value) for value in found[:-1]]
        assert all(side**2 == value and side % step == 0 for side, value in zip(sides, found, strict=False))
    assert pixel_steps(200_704, 802_816, 28) == [283_024, 414_736, 571_536, 802_816]


# With a GPU


@dataclass
class Prober:
    """A GPU on which runs take ``slower`` times as predicted, and contracts of a rank in ``too_large`` do not fit."""

    slower: float = 1.0
    too_large: tuple[int, ...] = ()
    status: str = "ok"
    asked: list = field(default_factory=list)
    stack: Stack = STACK

    def __call__(self, job, *, stack):
        self.job = job
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def rebind(self, job) -> None:
        self.job = job

    def probe(self, knobs, *, fresh=False) -> Outcome:
        self.asked.append((self.job.contract, knobs))
        said = Fake(self.job).estimate(knobs)
        fields = {"knobs": knobs, "evidence": self.job.evidence, "budget_bytes": self.job.budget_bytes, "stack": STACK}
        if self.job.contract.rank in self.too_large:
            return Outcome(status="oom", phase="backward", **fields)
        speed = said.samples_per_second / self.slower
        return Outcome(
            status=self.status, alloc_retries=0, process_peak_bytes=said.process_peak_bytes, samples_per_second=speed,
            step_seconds=32 / speed, **fields,
        )  # fmt: skip


def on_gpu(prober: Prober, hours: float, ranges=RANGES, *, place=MEASURED, storage="sqlite:///:memory:", **options):
    slower = prober.slower if place.evidence == "measured" else 1.0
    request = request_of(
        hours, ranges, make_prober=prober, find_place=lambda request: place, plan_one=planner(slower=slower), **options
    )
    return replace(request, planning=replace(request.planning, storage=storage, probe="auto"))


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch):
    monkeypatch.setattr("budgetft.search.goal_probes.measure_first", lambda *_: None)


def test_a_gpu_as_fast_as_predicted_is_asked_once():
    prober = Prober()
    goal = goal_of(on_gpu(prober, 14))
    assert goal.values == goal_of(request_of(14)).values
    assert (goal.probes, len(prober.asked)) == (1, 1)


@pytest.mark.parametrize("slower", [0.5, 2.0])
def test_a_gpu_that_is_not_as_predicted_gets_what_it_can_do(slower):
    prober = Prober(slower=slower)
    goal = goal_of(on_gpu(prober, 14))
    assert goal.values == goal_of(request_of(14 / slower)).values
    assert goal.speed_factor == pytest.approx(slower)
    assert 2 <= goal.probes <= GOAL_PROBES


def test_a_contract_that_a_probe_found_too_large_is_tried_lighter_and_then_left():
    prober = Prober(too_large=(64, 32))
    goal = goal_of(on_gpu(prober, 60, {"rank": [16, 32, 64]}))
    assert [contract.rank for contract, _ in prober.asked] == [64, 64, 32, 32]
    assert goal.values == {"rank": 16}
    assert [row.verdict for row in goal.rows if row.values["rank"] == 64] == ["too much memory"]


def test_hours_that_the_prediction_does_not_meet_are_asked_of_the_gpu_before_they_are_refused():
    prober = Prober(slower=0.5)
    assert goal_of(on_gpu(prober, 2)).probes >= 1
    with pytest.raises(NothingFits, match="by one probe"):
        plan_goal(on_gpu(Prober(slower=1.0), 1))


def test_the_study_has_both_constraints_and_its_best_trial_is_the_choice(tmp_path):
    storage = f"sqlite:///{tmp_path / 'studies.sqlite3'}"
    goal = goal_of(on_gpu(Prober(slower=2.0), 14, storage=storage))
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert {tuple(sorted(trial.constraints)) for trial in study.trials} == {(CONSTRAINT, TIME_CONSTRAINT)}
    best = study.best_trial
    assert best.params == {
        "pixels": goal.values["max_pixels"], "rank": goal.values["rank"], "frames": goal.values["frames_per_example"],
    }  # fmt: skip
    assert any(trial.constraints[TIME_CONSTRAINT] > 0 for trial in study.trials)


def test_what_a_ledger_knows_is_not_probed_again(tmp_path):
    first, second = Prober(slower=2.0), Prober(slower=2.0)
    for prober in (first, second):
        request = on_gpu(prober, 14)
        planning = replace(request.planning, ledger=tmp_path / "ledger.sqlite3")
        goal = goal_of(replace(request, planning=planning))
    assert len(first.asked) > 0
    assert second.asked == []
    assert goal.probes == 0


@pytest.mark.parametrize("evidence", ["emulated", "predicted"])
def test_elsewhere_than_on_the_gpu_itself_probes_tell_of_memory_and_the_prediction_of_time(evidence):
    place = replace(MEASURED, evidence=evidence)
    prober = Prober(slower=3.0, too_large=(64,))
    goal = goal_of(on_gpu(prober, 60, {"rank": [16, 32, 64]}, place=place))
    assert goal.values == {"rank": 32}
    assert goal.run.evidence == "predicted"
    assert goal.speed_factor == 1.0


def test_a_probe_that_says_nothing_of_the_contract_leaves_the_choice_to_planning():
    prober = Prober(status="crash")
    goal = goal_of(on_gpu(prober, 14))
    assert len(prober.asked) == 1
    assert goal.values == goal_of(request_of(14)).values


def test_what_planning_finds_too_slow_is_left_for_the_next():
    request = request_of(14, plan_one=planner(slower=1.5))
    goal = goal_of(request)
    assert goal.run.hours <= 14
    assert goal.values != goal_of(request_of(14)).values


def test_a_row_says_what_stands_against_it():
    row = GoalRow(values={"rank": 8}, seconds=100, process_peak_bytes=1, fits=True, in_time=False, evidence="predicted")
    assert row.verdict == "too long"
    assert row.replace(fits=False).verdict == "too much memory"
    assert row.replace(in_time=True).verdict == "in time"
    assert row.replace(low_seconds=25 * 60, high_seconds=80 * 60).time_text() == "1 min 40 s (25 to 80 min)"


def test_what_keeping_the_images_would_cost_is_asked_of_larger_images():
    """The plan of the chosen contract prices others beside it: each has examples of its own."""
    seen: list[PlanRequest] = []

    def plan(request: PlanRequest) -> Plan:
        seen.append(request)
        return planner()(request)

    plan_goal(request_of(8, {"max_pixels": [401_408]}, plan_one=plan))
    other = LOW.replace(max_pixels=1_605_632)
    assert seen[-1].workload_under(other) == shape_of(other)
