"""The probe's process: loads one model, then answers one setting a line until something fails.

``python -m budgetft.measure.child RESULT_FD`` reads JSON lines on stdin: first a job with the knobs to build for, then
``{"knobs": ..., "timed_steps": n}``, with another ``"job"`` where that changes. It writes JSON lines to RESULT_FD:
``{"hello": stack}``, ``{"phase": name}`` whenever the phase changes, and ``{"outcome": ...}`` for each setting. After an
out-of-memory it answers and ends: what such a process allocates afterwards proves nothing. Weights are random unless the job
names some; content never matters, shapes do.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from budgetft.data.bucket import padded_tokens
from budgetft.data.shapes import small_shape
from budgetft.errors import UsageError
from budgetft.host_gpus import driver_version, first_visible
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.outcome import Outcome, Phase, Stack, processor
from budgetft.workload import Shape

TIMED_SECONDS = 12.0
"""No further timed step is begun after so many seconds."""
PRECISE = 0.03
"""Standard error of a probe's seconds, as a share of them, above which further readings are taken."""
MOST_READINGS = 15


class Probing:
    """One loaded model, and the measuring of settings on it."""

    def __init__(self, job: Job, knobs: Knobs, on_phase: Callable[[Phase], None]) -> None:
        import torch

        from budgetft.step.build import build_model
        from budgetft.step.step import Step

        self.job = job
        self.on_phase = on_phase
        self.device = torch.device(job.device, 0) if job.device == "cuda" else torch.device("cpu")
        self.meter = _cuda_meter(job) if job.device == "cuda" else None
        on_phase("load")
        peft_model = build_model(
            job.model,
            job.contract,
            base_precision=knobs.base_precision,
            device=self.device,
            weights=job.weights,
            vision=knobs.vision,
        )
        self.new_step = lambda chosen: Step(peft_model, self.job.contract, chosen, device=self.device)
        self.peft_model = peft_model

    def rebind(self, job: Job) -> None:
        """Measure for ``job`` from now on: the same model and adapters, other shapes or another effective batch."""
        self.job = job

    def probe(self, knobs: Knobs, *, timed_steps: int) -> Outcome:
        """Measure one setting: the worst batch through two optimizer steps for the peaks, then timed ordinary batches."""
        step = self.new_step(knobs)
        step.on_phase = self.on_phase
        accumulate = min(2, knobs.grad_accum)
        worst = self.job.worst_micro_batch(knobs)
        fields: dict[str, Any] = {}
        if self.meter is not None:
            self._warm_up(step)
            fields["cap_bytes"] = self.meter.set_cap(self.job.budget_bytes)
            self.meter.reset()
            loss = self._two_updates(step, worst, accumulate)
            fields |= self._read_cuda()
        else:
            loss = self._count_on_cpu(step, worst, accumulate, fields)
        fields["loss"] = loss
        if loss != loss or abs(loss) == float("inf"):
            return self._outcome(knobs, status="nonfinite", phase="loss", detail=f"loss is {loss}", **_finite(fields))
        if fields["process_peak_bytes"] > self.job.budget_bytes:
            over = fields["process_peak_bytes"] - self.job.budget_bytes
            return self._outcome(
                knobs, status="over_budget", phase="backward", detail=f"{over} bytes over the budget", **fields
            )
        fields |= self._timed(step, knobs, timed_steps)
        return self._outcome(knobs, status="ok", **fields)

    def _inputs(self, step: Any, shapes: tuple[Shape, ...], seed: int = 0) -> Any:
        from budgetft.data.collate import synthetic_batch

        return step.prepare(synthetic_batch(shapes, self.job.model, seed=seed, vision=step.knobs.vision))

    def _two_updates(self, step: Any, shapes: tuple[Shape, ...], accumulate: int) -> float:
        inputs = self._inputs(step, shapes)
        loss = None
        for _ in range(2):  # Adam's states exist only after the first
            for _ in range(accumulate):
                loss = step.micro(inputs, total_supervised=inputs.supervised_tokens)
            step.update()
        return float("nan") if loss is None else float(loss)

    def _warm_up(self, step: Any) -> None:
        """Load the kernels with a small batch, so that the context is measured before the cap is set."""
        self._two_updates(step, (small_shape(self.job.model),), 1)

    def _count_on_cpu(self, step: Any, worst: tuple[Shape, ...], accumulate: int, fields: dict[str, Any]) -> float:
        from budgetft.meter.live import LiveBytes

        meter = LiveBytes(cap_bytes=self.job.budget_bytes)
        with meter:
            meter.count(self.peft_model.parameters())
            meter.count(self.peft_model.buffers())
            loss = self._two_updates(step, worst, accumulate)
        peaks = ("allocated_peak_bytes", "reserved_peak_bytes", "process_peak_bytes")
        fields |= dict.fromkeys(peaks, meter.peak_bytes) | {"cap_bytes": self.job.budget_bytes}
        return loss

    def _read_cuda(self) -> dict[str, Any]:
        assert self.meter is not None
        reading = self.meter.read()
        return {
            "allocated_peak_bytes": reading.allocated_peak_bytes,
            "reserved_peak_bytes": reading.reserved_peak_bytes,
            "process_peak_bytes": reading.reserved_peak_bytes + reading.non_torch_bytes,
            "alloc_retries": reading.alloc_retries,
        }

    def _timed(self, step: Any, knobs: Knobs, timed_steps: int) -> dict[str, Any]:
        """Seconds of ordinary micro-batches, evenly chosen among those of different shapes; the rest by their tokens.

        At least ``timed_steps`` readings; more while their standard error is large and there is time.
        """
        ordinary, pixel_step = self.job.typical_micro_batches(knobs), self.job.model.pixel_step
        distinct = list(dict.fromkeys(ordinary))
        count = min(timed_steps, len(distinct))
        chosen = [distinct[i * len(distinct) // count] for i in range(count)]
        repeats = -(-timed_steps // len(chosen))
        timed: list[list[float]] = []
        tokens, started = 0, time.monotonic()
        for number, shapes in enumerate(chosen):
            if number >= 2 and time.monotonic() - started > TIMED_SECONDS:
                break
            timed.append(self._time_micro(step, shapes, knobs, repeats))
            tokens += padded_tokens(shapes, pixel_step)
        while self._too_noisy(timed) and time.monotonic() - started < TIMED_SECONDS:
            for shapes, seconds in zip(chosen, timed, strict=False):
                seconds += self._time_micro(step, shapes, knobs, repeats)
        update = self._clock(step.update)
        effective, shown = self.job.contract.effective_batch, sum(map(len, ordinary))
        step_tokens = sum(padded_tokens(shapes, pixel_step) for shapes in ordinary) * effective / shown
        micros = len(ordinary) * effective / shown
        whole = sum(statistics.median(each) for each in timed) * step_tokens / tokens + update
        return {
            "micro_seconds": (whole - update) / micros,
            "optimizer_seconds": update,
            "step_seconds": whole,
            "samples_per_second": effective / whole,
            "timed_seconds": tuple(second for each in timed for second in each),
            "speed_error": standard_error(timed),
        }

    @staticmethod
    def _too_noisy(timed: Sequence[Sequence[float]]) -> bool:
        error = standard_error(timed)
        return sum(map(len, timed)) < MOST_READINGS and error is not None and error > PRECISE

    def _time_micro(self, step: Any, shapes: tuple[Shape, ...], knobs: Knobs, repeats: int) -> list[float]:
        inputs = self._inputs(step, shapes, seed=1)
        total, seconds, started = inputs.supervised_tokens * knobs.grad_accum, [], time.monotonic()

        def run() -> Any:
            return step.micro(inputs, total_supervised=total)

        if shapes != self.job.worst_micro_batch(knobs):
            run()
        while len(seconds) < repeats and (len(seconds) < 2 or time.monotonic() - started < TIMED_SECONDS):
            seconds.append(self._clock(run))
        return seconds

    def _clock(self, act: Callable[[], Any]) -> float:
        self._wait()  # what is still running of before is none of ``act``'s
        started = time.perf_counter()
        act()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        """Until the GPU has done what it was given."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _outcome(self, knobs: Knobs, **fields: Any) -> Outcome:
        return Outcome(knobs=knobs, evidence=self.job.evidence, budget_bytes=self.job.budget_bytes, **fields)


def standard_error(timed: Sequence[Sequence[float]]) -> float | None:
    """Of the median of each of some lists of seconds, as a share of it; one error for all, from what their readings scatter.

    None where no list has two readings. The scatter of a list is 1.4826 times its median absolute deviation, at least half its
    standard deviation so that two readings of three that are equal do not hide the third; a median's standard error is 1.2533
    times the scatter over the root of its readings (of a normal distribution).
    """
    scatter = []
    for seconds in timed:
        if len(seconds) >= 2:
            middle = statistics.median(seconds)
            deviation = 1.4826 * statistics.median(abs(each - middle) for each in seconds)
            scatter.append(max(deviation, statistics.stdev(seconds) / 2) / middle)
    if not scatter:
        return None
    readings = sum(map(len, timed))
    return 1.2533 * statistics.fmean(scatter) / readings**0.5


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "loss": None}


def _cuda_meter(job: Job) -> Any:
    import torch

    from budgetft.meter.cuda import CudaMeter, restrict_to

    meter = CudaMeter()
    if not job.gpu.is_gpu(torch.cuda.get_device_name(0), meter.total_bytes):
        restrict_to(job.gpu)
    meter.set_cap(job.budget_bytes)
    return meter


def current_stack(device: str) -> Stack:
    """The software and hardware of this process, without loading torch. Raises ``UsageError`` for ``cuda`` without a GPU."""
    gpu, driver = processor(), None
    if device == "cuda":
        found = first_visible(os.environ)
        if found is None:
            raise UsageError("no CUDA GPU is visible here", hint="budgetft doctor says why")
        gpu, driver = found.name, driver_version()
    return Stack.here(gpu, driver)


def serve(lines: Any, answer: Callable[[dict[str, Any]], None]) -> int:
    """Answer probes until the input ends or one fails; the process's exit code."""
    first = json.loads(next(lines))
    job = Job.read(first["job"], source="request")
    phase: Phase = "load"

    def on_phase(now: Phase) -> None:
        nonlocal phase
        phase = now
        answer({"phase": now})

    import torch

    from budgetft.step.determinism import deterministic

    knobs = Knobs.read(first["knobs"], source="request")
    kept = ExitStack()  # for as long as the process lives
    ended = {"evidence": job.evidence, "budget_bytes": job.budget_bytes}
    try:
        answer({"hello": True})
        kept.enter_context(deterministic(knobs.deterministic))
        probing = Probing(job, knobs, on_phase)
        answer({"ready": True})
        for line in lines:
            request = json.loads(line)
            knobs = Knobs.read(request["knobs"], source="request")
            if "job" in request:
                probing.rebind(Job.read(request["job"], source="request"))
            outcome = probing.probe(knobs, timed_steps=request["timed_steps"])
            answer({"outcome": outcome.model_dump(mode="json")})
            if not outcome.fits:
                return 0
    except torch.OutOfMemoryError as error:
        text = str(error).split(". ")[0]
        outcome = Outcome(status="oom", phase=phase, detail=text, knobs=knobs, **ended)
        answer({"outcome": outcome.model_dump(mode="json")})
        return 0
    return 0


def main() -> None:
    """Entry point of the child process."""
    result = os.fdopen(int(sys.argv[1]), "w", buffering=1)

    def answer(message: dict[str, Any]) -> None:
        result.write(json.dumps(message) + "\n")

    sys.exit(serve(iter(sys.stdin), answer))


if __name__ == "__main__":
    main()
