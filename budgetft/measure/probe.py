"""The parent's side of probing: start a child, ask, wait, and turn whatever happens into an Outcome.

Time-outs and crashes are decided here; the child only reports what it can still report. Nothing that a child does raises.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Any, Self

from budgetft.allocator import NAME, OLDER_NAME, own, settings
from budgetft.errors import BudgetftError
from budgetft.host_gpus import pinned
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.outcome import Outcome, Phase, Stack

CHILD = (sys.executable, "-m", "budgetft.measure.child")
ANSWER_BYTES = 2**20
"""Longest answer that is read; an outcome is a few kilobytes."""
LOAD_SECONDS = 600.0
PROBE_SECONDS = 300.0
END_SECONDS = 10.0
"""How long a child that has closed its answers may take to end."""


class Prober:
    """Probes of one job. Keeps a child alive while settings share a loaded model and none has failed."""

    def __init__(
        self,
        job: Job,
        *,
        stack: Stack | None,
        command: Sequence[str] = CHILD,
        load_seconds: float = LOAD_SECONDS,
        probe_seconds: float = PROBE_SECONDS,
        timed_steps: int = 3,
        on_phase: Callable[[Phase], None] = lambda phase: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job = job
        self.stack = stack
        self._command = tuple(command)
        self._load_seconds = load_seconds
        self._probe_seconds = probe_seconds
        self._timed_steps = timed_steps
        self._on_phase = on_phase
        self._clock = clock
        self._child: _Child | None = None
        self._told: Job | None = None
        """The job that the child has been told."""

    def probe(self, knobs: Knobs, *, fresh: bool = False) -> Outcome:
        """Measure ``knobs``; ``fresh`` starts a new process for it. Every ending is an Outcome; only Ctrl-C raises, and a
        ``UsageError`` for settings of the allocator that no child can be started with."""
        started = self._clock()
        try:
            outcome = self._ask(knobs, fresh=fresh)
        except BaseException:
            self.close()
            raise
        outcome = outcome.replace(wall_seconds=self._clock() - started, stack=self.stack)
        if not outcome.fits:
            self.close()
        return outcome

    def rebind(self, job: Job) -> None:
        """Probe ``job`` from now on. The child goes on where the model that it has loaded serves that too."""
        if self._child is not None and job.loaded_key() != self.job.loaded_key():
            self.close()
        self.job = job

    def _ask(self, knobs: Knobs, *, fresh: bool) -> Outcome:
        key = self.job.build_key(knobs)
        if self._child is not None and (fresh or self._child.key != key):
            self.close()
        if self._child is None:
            environment = {**os.environ, **(pinned(os.environ) if self.job.device == "cuda" else {})}
            self._child = _Child(self._command, key, knobs.allocator, self._on_phase, environment, self._clock)
            first = {"job": self.job.model_dump(mode="json"), "knobs": knobs.model_dump(mode="json")}
            self._told = self.job
            failed = self._child.talk(first, "ready", self._load_seconds)
            if "ready" not in failed:
                return self._ended(knobs, failed)
        request = {"knobs": knobs.model_dump(mode="json"), "timed_steps": self._timed_steps}
        if self._told is not self.job:
            request["job"], self._told = self.job.model_dump(mode="json"), self.job
        return self._ended(knobs, self._child.talk(request, "outcome", self._probe_seconds))

    def _ended(self, knobs: Knobs, reply: dict[str, Any]) -> Outcome:
        if "outcome" in reply:
            try:
                outcome = Outcome.read(reply["outcome"], source="the probe's answer")
                if outcome.knobs == knobs:
                    return outcome
                reply = {"crash": f"unreadable answer: an outcome of another setting: {outcome.knobs}"}
            except BudgetftError as error:
                reply = {"crash": f"unreadable answer: {error.message}"}
        assert self._child is not None
        kind = "timeout" if "timeout" in reply else "crash"
        return Outcome(
            status=kind,
            phase=self._child.phase,
            detail=str(reply[kind])[:2000],
            knobs=knobs,
            evidence=self.job.evidence,
            budget_bytes=self.job.budget_bytes,
        )

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tell_allocator(environment: dict[str, str], *, expandable: bool) -> None:
    """Put the user's settings of the allocator and that of a plan into a child's ``environment``. Raises ``UsageError``."""
    before = own.read(environment)
    text = settings(before, {"expandable_segments": str(expandable)}).text
    for name in (NAME, OLDER_NAME):  # which of them torch reads is not known without loading it
        environment.pop(name, None)
        if expandable or before:
            environment[name] = text


class _Child:
    def __init__(
        self,
        command: Sequence[str],
        key: str,
        allocator: str,
        on_phase: Callable[[Phase], None],
        environment: dict[str, str],
        clock: Callable[[], float],
    ) -> None:
        _tell_allocator(environment, expandable=allocator == "expandable")
        self.key = key
        self.phase: Phase = "load"
        self._on_phase = on_phase
        self._clock = clock
        self._pending = b""
        self._stderr: IO[bytes] = TemporaryFile()  # noqa: SIM115 - lives as long as the child
        read_end, write_end = os.pipe()
        self._results = read_end
        self._process = subprocess.Popen(
            [*command, str(write_end)],
            stdin=subprocess.PIPE,
            bufsize=0,
            stdout=self._stderr,
            stderr=self._stderr,
            pass_fds=(write_end,),
            env=environment,
            start_new_session=True,
        )
        os.close(write_end)
        assert self._process.stdin is not None
        self._requests = self._process.stdin
        os.set_blocking(self._requests.fileno(), False)  # a child that hangs before it reads must not hang the parent

    def talk(self, request: dict[str, Any], wanted: str, seconds: float) -> dict[str, Any]:
        """Send one line and read until ``wanted`` or ``outcome``; else {"timeout": why} or {"crash": why}."""
        unsent = json.dumps(request).encode() + b"\n"
        deadline = self._clock() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._results, selectors.EVENT_READ)
            selector.register(self._requests, selectors.EVENT_WRITE)
            while True:
                line, newline, rest = self._pending.partition(b"\n")
                if newline:
                    self._pending = rest
                    reply = self._understand(line)
                    if wanted in reply or "outcome" in reply or "crash" in reply:
                        return reply
                    continue
                if len(self._pending) > ANSWER_BYTES:
                    return {"crash": f"unreadable answer: {self._pending[:200]!r}"}
                left = deadline - self._clock()
                ready = {key.fileobj for key, _ in selector.select(left)} if left > 0 else set()
                if not ready:
                    return {"timeout": f"no answer within {seconds:.0f} s"}
                if self._requests in ready:
                    unsent = self._send(unsent)
                    if not unsent:
                        selector.unregister(self._requests)
                if self._results in ready:
                    chunk = os.read(self._results, 65536)
                    if not chunk:
                        return {"crash": self._death()}
                    self._pending += chunk

    def _send(self, unsent: bytes) -> bytes:
        """What is left of ``unsent`` after as much was written as fits; nothing when the child no longer reads."""
        try:
            return unsent[self._requests.write(unsent) or 0 :]
        except OSError:
            return b""  # what it answered before may still be in the pipe

    def _understand(self, line: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            return {"crash": f"unreadable answer: {line[:200]!r}"}
        if not isinstance(reply, dict):
            return {"crash": f"unreadable answer: {line[:200]!r}"}
        if reply.get("phase") in ("load", "vision", "forward", "loss", "backward", "optimizer"):
            self.phase = reply["phase"]
            self._on_phase(self.phase)
        return reply

    def _death(self) -> str:
        try:
            code = self._process.wait(timeout=END_SECONDS)
        except subprocess.TimeoutExpired:
            return "closed its answers and went on running"
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self._stderr.seek(max(0, self._stderr.seek(0, os.SEEK_END) - 3000))
        tail = self._stderr.read().decode(errors="replace").strip().splitlines()
        return f"{how}: {' | '.join(line[-400:] for line in tail[-4:])}" if tail else how

    def close(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        with suppress(OSError):
            self._requests.close()
        os.close(self._results)
        self._stderr.close()
