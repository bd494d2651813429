"""Commands in processes of their own: what is known of one that ended, and which are killed."""

import os
import sys
import time

import pytest
from patience import HANG_SECONDS
from reported import REPORTS, harness

children = harness("children")


def python(code: str, **how):
    return children.run([sys.executable, "-c", code], **how)


def test_what_a_process_printed_said_and_took_is_known():
    ended = python("import sys; print('out'); print('said', file=sys.stderr); sum(range(10**6))")
    assert (ended.code, ended.out, ended.err) == (0, "out\n", "said\n")
    assert 0 < ended.user_seconds <= ended.processor_seconds
    assert ended.peak_bytes > 2**20
    assert ended.checked() is ended


def test_a_process_that_failed_ends_the_script_with_the_end_of_what_it_said():
    ended = python("import sys; sys.exit('no such file')")
    assert ended.code == 1
    with pytest.raises(SystemExit, match="exit code 1: no such file"):
        ended.checked()


def test_more_output_than_a_pipe_holds_is_kept():
    assert len(python("print('x' * 300_000)").out) == 300_001


def test_a_process_is_killed_when_its_time_is_over():
    ended = python("import time; print('begun', flush=True); time.sleep(3600)", kill_after=0.5)
    assert ended.code == children.KILLED
    assert ended.seconds < HANG_SECONDS


def test_a_kill_waits_for_what_it_is_to_wait_for(tmp_path):
    there = tmp_path / "there"
    code = f"import time, pathlib; time.sleep(0.2); pathlib.Path({str(there)!r}).write_text('x'); time.sleep(3600)"
    assert python(code, kill_after=0.0, ready=there.exists).code == children.KILLED
    assert there.exists()


def test_a_process_that_ends_before_its_time_is_not_killed():
    assert python("print('done')", kill_after=600.0).out == "done\n"


def test_what_a_killed_process_had_started_is_ended_with_it(tmp_path):
    told = tmp_path / "pid"
    code = (
        "import subprocess, sys, time, pathlib; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        f"pathlib.Path({str(told)!r}).write_text(str(p.pid)); time.sleep(3600)"
    )
    python(code, kill_after=0.0, ready=lambda: told.exists() and told.read_text() != "")
    pid, until = int(told.read_text()), time.monotonic() + HANG_SECONDS
    while _runs(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _runs(pid)


def test_a_script_that_is_killed_leaves_no_command_behind(tmp_path):
    told = tmp_path / "pid"
    inner = f"import os, time, pathlib; pathlib.Path({str(told)!r}).write_text(str(os.getpid())); time.sleep(3600)"
    outer = (
        f"import sys; sys.path[:0] = {[str(REPORTS)]}; from harness.children import run; run([sys.executable, '-c', {inner!r}])"
    )
    python(outer, kill_after=0.0, ready=lambda: told.exists() and told.read_text() != "")
    pid, until = int(told.read_text()), time.monotonic() + HANG_SECONDS
    while _runs(pid) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_another_process_than_the_first_can_be_the_one_that_is_killed():
    code = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "print(p.wait()); sys.exit(3)"
    )

    def child_of(pid: int) -> int:
        return children.descendants(pid)[0]

    started: list[int] = []

    def ready() -> bool:
        started[:] = [one for one in children.descendants(os.getpid()) if children.descendants(one)]
        return bool(started)

    ended = python(code, kill_after=0.0, ready=ready, victim=child_of)
    assert (ended.code, ended.out.strip()) == (3, str(children.KILLED))


def test_the_environment_is_this_ones_without_a_network_and_with_another_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    made = children.environment(tmp_path, COLUMNS="80")
    assert (made["HF_HUB_OFFLINE"], made["BUDGETFT_CACHE"], made["COLUMNS"]) == ("1", str(tmp_path), "80")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert children.environment()["HF_HUB_OFFLINE"] == "0"
