"""Commands in processes of their own: how they ended, what they printed, and what they took; killed when their time is over."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
BUDGETFT = (sys.executable, "-m", "budgetft")
KILLED = -signal.SIGKILL


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that ended, by itself or killed."""

    code: int
    """Its exit code; negative: the signal that ended it."""
    out: str
    err: str
    seconds: float
    user_seconds: float
    processor_seconds: float
    """Of it and all that it started and waited for: a busy machine does not count."""
    peak_bytes: int
    """Largest resident memory of any of these."""

    def checked(self) -> "Ended":
        """Itself; ends the script with the end of what was said where the process failed."""
        if self.code:
            raise SystemExit(f"exit code {self.code}: {self.err.strip()[-3000:]}")
        return self


def environment(cache: Path | str | None = None, **more: str) -> dict[str, str]:
    """This process's without a network, and ``more``; ``cache`` is the folder for what budgetft keeps."""
    made = {"HF_HUB_OFFLINE": "1", **os.environ, **more}
    return made if cache is None else {**made, "BUDGETFT_CACHE": str(cache)}


def run(
    command: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    live: bool = False,
    kill_after: float | None = None,
    ready: Callable[[], bool] | None = None,
    victim: Callable[[int], int] = lambda pid: pid,
) -> Ended:
    """Run ``command`` to its end, or kill -9 it ``kill_after`` seconds after ``ready`` first says so (at once without it).

    ``victim`` chooses which process is killed, from the id of the first. What the command started is ended with it. With
    ``live`` what it says on stderr is seen as it comes, and not kept. A script that is killed takes its command along (Linux).
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=out,
            stderr=None if live else err,
            env=env,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=_end_with_this_process,
        )
        try:
            with _killing(process, kill_after, ready, victim):
                _, status, used = os.wait4(process.pid, 0)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - began
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    both = used.ru_utime + used.ru_stime
    return Ended(
        code=process.returncode, out=texts[0], err=texts[1], seconds=seconds, user_seconds=used.ru_utime,
        processor_seconds=both, peak_bytes=1024 * used.ru_maxrss,
    )  # fmt: skip


def budgetft(*words: object, cache: Path | str | None = None, **how) -> Ended:
    """``budgetft WORDS``, by :func:`run`; ``how`` is its options."""
    return run([*BUDGETFT, *words], **{"env": environment(cache), **how})


def _end_with_this_process() -> None:
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also a killed script leaves nothing on the GPU


@contextmanager
def _killing(
    process: subprocess.Popen, after: float | None, ready: Callable[[], bool] | None, victim: Callable[[int], int]
) -> Iterator[None]:
    over = threading.Event()

    def kill() -> None:
        while ready is not None and not ready() and not over.wait(0.002):
            pass
        if not over.wait(after):
            with suppress(ProcessLookupError):
                chosen = victim(process.pid)
                os.kill(chosen, signal.SIGKILL)
                if chosen != process.pid and not over.wait(120):  # a launcher ends the others itself
                    os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill, daemon=True)
    if after is not None:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if after is not None:
            thread.join()


def descendants(pid: int) -> list[int]:
    """The processes that ``pid`` started, and those that they did."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def clocked(act: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that ``act`` takes, by ``clock``."""
    began = clock()
    act()
    return clock() - began


def user_seconds() -> float:
    """Of this process so far: a clock that stands still while others have the processor."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime
