"""A process that lastingly holds the GPU's memory: steps begin with what has room, and the planned size is tried again."""

import json
import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from beside_another_process import PLANNED, beside
from rounding import farthest
from runs import log_of

from budgetft.cli.train import _fallbacks
from budgetft.train import recover
from budgetft.train.ranks import Ranks
from budgetft.train.record import Record
from budgetft.train.recover import LONGEST_WAIT, Done, Recovery

STEPS = 200
EXAMPLES = 8


@pytest.fixture(autouse=True)
def _nothing_to_collect(monkeypatch):
    """Looking for cycles takes a quarter of a second in a process that has loaded a model's code."""
    monkeypatch.setattr(recover, "gc", SimpleNamespace(collect=lambda: 0))


class LinearStep:
    """A step of a linear model: all that a recovery asks of one."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.device, self.phase = torch.device("cpu"), "backward"
        self.contract = SimpleNamespace(seed=0)
        self.model = torch.nn.Linear(16, 1)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(self.parameters, lr=1e-2)

    def even(self, passes: int, *, backward: bool) -> Any:
        return nullcontext()

    def update(self, *, learning_rate: float) -> Any:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


@dataclass
class HostGpu:
    """A GPU with room for ``room`` examples at a time; ``told``: what is known of that; ``heavy``: what one counts for."""

    room: int = PLANNED
    heavy: int = 1
    told: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cap_bytes: int = PLANNED

    def room_bytes(self) -> int:
        return self.room if self.told is None else self.told

    def crowded(self) -> bool:
        return self.room_bytes() < self.cap_bytes

    def working(self) -> Any:
        return nullcontext()

    def other_processes(self) -> tuple[()]:
        return ()

    def release(self) -> None: ...


class Steps:
    """Steps over random examples on ``gpu``."""

    def __init__(self) -> None:
        self.gpu, self.step, self.notes = HostGpu(), LinearStep(), []
        self.fallbacks: list[Any] = []
        self.made: list[tuple[int, ...]] = []
        draw = torch.Generator().manual_seed(1)
        self.inputs, self.targets = torch.randn(64, 16, generator=draw), torch.randn(64, 1, generator=draw)
        given: dict[str, Any] = {"step": self.step, "memory": self.gpu}
        self.recovery = Recovery(
            **given, run_micro=self.micro, make=self.make, on_fallback=self.fallbacks.append, ranks=Ranks(),
            planned=self.planned, on_note=self.notes.append,
        )  # fmt: skip

    def planned(self, number: int) -> list[tuple[int, ...]]:
        first = number * EXAMPLES
        places = [place % 64 for place in range(first, first + EXAMPLES)]
        return [tuple(places[start : start + PLANNED]) for start in range(0, EXAMPLES, PLANNED)]

    def make(self, part: Any) -> Any:
        self.made.append(tuple(part))
        return SimpleNamespace(
            indices=tuple(part), ids=tuple(map(str, part)), inputs=SimpleNamespace(supervised_tokens=len(part))
        )

    def micro(self, micro: Any, total: float) -> torch.Tensor:
        places = list(micro.indices)
        if len(places) * self.gpu.heavy > self.gpu.room:
            raise torch.OutOfMemoryError("no room")
        loss = (self.step.model(self.inputs[places]) - self.targets[places]).square().sum() / total
        loss.backward()
        return loss.detach()

    def run(self, number: int) -> Done:
        micros = [self.make(part) for part in self.recovery.sizes.cut(self.planned(number))]
        return self.recovery.run(number, micros, begin=lambda: None, learning_rate=1e-2)

    @property
    def failed(self) -> list[int]:
        """The step of each try that failed."""
        return [fallback.step for fallback in self.fallbacks]


def test_of_two_hundred_steps_beside_a_lasting_other_process_few_are_tried_in_vain_and_all_losses_stay():
    alone, crowded = Steps(), Steps()
    expected = [alone.run(number).loss for number in range(1, STEPS + 1)]
    found = []
    for number in range(1, STEPS + 1):
        crowded.gpu.room = PLANNED // 2 if number > 3 else PLANNED
        found.append(crowded.run(number).loss)
    assert crowded.failed == [4, *range(4 + LONGEST_WAIT, STEPS + 1, LONGEST_WAIT)]
    assert farthest(found, expected) <= 1e-6


def test_where_free_memory_is_not_what_can_be_had_each_try_in_vain_is_followed_by_twice_as_many_steps():
    steps = Steps()
    steps.gpu.room, steps.gpu.told = PLANNED // 2, PLANNED - 1
    crowded = iter(range(PLANNED - 1, PLANNED - 1 + STEPS))
    steps.gpu.cap_bytes = 2 * STEPS  # crowded at all times, and at every look more of it seems free
    for number in range(1, STEPS + 1):
        steps.gpu.told = next(crowded)
        steps.run(number)
    assert steps.failed == [1, 2, 4, 8, 16, 32, 64, 128, 192]


def test_the_planned_size_is_tried_in_the_first_step_that_has_room_again_and_that_is_told():
    steps = Steps()
    rooms = [PLANNED, PLANNED // 2, PLANNED // 2, PLANNED // 2, PLANNED, PLANNED]
    began = []
    for number, room in enumerate(rooms, start=1):
        steps.gpu.room = room
        began.append(steps.run(number).began_with)
    assert began == [None, None, PLANNED // 2, PLANNED // 2, None, None]
    assert steps.failed == [2]
    assert steps.notes == [
        "other processes hold the GPU's memory: steps begin with 2 examples at a time until the planned micro-batches"
        " fit again",
        "the planned micro-batches fit again from step 5",
    ]


def test_a_retry_in_vain_goes_back_at_once_to_the_size_that_is_known_to_have_room():
    steps = Steps()
    steps.gpu.room = 1
    steps.run(1)
    assert steps.failed == [1, 1], "halved twice: nothing was known"
    steps.gpu.told = 2  # a little more is free, but one cannot have it
    assert steps.run(2).began_with is None
    assert [(one.step, one.micro_batch, one.reduced_to) for one in steps.fallbacks[2:]] == [(2, PLANNED, 1)]


def test_a_other_process_that_takes_more_makes_the_next_steps_smaller_still():
    steps = Steps()
    for number, room in enumerate((2, 1, 1), start=1):
        steps.gpu.room = room
        steps.run(number)
    assert steps.failed == [1, 2]
    assert steps.recovery.sizes.most == 1


def test_a_other_process_that_comes_and_goes_is_not_run_into_at_every_visit():
    steps = Steps()
    for number in range(1, STEPS + 1):
        steps.gpu.room = PLANNED // 2 if number % 2 else PLANNED
        steps.run(number)
    assert steps.failed == [1, 3, 7, 13, 23, 41, 75, 139]


def test_a_heavy_batch_alone_on_the_gpu_leaves_the_next_step_its_planned_size():
    steps = Steps()
    steps.gpu.heavy = 2
    assert steps.run(1).began_with is None
    steps.gpu.heavy = 1
    assert steps.run(2).began_with is None
    assert steps.failed == [1]
    assert steps.notes == []


def test_every_example_of_a_step_is_in_it_once_at_whatever_size_it_was_made_ahead():
    steps = Steps()
    steps.gpu.room = PLANNED // 2
    steps.run(1)
    ahead = [steps.make(part) for part in steps.recovery.sizes.cut(steps.planned(2))]
    steps.gpu.room = PLANNED
    steps.made.clear()
    assert steps.recovery.run(2, ahead, begin=lambda: None, learning_rate=1e-2).began_with is None
    assert steps.made == steps.planned(2), "made ahead in halves, and again as planned"


@pytest.fixture
def plan(make_plan):
    return make_plan(micro_batch=4, learning_rate=1e-4)


def test_a_run_keeps_which_steps_began_smaller_and_makes_their_batches_ahead(
    plan, train, doubles, same_run, tmp_path, monkeypatch
):
    from budgetft.train import loop

    made_late, make_micro = [], loop.make_micro

    def make(*given):
        if threading.current_thread() is threading.main_thread():
            made_late.append(state.step)
        return make_micro(*given)

    train(plan, out=tmp_path / "undisturbed", steps=9)
    notes: list[str] = []
    with beside(lambda step: 2 if 1 < step < 8 else PLANNED) as state:
        monkeypatch.setattr(loop, "make_micro", make)
        summary = train(plan, steps=9, on_note=notes.append)
    assert state.failed == [2]
    assert [line.get("began_with") for line in log_of(tmp_path / "run")] == [None, None, 2, 2, 2, 2, 2, None, None]
    assert summary.reduced_steps == 5
    assert "; 5 steps began smaller, beside others on the GPU. Other processes held" in _fallbacks(summary)
    assert "the planned micro-batches fit again from step 8" in notes
    assert same_run.losses(tmp_path / "run", tmp_path / "undisturbed")
    assert {step for step in made_late if step} == {2, 3, 4, 8, 9}, "the others came from the loader at their size"


def test_a_record_and_a_summary_without_a_smaller_step_are_written_as_ever(plan, train, tmp_path):
    train(plan, steps=1)
    (line,) = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert "began_with" not in json.loads(line)
    assert "reduced_steps" not in json.loads((tmp_path / "run" / "summary.json").read_text())
    assert Record.read_text(line, source="line").began_with is None


def test_both_processes_begin_smaller_where_one_has_a_other_process(
    make_plan, train, launch, doubles, same_run, tmp_path, monkeypatch
):
    plan = make_plan(micro_batch=4, effective_batch=8, learning_rate=1e-4)
    train(plan, steps=6, out=tmp_path / "alone")
    monkeypatch.setenv("OTHER_PROCESS_RANK", "1")
    monkeypatch.setenv("OTHER_PROCESS", "2 4 2")
    done = launch(plan, "--steps", "6", doubles=True)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [(one["step"], one["process"], one["crowded"]) for one in summary["fallbacks"]] == [(2, 1, True)]
    assert [line.get("began_with") for line in log_of(tmp_path / "run")] == [None, None, 2, 2, None, None]
    assert same_run.losses(tmp_path / "run", tmp_path / "alone")
    assert same_run.adapters(tmp_path / "run", tmp_path / "alone")
