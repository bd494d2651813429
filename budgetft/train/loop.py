"""Run a plan to the end: the same step that was traced and probed, under the same cap, with the data of the plan."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from budgetft.data.examples import read_dataset
from budgetft.data.visuals import FeaturesOf
from budgetft.errors import BudgetftError, UsageError
from budgetft.outcome import Outcome, Phase
from budgetft.plan import Plan, write_plan, write_text_atomically
from budgetft.step.step import Step
from budgetft.train import rng
from budgetft.train.checkpoint import newest_checkpoint, restore_checkpoint, write_adapter, write_checkpoint
from budgetft.train.features import planned_features
from budgetft.train.folder import RunFolder, write_folder
from budgetft.train.guard import StopSignal, interrupted, out_of_memory
from budgetft.train.heldout import HeldOut, held_out_job
from budgetft.train.job import Job, plan_fingerprint, settle
from budgetft.train.loader import Micro, ids_of, make_micro, prefetched, step_micro_batches
from budgetft.train.log import Log, Unwritten
from budgetft.train.memory import Device, Memory, open_memory
from budgetft.train.neighbours import Neighbours
from budgetft.train.numerics import FiniteWatch, Precision, culprit, probe_precision
from budgetft.train.opening import connect, load_step, start_trackers, tell_peak
from budgetft.train.preflight import checked_shapes, fly, heaviest_batches
from budgetft.train.ranks import Ranks, claimed_by_first, launched_ranks
from budgetft.train.record import Record, Summary, record_step, summarize
from budgetft.train.recover import Done, Recovery, Refused, StillOutOfMemory, attempt, refusal
from budgetft.train.schedule import learning_rate
from budgetft.train.track import unharmed
from budgetft.units import format_gib
from budgetft.value import read_json
from budgetft.workload import Shape

T = TypeVar("T")


def run_training(
    plan: Plan,
    *,
    out: Path,
    data: Path | None = None,
    weights: str | None = None,
    steps: int | None = None,
    resume: bool = False,
    save_every: int = 50,
    device: Device = "auto",
    cache: Path | None = None,
    on_progress: Callable[[Record], None] = lambda record: None,
    on_note: Callable[[str], None] = lambda note: None,
    on_refused: Callable[[Outcome], None] = lambda outcome: None,
    heldout: Path | None = None,
    heldout_every: int = 50,
    trackers: Sequence[Any] = (),
) -> Summary:
    """Train as ``plan`` says, into the run folder ``out``; returns what is written to ``out/summary.json``.

    ``data`` and ``weights`` (a folder, a hub id or ``random``) default to the plan's. ``steps`` defaults to the
    contract's epochs, and the learning-rate schedule ends there. Examples come in a seeded order; the last incomplete
    effective batch of an epoch is filled up from the next one, so every step has the contract's effective batch.
    ``save_every``: steps between checkpoints; the last step gets one too. ``resume`` goes on from the newest whole
    checkpoint, with the same weights and steps when they are left out. ``cache`` is the folder of the features when the plan
    has cached vision, the plan's when left out; what it lacks is computed first. ``trackers`` are accelerate's: names or
    objects; TensorBoard's event files are written where it is installed.

    ``heldout`` is a dataset whose loss is computed every ``heldout_every`` steps and after the last.

    A step that runs out of memory is done again in smaller micro-batches, from the same examples and random numbers;
    ``on_refused`` gets the planned setting's Outcome the first time, unless others had the card's memory.

    Raises ``UsageError`` for a request that does not fit the plan or the folder, and ``BudgetftError`` when the run
    ends early: out of memory with one example at a time, steps that are not finite, or a signal (then its last finished
    step is saved).
    """
    if save_every < 1:
        raise UsageError(f"--save-every must be at least 1, not {save_every}")
    ranks = launched_ranks(plan.knobs.grad_accum)
    if not ranks.first:
        on_progress, on_note, on_refused = (lambda told: None,) * 3
    with claimed_by_first(out, ranks, resume=resume) as folder:
        if resume:
            known = folder.read_identity()
            weights, steps = weights or known.weights, steps or known.steps
        job = settle(plan, data=data, weights=weights, steps=steps)
        if resume:
            folder.check_identity(job.identity)
            if folder.summary.is_file():
                on_note(f"the run in {out} is finished; nothing to do")
                return Summary.read(read_json(folder.summary), source=str(folder.summary))
        held_out = None if heldout is None else held_out_job(read_dataset(heldout), job, on_note)
        features_of, heldout_features = (
            None if one is None else planned_features(one, cache, device=device, on_note=on_note) for one in (job, held_out)
        )
        # First: it must see the card before this process does.
        memory = open_memory(plan.gpu, device, plan.knobs.allocator, planned=plan.estimate)
        accelerator, connection_bytes = connect(memory, ranks, trackers, out)
        processor, step = load_step(job, memory, ranks, on_note)
        training = Training(
            job=job, folder=folder, memory=memory, processor=processor, step=step, save_every=save_every, ranks=ranks,
            on_note=on_note, on_progress=on_progress, on_refused=on_refused, features_of=features_of,
            accelerator=accelerator, predicted_peak_bytes=tell_peak(step, plan, ranks, connection_bytes, on_note),
        )  # fmt: skip
        if held_out is not None:
            training.heldout = HeldOut(
                job=held_out, processor=processor, step=step, memory=memory, every=heldout_every, on_note=on_note,
                features_of=heldout_features, ranks=ranks,
            )  # fmt: skip
        try:
            return training.run(resume)
        finally:
            with unharmed(on_note):
                training.accelerator.end_training()


class _Stopped(Exception):
    """A signal was seen between two micro-batches."""


@dataclass(kw_only=True)
class Training:
    """A run in progress."""

    job: Job
    folder: RunFolder
    memory: Memory
    processor: Any
    step: Step
    on_note: Callable[[str], None]
    on_progress: Callable[[Record], None]
    save_every: int
    on_refused: Callable[[Outcome], None] = lambda outcome: None
    heldout: HeldOut | None = None
    heldout_peak_bytes: int | None = None
    """Of the process, in the heaviest held-out batch."""
    accelerator: Any = None
    features_of: FeaturesOf | None = None
    stop: StopSignal = field(default_factory=StopSignal)
    watch: FiniteWatch = field(default_factory=FiniteWatch)
    peak_bytes: int = -1
    """Of allocated bytes so far."""
    preflight_peak_bytes: int = 0  # of the process; of several, the highest
    own_peak_bytes: int = 0  # of this process, pre-flight included
    precision: Precision = field(default_factory=Precision)
    """Which blocks run in fp32, and why."""
    told_refusal: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    predicted_peak_bytes: int | None = None  # predicted
    saved: int = 0  # the step of the newest checkpoint
    shapes: list[Shape] = field(default_factory=list)
    """Of every example, in order."""

    def __post_init__(self) -> None:
        self.neighbours = Neighbours(self.memory.neighbours, self.on_note)
        self.recovery = Recovery(
            step=self.step, memory=self.memory, run_micro=self._micro, make=self._make, on_note=self.on_note, ranks=self.ranks
        )

    def run(self, resume: bool) -> Summary:
        """Pre-flight, steps, adapter, summary."""
        rng.seed_all(self.job.plan.contract.seed)
        self.shapes = checked_shapes(self.job, self.processor)
        heaviest = [self._make(part) for part in heaviest_batches(self.job, self.shapes)]
        self._probe_precision(heaviest)  # on the base as it came, so that a resumed run finds the same
        first = self._restore() if resume else 0
        self.neighbours.look("before the first step")
        self._preflight(heaviest)
        del heaviest
        self._preflight_heldout()
        if not resume and self.ranks.first:
            write_plan(self.job.plan, self.folder.plan)
            write_text_atomically(self.folder.identity, self.job.identity.model_dump_json(indent=2) + "\n")
        if self.precision.blocks and self.ranks.first:
            write_text_atomically(self.folder.precision, self.precision.model_dump_json(indent=2) + "\n")
        start_trackers(self.accelerator, self.job)
        log = Log(self.folder.log, finished_steps=first) if self.ranks.first else Unwritten()
        try:
            self._steps(first, log)
        finally:
            log.close()
        return self._finish(log)

    def _restore(self) -> int:
        """Finished steps of the newest whole checkpoint, loaded; 0 when the run had not come to one."""
        found = newest_checkpoint(self.folder.checkpoints, self.on_note)
        if found is None:
            return 0
        path, state = found
        restore_checkpoint(path, state, self.step)
        self.memory.count(
            tensor
            for states in self.step.optimizer.state.values()
            for tensor in states.values()
            if isinstance(tensor, torch.Tensor)
        )
        self.saved = state.step
        self.on_note(f"going on after step {state.step} of {self.job.steps}")
        return state.step

    def _make(self, indices: Sequence[int]) -> Micro:
        return make_micro(indices, self.job, self.processor, self.step, self.features_of)

    def _together(self, run: Callable[[], T], where: str, ids: Sequence[str], hint: str, *, blamed: bool = False) -> T:
        """``run()``; where memory runs out in a process it ends in all of them, before any waits for it."""
        done = attempt(run, ids, self.step, self.memory, self.ranks)
        if isinstance(done, Refused):
            if blamed:
                self._refused(done.phase, f"in {where}", ids)
            raise self._out_of_memory(done.ends(), where, hint=hint)
        return done

    def _probe_precision(self, heaviest: list[Micro]) -> None:
        self.precision = self._together(
            lambda: probe_precision(self.step, self.memory, heaviest, self.on_note),
            "the precision probe", ids_of(heaviest),
            "plan again with a larger budget: blocks that overflow fp16 take twice the memory in fp32",
        )  # fmt: skip

    def _preflight(self, micros: list[Micro]) -> None:
        self.on_note(f"pre-flight: the heaviest of {len(self.job.examples)} examples first")
        held = self._together(
            lambda: fly(self.step, self.memory, micros, self._micro),
            "the pre-flight", ids_of(micros), "plan again: budgetft plan --data ... --probe always", blamed=True,
        )  # fmt: skip
        self.own_peak_bytes = held.process_peak_bytes
        self.preflight_peak_bytes = int(self.ranks.highest(held.process_peak_bytes, self.step.device))
        self.on_note(
            f"pre-flight: peak {format_gib(self.preflight_peak_bytes)} of {format_gib(self.job.plan.gpu.budget_bytes)}"
        )

    def _preflight_heldout(self) -> None:
        if self.heldout is None:
            return
        held = self._together(self.heldout.fly, "the pre-flight of the held-out data", (), "evaluate other data, or none")
        self.heldout_peak_bytes = int(self.ranks.highest(held.process_peak_bytes, self.step.device))
        self.on_note(f"pre-flight: evaluation peaks at {format_gib(self.heldout_peak_bytes)}")

    def _micro(self, micro: Micro, total_supervised: float) -> torch.Tensor:
        """One micro-batch moved to the device and through the step; its tensors die before the next one's are made."""
        inputs = micro.inputs.to(self.step.device)
        return self.step.micro(inputs, total_supervised=total_supervised)

    def _steps(self, first: int, log: Log | Unwritten) -> None:
        """Steps ``first`` + 1 to the last."""
        job, finished = self.job, first
        numbers = range(first + 1, job.steps + 1)
        wanted = (self.ranks.share(step_micro_batches(number, job, self.shapes)) for number in numbers)
        with self.stop, ExitStack() as stack:
            batches = prefetched(wanted, self._make)
            stack.callback(batches.close)  # pyright: ignore[reportAttributeAccessIssue]
            try:
                for number in numbers:
                    record = self._one_step(number, partial(next, batches))
                    finished = number
                    log.append(record)
                    with unharmed(self.on_note):
                        self.accelerator.log(record.numbers(), step=number)
                    self.on_progress(record)
                    self.watch.see(step=number, finite=record.finite, scale=record.scale, where=record.nonfinite)
                    if number % self.save_every == 0 or number == job.steps:
                        self._save(finished, log)
                    stopped = self.ranks.highest(self.stop.received or 0, self.step.device)
                    if stopped and number < job.steps:
                        raise _Stopped
            except _Stopped:
                self._save(finished, log)
                raise interrupted(finished, job.steps, self.stop.received or 0, hint=self._how_to_resume()) from None

    def _one_step(self, number: int, take_batch: Callable[[], list[Micro]]) -> Record:
        """One optimizer step; on ``_Stopped`` and on any error the adapter is that of the step before."""
        contract = self.job.plan.contract
        began = time.perf_counter()
        micros = take_batch()
        data_seconds = time.perf_counter() - began
        rate = learning_rate(number, self.job.steps, contract)
        try:
            done = self.recovery.run(number, micros, begin=self._begin, learning_rate=rate)
        except StillOutOfMemory as error:
            hint = f"plan again with a larger budget, or a contract with fewer pixels; {self._how_to_resume()}"
            raise self._out_of_memory(error, f"step {number}, one example at a time", hint=hint) from None
        self.neighbours.look(f"since step {number}")
        blamed = next((fallback for fallback in done.fallbacks if not fallback.crowded), None)
        if blamed is not None:
            self._refused(blamed.phase, f"in step {number} of a run", blamed.examples)
        seconds = time.perf_counter() - began
        heldout_loss = self._heldout_loss(number)
        record = self._record(number, done, rate, seconds, data_seconds, ids_of(micros))
        return record.replace(heldout_loss=heldout_loss, nonfinite=self._first_nonfinite(record, done, micros))

    def _first_nonfinite(self, record: Record, done: Done, micros: list[Micro]) -> str | None:
        """Where a step that was not finite first was so."""
        if record.loss is None:
            return culprit(self.step, self.memory, micros, int(self.ranks.highest(len(micros), self.step.device)))
        return None if record.finite else f"the gradient of {done.update.culprit}"

    def _heldout_loss(self, number: int) -> float | None:
        """After step ``number``, where it is due; None when it is not finite."""
        if self.heldout is None or not self.heldout.due(number):
            return None
        try:
            loss = self.heldout.loss()
        except StillOutOfMemory as error:
            where, hint = f"evaluation after step {number}, one example at a time", "evaluate other data or none"
            raise self._out_of_memory(error, where, hint=f"{hint}; {self._how_to_resume()}") from None
        self.on_note(f"held-out loss after step {number}: {loss:.4f}")
        return loss if math.isfinite(loss) else None

    def _begin(self) -> None:
        """Before every micro-batch. One of several processes may not leave the others waiting for its gradients."""
        if self.ranks.alone and self.stop.received is not None:
            raise _Stopped

    def _record(self, number: int, done: Done, rate: float, seconds: float, data_seconds: float, ids: list[str]) -> Record:
        held = self.memory.read()
        self.own_peak_bytes = max(self.own_peak_bytes, held.process_peak_bytes)
        new_peak = held.allocated_peak_bytes > self.peak_bytes
        self.peak_bytes = max(self.peak_bytes, held.allocated_peak_bytes)
        batch = self.job.plan.contract.effective_batch
        return record_step(
            done.loss,
            done.update,
            held,
            step=number,
            steps=self.job.steps,
            epoch=number * batch / len(self.job.examples),
            learning_rate=rate,
            seconds=seconds,
            data_seconds=data_seconds,
            samples_per_second=batch / seconds,
            process_peak_bytes=int(self.ranks.highest(held.process_peak_bytes, self.step.device)),
            peak_examples=tuple(ids) if new_peak else None,
            fallbacks=done.fallbacks,
        )

    def _save(self, finished: int, log: Log | Unwritten) -> None:
        if finished <= self.saved or not self.ranks.first:
            return
        log.sync()
        write_checkpoint(
            self.folder.checkpoints,
            self.step,
            finished_steps=finished,
            plan_fingerprint=plan_fingerprint(self.job.plan),
        )
        self.saved = finished

    def _finish(self, log: Log | Unwritten) -> Summary:
        """The adapter, then the summary: where there is a summary the run is finished."""
        if self.ranks.first:
            write_folder(self.folder.adapter, partial(write_adapter, self.step))
        held = self.memory.read()
        summary = summarize(
            log.records,
            self.job.plan,
            examples=len(self.job.examples),
            preflight_peak_bytes=self.preflight_peak_bytes,
            cap_bytes=self.memory.cap_bytes,
            ooms=held.ooms,
            alloc_retries=held.alloc_retries,
            heldout_peak_bytes=self.heldout_peak_bytes,
            neighbours=self.neighbours.seen,
            islands=self.precision.islands,
            evidence=self.memory.evidence,
            note=self.memory.note,
            stack=self.memory.stack,
            processes_peak_bytes=tuple(map(int, self.ranks.each(self.own_peak_bytes, self.step.device))),
            predicted_peak_bytes=self.predicted_peak_bytes,
        )
        if self.ranks.first:
            write_text_atomically(self.folder.summary, summary.model_dump_json(indent=2) + "\n")
        return summary

    def _refused(self, phase: Phase, where: str, ids: Sequence[str]) -> None:
        """Tell once that the planned setting ran out of memory."""
        if not self.told_refusal:
            self.told_refusal = True
            self.on_refused(refusal(self.job.plan, self.memory, phase, f"{where}, examples {', '.join(ids)}"))

    def _out_of_memory(self, error: StillOutOfMemory, where: str, *, hint: str) -> BudgetftError:
        return out_of_memory(
            error,
            phase=error.phase,
            where=where,
            ids=error.ids,
            cap_bytes=self.memory.cap_bytes,
            budget_bytes=self.job.plan.gpu.budget_bytes,
            hint=hint,
        )

    def _how_to_resume(self) -> str:
        data = f" --data {self.job.examples.folder}" if str(self.job.examples.folder) != self.job.plan.data else ""
        after = f"goes on after step {self.saved}" if self.saved else "starts over from step 1: no checkpoint was due yet"
        return f"budgetft train --plan {self.folder.plan} --out {self.folder.path}{data} --resume {after}"
