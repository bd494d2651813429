"""All processes of a run begin with the same, or none begins: each is told what is wrong with one."""

import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from patience import HANG_SECONDS

from budgetft.errors import BudgetftError
from budgetft.train import saving
from budgetft.train.agree import Fingerprint, check_same, differences, in_all, of_first
from budgetft.train.checkpoint import State
from budgetft.train.ranks import Ranks
from budgetft.train.saving import Checkpoints, Pace

CPU = torch.device("cpu")


class Meeting:
    """Where two threads give each other what they have, as two processes do."""

    def __init__(self) -> None:
        self.brought: list[list[Any]] = [[], []]
        self.barrier = threading.Barrier(2, timeout=HANG_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Paired(Ranks):
    """One of two processes, in a thread."""

    world: int = 2
    meeting: Meeting = field(default_factory=Meeting)

    def gathered(self, found: Any, device: torch.device) -> list[Any]:
        self.meeting.brought[self.rank] = list(found)
        self.meeting.barrier.wait()
        told = [one for each in self.meeting.brought for one in each]
        self.meeting.barrier.wait()
        return told


def in_two(run: Callable[[Ranks], Any]) -> list[Any]:
    """What ``run`` returned or raised in each of two processes."""
    meeting = Meeting()
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(run, Paired(rank=rank, meeting=meeting)) for rank in (0, 1)]
        return [future.exception() or future.result() for future in futures]


def test_what_the_first_finds_is_what_all_go_on_with():
    assert in_two(lambda ranks: of_first(lambda: f"found by {ranks.rank}", ranks, CPU)) == ["found by 0", "found by 0"]
    assert in_two(lambda ranks: of_first(lambda: None, ranks, CPU)) == [None, None]


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BudgetftError("it is cut", hint="mend it"), "it is cut"),
        (PermissionError(13, "Permission denied", "/run/state.json"), "cannot use /run/state.json: Permission denied"),
        (torch.OutOfMemoryError("no room"), "out of memory: no room"),
    ],
)
def test_a_failure_in_one_process_ends_both_with_one_sentence_that_names_it(failing, error, said):
    def read(ranks):
        if ranks.rank == failing:
            raise error
        return "read"

    ended = in_two(lambda ranks: in_all(lambda: read(ranks), ranks, CPU))
    assert [type(one) for one in ended] == [BudgetftError] * 2
    assert [one.message for one in ended] == [said if failing == 0 else f"process 1 of 2: {said}"] * 2
    assert all(one.hint for one in ended)


def checkpoints_in(folder, *steps):
    for step in steps:
        (folder / f"step-{step}").mkdir(parents=True)
        state = State(step=step, examples_seen=4 * step, plan_fingerprint="p", scaler={}, sha256={})
        (folder / f"step-{step}" / "state.json").write_text(state.model_dump_json())
    return folder


@pytest.fixture
def resume(monkeypatch):
    """Resumes in two processes that each see a folder of checkpoints; gives the steps or errors, and what each loaded."""

    def run(*folders):
        loaded: dict[Any, Any] = {}
        monkeypatch.setattr(saving, "restore_checkpoint", lambda path, state, step: loaded.update({path.parent: path.name}))
        step: Any = SimpleNamespace(device=CPU, optimizer=SimpleNamespace(state={}))
        memory: Any = SimpleNamespace(count=list)
        notes: list[str] = []

        def restore(ranks):
            found = Checkpoints(folders[ranks.rank], step, Pace(None), plan_fingerprint="p", ranks=ranks)
            return found.restore(memory, notes.append if ranks.first else pytest.fail)

        return in_two(restore), loaded

    return run


def test_both_go_on_from_the_checkpoint_that_the_first_finds_and_the_first_alone_removes(resume, tmp_path):
    first, second = checkpoints_in(tmp_path / "first", 2, 4), checkpoints_in(tmp_path / "second", 2, 4)
    for folder in (first, second):
        (folder / ".step-6.part").mkdir()
    (first / "step-4" / "state.json").write_text("{")
    steps, loaded = resume(first, second)
    assert steps == [2, 2]
    assert loaded == {first: "step-2", second: "step-2"}
    assert sorted(path.name for path in first.iterdir()) == ["step-2"]
    assert sorted(path.name for path in second.iterdir()) == [".step-6.part", "step-2", "step-4"]


@pytest.mark.parametrize("fault", ["absent", "cut", "other"])
def test_a_process_that_cannot_read_the_chosen_checkpoint_ends_both_before_anything_is_removed(resume, tmp_path, fault):
    first, second = checkpoints_in(tmp_path / "first", 2, 4), checkpoints_in(tmp_path / "second", 2, 4)
    state = second / "step-4" / "state.json"
    if fault == "absent":
        shutil.rmtree(second / "step-4")
    elif fault == "cut":
        state.write_text(state.read_text()[:20])
    else:
        state.write_text(json.dumps({**json.loads(state.read_text()), "examples_seen": 99}))
    before = sorted(tmp_path.rglob("*"))
    ended, loaded = resume(first, second)
    said = {"absent": "it is not there", "cut": "is not JSON", "other": "it is another one of that step"}[fault]
    for error in ended:
        assert error.message.startswith(f"process 1 of 2: the run goes on from {second / 'step-4'} for process 0, and here ")
        assert said in error.message
    assert second not in loaded
    assert sorted(tmp_path.rglob("*")) == before


def test_where_the_first_finds_none_whole_both_end_and_where_none_was_written_both_start_over(resume, tmp_path):
    cut = checkpoints_in(tmp_path / "first", 4)
    (cut / "step-4" / "state.json").write_text("{")
    ended, _ = resume(cut, checkpoints_in(tmp_path / "second", 4))
    assert ["is whole" in error.message for error in ended] == [True, True]
    assert resume(tmp_path / "none", tmp_path / "second") == ([0, 0], {})


def made_step(*, seed: int = 0, scale: float = 1.0) -> Any:
    draw = torch.Generator().manual_seed(0)  # of its own: two threads make steps at once
    sizes = ((4, 3), torch.float32), ((3,), torch.bfloat16)
    parameters = [torch.nn.Parameter(torch.randn(size, generator=draw).to(dtype)) for size, dtype in sizes]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    scaler = SimpleNamespace(state_dict=lambda: {"scale": scale})
    return SimpleNamespace(
        device=CPU, parameters=parameters, optimizer=optimizer, scaler=scaler, contract=SimpleNamespace(seed=seed)
    )


def with_another(part: str) -> Any:
    step = made_step(seed=int(part == "seed"), scale=2.0 if part == "gradient scaler" else 1.0)
    if part == "adapter":
        step.parameters[1].data[2] += 1
    if part == "optimizer's state":
        step.optimizer.state[step.parameters[0]]["exp_avg_sq"][3, 2] *= 1 + 1e-6
    return step


@pytest.mark.parametrize("part", ["adapter", "optimizer's state", "gradient scaler", "seed"])
def test_one_number_that_differs_ends_both_and_is_said_to_be_in_the_adapter_the_optimizer_the_scaler_or_the_seed(part):
    ended = in_two(lambda ranks: check_same(made_step() if ranks.first else with_another(part), ranks))
    for error in ended:
        assert f"process 1 has another {part} than process 0. No step was made" in error.message


def test_processes_that_are_alike_begin():
    assert in_two(lambda ranks: check_same(made_step(), ranks)) == [None, None]
    assert Fingerprint.of(made_step()).adapter != Fingerprint.of(with_another("adapter")).adapter


def test_all_that_differ_from_the_first_are_named_with_all_that_they_have_of_their_own():
    one = Fingerprint.of(made_step())
    assert differences([one, one.replace(seed=3, adapter="x"), one, one.replace(optimizer="x")]) == [
        "process 1 has another adapter and another seed than process 0",
        "process 3 has another optimizer's state than process 0",
    ]


def test_a_process_with_another_adapter_ends_both_before_the_first_step(make_plan, launch, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFERS", "adapter")
    done = launch(make_plan(micro_batch=1), "--steps", "2")
    assert done.returncode != 0
    assert done.stderr.count("error: the processes do not begin alike: process 1 has another adapter") == 2, done.stderr[-3000:]
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_process_that_sees_no_checkpoint_ends_both_and_the_checkpoint_stays(make_plan, train, launch, tmp_path, monkeypatch):
    plan = make_plan(micro_batch=1)
    train(plan, steps=3)
    (tmp_path / "run" / "summary.json").unlink()  # as if it had been killed
    monkeypatch.setenv("DIFFERS", "folder")
    done = launch(plan, "--resume")
    assert done.returncode != 0
    assert done.stderr.count("error: process 1 of 2: the run goes on from") == 2, done.stderr[-3000:]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-3"]
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3
