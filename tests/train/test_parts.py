"""The parts of training that need no model."""

import itertools
import os
import subprocess
import sys
import threading

import pytest
import torch
from patience import HANG_SECONDS
from rounding import arithmetic

from budgetft.contract import Contract
from budgetft.data.bucket import split
from budgetft.errors import BudgetftError, UsageError
from budgetft.train.folder import claimed, write_folder
from budgetft.train.guard import out_of_memory
from budgetft.train.loader import prefetched
from budgetft.train.log import Log
from budgetft.train.numerics import WINDOW, FiniteWatch
from budgetft.train.record import Record
from budgetft.train.rng import seed_all, seed_step
from budgetft.train.schedule import learning_rate, step_examples, total_steps


def record(step, **changes):
    fields = {
        "steps": 9, "epoch": 0.1, "loss": 1.0, "grad_norm": 1.0, "finite": True, "scale": 1.0, "learning_rate": 1e-4,
        "seconds": 1.0, "data_seconds": 0.0, "samples_per_second": 4.0, "allocated_bytes": 1, "allocated_peak_bytes": 2,
        "reserved_bytes": None, "reserved_peak_bytes": None, "process_bytes": 1, "process_peak_bytes": 2,
    }  # fmt: skip
    return Record(step=step, **{**fields, **changes})


def test_every_epoch_sees_every_example_once_and_in_another_order():
    contract = Contract(effective_batch=4, seed=3)
    stream = [index for step in range(1, 8) for index in step_examples(step, 7, contract)]
    epochs = [stream[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert step_examples(5, 7, contract) != step_examples(5, 7, contract.replace(seed=4))


def test_a_batch_larger_than_the_data_takes_examples_again():
    assert sorted(step_examples(1, 2, Contract(effective_batch=4))) == [0, 0, 1, 1]


def test_the_steps_cover_the_epochs():
    assert total_steps(Contract(effective_batch=4, epochs=2), 7) == 4
    assert total_steps(Contract(effective_batch=32), 1) == 1


def test_the_learning_rate_warms_up_and_ends_near_zero():
    contract = Contract(learning_rate=1.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 100, contract) for step in range(1, 101)]
    assert rates[:10] == arithmetic([step / 10 for step in range(1, 11)])
    assert rates[10] == 1.0
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.001
    assert [learning_rate(step, 2, contract.replace(warmup_ratio=1.0)) for step in (1, 2)] == [0.5, 1.0]
    assert learning_rate(1, 1, contract.replace(warmup_ratio=0.0)) == 1.0


def test_each_schedule_is_that_of_transformers_but_for_its_first_warm_step():
    """Theirs warms up from 0, ours from one part of the way: their step s + 1 is our step s there."""
    from torch import nn
    from torch.optim import SGD
    from transformers import get_scheduler

    contract, steps, warmup = Contract(learning_rate=1.0, warmup_ratio=0.2), 20, 4
    for name in ("cosine", "linear", "constant", "constant_with_warmup"):
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
        rates = []
        for _ in range(steps + 1):
            rates.append(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()
        ours = [learning_rate(step, steps, contract.replace(lr_schedule=name)) for step in range(1, steps + 1)]
        assert ours[:warmup] == arithmetic(rates[1 : warmup + 1])
        assert ours[warmup:] == arithmetic(rates[warmup:steps], scale=1.0)


def test_micro_batches_keep_the_order():
    assert split([5, 1, 4, 2], 2) == [(5, 1), (4, 2)]


def test_batches_come_in_order_although_threads_finish_out_of_it():
    ended = [threading.Event() for _ in range(24)]

    def last_first(number):
        """The first of a batch ends after its last."""
        if number % 4 == 0:
            assert ended[number + 3].wait(HANG_SECONDS), f"{number + 3} was not made beside {number}"
        ended[number].set()
        return number

    batches = [[4 * batch + part for part in range(4)] for batch in range(6)]
    assert list(prefetched(batches, last_first, workers=4)) == batches


def test_an_error_in_a_thread_is_raised_where_its_batch_would_have_come():
    def fail_at_five(number):
        if number == 5:
            raise UsageError("image 5 cannot be read")
        return number

    stream = prefetched([[0, 1], [2, 3], [4, 5], [6, 7]], fail_at_five, workers=2)
    assert [next(stream), next(stream)] == [[0, 1], [2, 3]]
    with pytest.raises(UsageError, match="image 5"):
        next(stream)


def test_only_a_bounded_number_of_batches_is_made_ahead():
    taken, made = [], []
    numbers = ([taken.append(number) or number] for number in range(1000))
    stream = prefetched(numbers, lambda number: made.append(number) or number, ahead=2)
    assert next(stream) == [0]
    stream.close()
    assert taken == [0, 1, 2], "the one that was wanted, and two ahead"
    assert set(made) <= {0, 1, 2}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_the_log_keeps_what_the_checkpoint_has_seen_and_drops_the_rest(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path, finished_steps=0)
    for step in (1, 2, 3):
        log.append(record(step))
    log.close()
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    log = Log(path, finished_steps=2)
    log.append(record(3, loss=None, finite=False))
    log.close()
    assert [kept.step for kept in log.records] == [1, 2, 3]
    assert [kept.loss for kept in Log(path, finished_steps=3).records] == [1.0, 1.0, None]
    with pytest.raises(BudgetftError, match="holds 3 of the 5 steps"):
        Log(path, finished_steps=5)


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\u0085"])
def test_an_id_with_a_line_separator_of_unicode_does_not_end_a_line_of_the_log(tmp_path, odd):
    log = Log(tmp_path / "log.jsonl", finished_steps=0)
    for step in (1, 2):
        log.append(record(step, peak_examples=(f"a{odd}b",)))
    log.close()
    assert [kept.peak_examples for kept in Log(tmp_path / "log.jsonl", finished_steps=2).records] == [(f"a{odd}b",)] * 2


def test_what_a_step_draws_follows_from_seed_and_number_alone():
    import random

    import numpy as np
    import torch

    def draw(seed, number):
        seed_step(seed, number)
        return random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(3).tolist()

    first = draw(1, 7)
    random.gauss(0, 1)  # leaves a second number waiting
    assert draw(1, 7) == first
    assert first not in (draw(1, 8), draw(2, 7))


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_every_seed_of_a_contract_seeds_every_generator_and_every_order(seed):
    contract = Contract(seed=seed, effective_batch=4)
    seed_all(contract.seed)
    seed_step(contract.seed, 10**9, rank=1000)
    assert sorted(step_examples(1, 4, contract)) == [0, 1, 2, 3]


def test_two_processes_cannot_hold_one_folder(tmp_path):
    with (
        claimed(tmp_path / "run", resume=False),
        pytest.raises(UsageError, match=rf"in use by another run \(process {os.getpid()}\)"),
        claimed(tmp_path / "run", resume=False),
    ):
        pytest.fail("two holders")


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    (tmp_path / "run").mkdir()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    (tmp_path / "run" / ".lock").write_text(dead.stdout)
    with claimed(tmp_path / "run", resume=False):
        assert (tmp_path / "run" / ".lock").read_text() == f"{os.getpid()}\n"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(UsageError, match="not empty and holds no run"), claimed(tmp_path, resume=False):
        pytest.fail("entered")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def fill(folder, text="new"):
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text(text)

    def full_disk(folder):
        fill(folder, "half")
        raise OSError(28, "No space left on device")

    write_folder(tmp_path / "target", fill)
    with pytest.raises(BudgetftError, match="No space left"):
        write_folder(tmp_path / "target", full_disk)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target" / "inner" / "file").read_text() == "new"


def test_steps_that_are_not_finite_end_the_run_only_in_a_row():
    watch = FiniteWatch(limit=3)
    for step, finite in enumerate([False, False, True, False, False], start=1):
        watch.see(step=step, finite=finite, scale=1.0)
    with pytest.raises(BudgetftError, match="3 steps in a row were not finite, up to step 6"):
        watch.see(step=6, finite=False, scale=1.0)


def feed(watch, *rows):
    """Steps as (finite, scale), counted from 1."""
    for step, (finite, scale) in enumerate(rows, start=1):
        watch.see(step=step, finite=finite, scale=scale, where=None if finite else "the gradient of layers.3")


def test_a_scale_that_keeps_falling_ends_the_run_and_names_the_place():
    falling = [(finite, 2.0**power) for power in range(8, -5, -1) for finite in (False, True)]  # never many in a row
    with pytest.raises(BudgetftError, match=r"scale fell to 0\.5 at step 19; first in the gradient of layers\.3"):
        feed(FiniteWatch(), *falling)
    with pytest.raises(BudgetftError, match=rf"67 of the last {WINDOW} steps were not finite"):
        feed(FiniteWatch(), *((step % 3 > 0, 4.0) for step in range(1000)))


def test_a_scaler_that_tries_a_higher_scale_now_and_then_is_left_alone():
    watch = FiniteWatch()
    for step in range(1, 5000):
        watch.see(step=step, finite=step > 10 and step % 20 > 0, scale=1024.0)


def test_running_out_of_memory_names_phase_place_examples_and_cap():
    error = out_of_memory(
        RuntimeError("tried to allocate 2 GiB\nmore"),
        phase="backward",
        where="step 7",
        ids=[f"e{number}" for number in range(10)],
        cap_bytes=13 * 2**30,
        budget_bytes=14 * 2**30,
        hint="plan again",
    )
    for part in ("'backward' of step 7", "e7 and 2 more", "cap is 13.00 GiB", "budget 14.00 GiB", "allocate 2 GiB"):
        assert part in error.message
    assert "more\n" not in error.message
