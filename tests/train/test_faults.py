"""What a disk can do to a run: it ends in a sentence, keeps the older checkpoint, and goes on from it."""

import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import pytest

from budgetft.errors import BudgetftError, UsageError
from budgetft.train.folder import claimed

ADAPTER = "adapter/adapter_model.safetensors"


@contextmanager
def largest_file(size):
    """The kernel refuses to make files larger, as it refuses a full disk: in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def reference(make_plan, train, tmp_path):
    train(make_plan(), out=tmp_path / "reference", steps=6)
    return tmp_path / "reference"


def test_a_checkpoint_that_the_disk_refuses_ends_the_run_and_the_older_one_goes_on(make_plan, train, tmp_path, reference):
    run = tmp_path / "run"
    stack = []

    def limit(record):
        if record.step == 3:
            limited = largest_file(16_384)  # the adapter alone is larger
            limited.__enter__()
            stack.append(limited)

    try:
        with pytest.raises(BudgetftError, match=r"cannot write .*step-4: .*([Ff]ile too large|File size)") as caught:
            train(make_plan(), steps=6, save_every=2, on_progress=limit)
    finally:
        stack.pop().__exit__(None, None, None)
    assert "--resume" in (caught.value.hint or "")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-2"]
    train(make_plan(), resume=True)
    assert (run / ADAPTER).read_bytes() == (reference / ADAPTER).read_bytes()


def test_a_log_that_the_disk_refuses_ends_the_run_and_its_torn_line_is_dropped(make_plan, train, tmp_path, reference):
    run, stack = tmp_path / "run", []

    def limit(record):
        if record.step == 3:
            limited = largest_file((run / "log.jsonl").stat().st_size + 100)
            limited.__enter__()
            stack.append(limited)

    try:
        with pytest.raises(BudgetftError, match=r"cannot write .*log\.jsonl: File too large"):
            train(make_plan(), steps=6, save_every=2, on_progress=limit)
    finally:
        stack.pop().__exit__(None, None, None)
    train(make_plan(), resume=True)
    assert (run / ADAPTER).read_bytes() == (reference / ADAPTER).read_bytes()
    assert [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_place_that_cannot_be_written_is_refused_before_any_work(make_plan, train):
    with pytest.raises(UsageError, match="cannot make the run folder"):
        train(make_plan(), out=Path("/proc/run"))


def test_a_read_only_folder_is_refused_in_a_sentence(tmp_path, monkeypatch):
    def refuse(path, flags, mode=0o777):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UsageError, match=r"cannot write .*\.lock: Permission denied"), claimed(tmp_path, resume=False):
        pytest.fail("entered")


def test_a_clock_that_goes_backwards_changes_nothing(make_plan, train, tmp_path, reference, monkeypatch):
    import time

    now = iter(range(2_000_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    summary = train(make_plan(), steps=6, save_every=2)
    assert summary.train_seconds > 0
    assert (tmp_path / "run" / ADAPTER).read_bytes() == (reference / ADAPTER).read_bytes()
