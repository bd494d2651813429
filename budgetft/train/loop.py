"""Run a plan to the end: the same step that was traced and probed, under the same cap, with the data of the plan."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, TypeVar

import torch

from budgetft.data.given import Given
from budgetft.errors import BudgetftError
from budgetft.outcome import Outcome, Phase
from budgetft.plan import write_plan, write_text_atomically
from budgetft.step.step import Step
from budgetft.train import rng
from budgetft.train.agree import check_same
from budgetft.train.best import Selection, write_final
from budgetft.train.features import PlannedFeatures
from budgetft.train.folder import Identity, RunFolder, write_folder
from budgetft.train.guard import StopSignal, interrupted
from budgetft.train.heldout import HeldOut
from budgetft.train.job import Job
from budgetft.train.loader import Micro, ids_of, make_micro, prefetched, step_micro_batches
from budgetft.train.log import Log, Unwritten
from budgetft.train.memory import Memory
from budgetft.train.numerics import FiniteWatch, Precision, culprit, probe_precision
from budgetft.train.opening import check_given, start_trackers
from budgetft.train.other_processes import OtherProcesses
from budgetft.train.preflight import check_unverified, checked_shapes, fly, heaviest_batches
from budgetft.train.provenance import provenance_of
from budgetft.train.ranks import Ranks
from budgetft.train.record import Fallback, Record, Summary, Unfinished, record_step, summarize
from budgetft.train.recover import Done, Recovery, Refused, StillOutOfMemory, attempt, describe, out_of_memory_in, refusal
from budgetft.train.saving import Checkpoints, Pace
from budgetft.train.schedule import learning_rate
from budgetft.train.track import unharmed
from budgetft.units import format_gib
from budgetft.workload import Shape

T = TypeVar("T")


class _Stopped(Exception):
    """A signal was seen between two micro-batches."""


@dataclass(kw_only=True)
class Training:
    """A run in progress."""

    job: Job
    identity: Identity
    folder: RunFolder
    memory: Memory
    processor: Any
    step: Step
    on_note: Callable[[str], None]
    on_progress: Callable[[Record], None]
    pace: Pace
    on_refused: Callable[[Outcome], None] = lambda outcome: None
    heldout: HeldOut | None = None
    heldout_peak_bytes: int | None = None
    """Of the process, in the heaviest held-out batch."""
    accelerator: Any = None
    features_of: PlannedFeatures | None = None
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
    finished: int = 0
    """The last step that is in the log."""
    updated: int = 0
    """The last step that the parameters have seen."""
    fallbacks: list[Fallback] = field(default_factory=list)
    """Of the step that is not in the log yet."""
    shapes: list[Shape] = field(default_factory=list)
    """Of every example, in order."""

    def __post_init__(self) -> None:
        self.other_processes = OtherProcesses(self.memory.other_processes, self.on_note)
        self.recovery = Recovery(
            step=self.step, memory=self.memory, run_micro=self._micro, make=self._make, on_fallback=self.fell_back,
            ranks=self.ranks, planned=self._planned, on_note=self.on_note,
        )  # fmt: skip
        self.checkpoints = Checkpoints(
            self.folder.checkpoints, self.step, self.pace,
            plan_fingerprint=self.identity.plan_fingerprint, ranks=self.ranks,
        )  # fmt: skip
        self.selection = Selection(
            identity=self.identity, folder=self.folder, checkpoints=self.checkpoints, steps=self.job.steps, ranks=self.ranks,
            device=self.step.device, on_note=self.on_note, due=lambda step: self.heldout is not None and self.heldout.due(step),
        )  # fmt: skip

    def run(self, resume: bool) -> Summary:
        """Pre-flight, steps, adapter, summary."""
        rng.seed_all(self.job.plan.contract.seed)
        self.shapes = checked_shapes(self.job, self.processor)
        if resume:
            check_given(self.folder.path, self.given)
        heaviest = [self._make(part) for part in heaviest_batches(self.job, self.shapes)]
        self._probe_precision(heaviest)  # on the base as it came, so that a resumed run finds the same
        first = self.checkpoints.restore(self.memory, self.on_note) if resume else 0
        if first:
            self.on_note(f"going on after step {first} of {self.job.steps}")
        if resume:
            self.identity = self.selection.identity = self.identity.compared_since(first, self.folder.read_identity())
        self.other_processes.look("before the first step")
        self._preflight(heaviest)
        check_unverified(self.step, heaviest[0], self.on_note)
        del heaviest
        self._preflight_heldout()
        check_same(self.step, self.ranks)
        if not resume and self.ranks.first:
            write_plan(self.job.plan, self.folder.plan)
        if self.ranks.first:
            self.given.write_to(self.folder.path)
            self.folder.write_identity(self.identity)
        if self.precision.blocks and self.ranks.first:
            write_text_atomically(self.folder.precision, self.precision.model_dump_json(indent=2) + "\n")
        start_trackers(self.accelerator, self.job)
        log = Log(self.folder.log, finished_steps=first) if self.ranks.first else Unwritten()
        try:
            self._steps(first, log)
        finally:
            log.close()
        return self._finish(log)

    @cached_property
    def given(self) -> Given:
        """What decides the model's input."""
        return Given.of(self.job.examples, self.processor, self.job.model, self.job.plan.contract)

    def _make(self, indices: Sequence[int]) -> Micro:
        return make_micro(indices, self.job, self.processor, self.step, self.features_of)

    def _planned(self, number: int) -> list[tuple[int, ...]]:
        """This process's micro-batches of step ``number``, as indices."""
        return self.ranks.share(step_micro_batches(number, self.job, self.shapes))

    def _together(self, run: Callable[[], T], where: str, ids: Sequence[str], hint: str, *, blamed: bool = False) -> T:
        """``run()``; where memory runs out in a process it ends in all of them, before any waits for it."""
        done = attempt(run, ids, self.step, self.memory, self.ranks)
        if isinstance(done, Refused):
            if blamed:
                self._refused(done.phase, f"in {where}", ids)
            raise out_of_memory_in(where, done.ends(), self.job.plan, self.memory, hint=hint)
        return done

    def _probe_precision(self, heaviest: list[Micro]) -> None:
        self.precision = self._together(
            lambda: probe_precision(self.step, self.memory, heaviest, self.on_note),
            "the precision probe", ids_of(heaviest),
            "plan again for these weights, budgetft plan --model WEIGHTS: it counts blocks that overflow fp16 in fp32",
        )  # fmt: skip

    def _preflight(self, micros: list[Micro]) -> None:
        self.on_note(f"pre-flight: the heaviest of {len(self.job.examples)} examples first")
        held = self._together(
            lambda: fly(self.step, self.memory, micros, self._micro),
            "the pre-flight", ids_of(micros), "plan again: budgetft plan --data ... --trials always", blamed=True,
        )  # fmt: skip
        self.own_peak_bytes = held.process_peak_bytes
        self.preflight_peak_bytes = int(self.ranks.highest(held.process_peak_bytes, self.step.device))
        self.on_note(
            f"pre-flight: peak {format_gib(self.preflight_peak_bytes)} of {format_gib(self.job.plan.gpu.budget_bytes)}"
        )

    def _preflight_heldout(self) -> None:
        if self.heldout is None:
            return
        hint = "evaluate other data, or none; --sample-captions 0 leaves captions out"
        held = self._together(self.heldout.fly, "the pre-flight of the held-out data", (), hint)
        self.heldout_peak_bytes = int(self.ranks.highest(held.process_peak_bytes, self.step.device))
        self.on_note(f"pre-flight: evaluation peaks at {format_gib(self.heldout_peak_bytes)}")

    def _micro(self, micro: Micro, total_supervised: float) -> torch.Tensor:
        """One micro-batch moved to the device and through the step; its tensors die before the next one's are made."""
        inputs = self.step.take(micro.inputs)
        return self.step.micro(inputs, total_supervised=total_supervised)

    def _steps(self, first: int, log: Log | Unwritten) -> None:
        """Steps ``first`` + 1 to the last."""
        numbers = range(first + 1, self.job.steps + 1)
        wanted = (self.recovery.sizes.cut(self._planned(number)) for number in numbers)
        self.finished = self.updated = first
        self.fallbacks += log.unfinished
        if self.heldout is not None and self.heldout.samples is not None:
            self.heldout.samples.forget_after(first)
        if self.selection.begin(first, log.records):
            return
        batches = prefetched(wanted, self._make)
        with self.stop, closing(batches):  # pyright: ignore[reportArgumentType]
            for number in numbers:
                with self._ending(log):
                    self._one_step(number, partial(next, batches), log)
                    stopped = self.ranks.highest(self.stop.received or 0, self.step.device)
                    if stopped and number < self.job.steps:
                        raise _Stopped
                self.checkpoints.save_if_due(number, self.job.steps, log)
                if self.selection.after(number, log):
                    return

    @contextmanager
    def _ending(self, log: Log | Unwritten) -> Iterator[None]:
        """What ends the run in this block, a signal or an error, leaves the last finished step saved, and tells how to go on.

        Nobody is waited for: of several processes one may be alone in its error.
        """
        try:
            yield
        except _Stopped:
            self._keep(log)
            hint = self._how_to_resume()
            raise interrupted(self.finished, self.job.steps, self.stop.received or 0, hint=hint) from None
        except BudgetftError as error:
            try:
                self._keep(log)
            except BudgetftError as problem:
                self.on_note(f"warning: step {self.finished} is not saved: {problem.message}")
            error.hint = "; ".join(part for part in (error.hint, self._how_to_resume()) if part)
            raise

    def _keep(self, log: Log | Unwritten) -> None:
        """Save the last finished step, and what the one after it met."""
        if self.updated != self.finished:  # the log refused the step that the parameters have seen already
            return
        if self.fallbacks:
            log.end(Unfinished(unfinished_step=self.finished + 1, fallbacks=tuple(self.fallbacks)))
        self.checkpoints.save(self.finished, log)

    def _one_step(self, number: int, take_batch: Callable[[], list[Micro]], log: Log | Unwritten) -> None:
        """One optimizer step, into the log; on ``_Stopped`` and on any error in it the adapter is that of the step before."""
        began = time.perf_counter()
        micros = take_batch()
        data_seconds = time.perf_counter() - began
        rate = learning_rate(number, self.job.steps, self.job.plan.contract)
        try:
            done = self.recovery.run(number, micros, begin=self._begin, learning_rate=rate)
        except StillOutOfMemory as error:
            hint = "plan again with a larger budget, or a contract with fewer pixels"
            where = f"step {number}, one example at a time"
            raise out_of_memory_in(where, error, self.job.plan, self.memory, hint=hint) from None
        self.updated = number
        self.other_processes.look(f"since step {number}")
        seconds = time.perf_counter() - began
        heldout_loss, problem = (None, None) if self.heldout is None else self.heldout.after(number)
        record = self._record(number, done, rate, seconds, data_seconds, ids_of(micros))
        record = record.replace(heldout_loss=heldout_loss, nonfinite=self._first_nonfinite(record, done, micros))
        log.append(record)
        self.finished, self.fallbacks = number, []
        with unharmed(self.on_note):
            self.accelerator.log(record.numbers(), step=number)
        self.on_progress(record)
        if problem is not None:
            raise problem
        self.watch.see(step=number, finite=record.finite, scale=record.scale, where=record.nonfinite)

    def _first_nonfinite(self, record: Record, done: Done, micros: list[Micro]) -> str | None:
        """Where a step that was not finite first was so."""
        if record.loss is None:
            return culprit(self.step, self.memory, micros, int(self.ranks.highest(len(micros), self.step.device)))
        return None if record.finite else f"the gradient of {done.update.culprit}"

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
            done.loss, done.update, held, step=number, steps=self.job.steps, epoch=number * batch / len(self.job.examples),
            learning_rate=rate, seconds=seconds, data_seconds=data_seconds, samples_per_second=batch / seconds,
            process_peak_bytes=int(self.ranks.highest(held.process_peak_bytes, self.step.device)),
            peak_examples=tuple(ids) if new_peak else None, fallbacks=tuple(self.fallbacks), began_with=done.began_with,
        )  # fmt: skip

    def _finish(self, log: Log | Unwritten) -> Summary:
        """The adapter, then the summary: where there is a summary the run is finished."""
        best = self.selection.adapter(log.records)
        held = self.memory.read()
        summary = summarize(
            log.records, self.job.plan, examples=len(self.job.examples), preflight_peak_bytes=self.preflight_peak_bytes,
            cap_bytes=self.memory.cap_bytes, ooms=held.ooms, alloc_retries=held.alloc_retries,
            heldout_peak_bytes=self.heldout_peak_bytes, other_processes=self.other_processes.seen,
            fp32_blocks=(*self.precision.fp32_blocks, *(self.features_of.fp32_blocks if self.features_of else ())),
            evidence=self.memory.evidence, note=self.memory.note, stack=self.memory.stack,
            processes_peak_bytes=tuple(map(int, self.ranks.each(self.own_peak_bytes, self.step.device))),
            predicted_peak_bytes=self.predicted_peak_bytes,
            **self.selection.facts(best, log.records),
        )  # fmt: skip
        if self.ranks.first:
            provenance = provenance_of(self.job, self.identity, summary)
            write_folder(self.folder.adapter, partial(write_final, self.step, self.given, provenance, best))
            write_text_atomically(self.folder.summary, summary.model_dump_json(indent=2) + "\n")
        return summary

    def fell_back(self, fallback: Fallback) -> None:
        """Memory ran out: told and kept at once, whatever becomes of the step."""
        self.fallbacks.append(fallback)
        if fallback.reduced_to is not None:
            self.on_note(f"warning: {describe(fallback)}")
        if fallback.during == "training" and not fallback.crowded:
            self._refused(fallback.phase, f"in step {fallback.step} of a run", fallback.examples)

    def _refused(self, phase: Phase, where: str, ids: Sequence[str]) -> None:
        """Tell once that the planned setting ran out of memory."""
        if not self.told_refusal:
            self.told_refusal = True
            self.on_refused(refusal(self.job.plan, self.memory, phase, f"{where}, examples {', '.join(ids)}"))

    def _how_to_resume(self) -> str:
        data = str(self.job.examples.folder)
        return self.folder.how_to_resume(self.checkpoints.saved, None if data == self.job.plan.data else data)
