"""An optimizer step that survives running out of memory: the same examples again, in smaller micro-batches.

Nothing of what is learned changes: gradients are those of the sum over the step's examples however it is split, the
examples stay, and the generators start from the step's own seed. Of several processes all do the step again when one ran
out of memory: they agree on it between passes and update. A batch that is too heavy leaves nothing to the next step. Where
other processes hold the GPU's memory, the next steps begin with what had room, until the planned size has room again.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from budgetft.data.bucket import split
from budgetft.errors import BudgetftError
from budgetft.outcome import Outcome, Phase
from budgetft.plan import Plan
from budgetft.step.step import Step, Update
from budgetft.train import rng
from budgetft.train.guard import out_of_memory
from budgetft.train.loader import Micro, ids_of
from budgetft.train.memory import Memory
from budgetft.train.ranks import Ranks
from budgetft.train.readings import OtherProcess
from budgetft.train.record import Fallback

T = TypeVar("T")
FIRST_WAIT = 1
"""Steps from the failure of the planned size to its next try."""
LONGEST_WAIT = 64
"""The same, at most. A try then costs less than 2 % of the steps, and the batches of other steps may be lighter."""


class StillOutOfMemory(Exception):
    """Memory ran out with one example in a micro-batch; ``ids`` is that one."""

    def __init__(self, detail: str, *, phase: Phase, ids: Sequence[str]) -> None:
        super().__init__(detail)
        self.phase: Phase = phase
        self.ids = tuple(ids)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Where a try ran out of memory. It holds no exception: a traceback would keep the tensors of the try alive."""

    process: int
    ids: tuple[str, ...]
    phase: Phase
    detail: str
    cap_bytes: int
    crowded: bool
    other_processes: tuple[OtherProcess, ...]

    @classmethod
    def of(cls, error: torch.OutOfMemoryError, ids: Sequence[str], step: Step, memory: Memory, ranks: Ranks) -> "Refused":
        return cls(
            process=ranks.rank,
            ids=tuple(ids),
            phase=step.phase,
            detail=(str(error).splitlines() or [type(error).__name__])[0][:300],
            cap_bytes=memory.cap_bytes,
            crowded=memory.crowded(),
            other_processes=memory.other_processes(),
        )

    def ends(self) -> StillOutOfMemory:
        """The error for when nothing is left to halve."""
        return StillOutOfMemory(self.detail, phase=self.phase, ids=self.ids)

    def fallback(self, step: int, reduced_to: int | None, **facts: Any) -> Fallback:
        """What is kept of it; ``facts`` are fields that differ from what is said here."""
        said: dict[str, Any] = {
            "step": step,
            "process": self.process,
            "phase": self.phase,
            "micro_batch": len(self.ids),
            "reduced_to": reduced_to,
            "examples": self.ids,
            "detail": self.detail,
            "cap_bytes": self.cap_bytes,
            "crowded": self.crowded,
            "other_processes": self.other_processes,
        }
        return Fallback(**{**said, **facts})


def attempt(run: Callable[[], T], ids: Sequence[str], step: Step, memory: Memory, ranks: Ranks) -> T | Refused:
    """``run()``, or where the first process that did ran out of memory in it: the same in all, before any waits for it."""
    try:
        done = run()
    except torch.OutOfMemoryError as error:
        done = Refused.of(error, ids, step, memory, ranks)
    return ranks.first_of(done if isinstance(done, Refused) else None, step.device) or done


@dataclass(kw_only=True)
class Sizes:
    """What steps begin with: as planned, or with smaller micro-batches while other processes hold the GPU's memory.

    The planned size is tried again as soon as memory has become free since it failed; after each failure at the earliest
    after twice as many steps as after the one before. Every ``LONGEST_WAIT`` steps it is tried in any case. All processes
    of a run have the same state, but for ``room_bytes``.
    """

    most: int | None = None
    """Most examples in a micro-batch; None: as planned."""
    failed_in: int | None = None
    """The last step in which others left no room; None where there was none in this run."""
    wait: int = FIRST_WAIT
    """Steps from then to the next try of the planned size."""
    room_bytes: int | None = None
    """With so much this process ran out of memory; None where it did not, since the planned size held last."""

    def cut(self, parts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """The micro-batches ``parts``, as indices, in pieces of the size that is known to have room."""
        return list(parts) if self.most is None else [piece for part in parts for piece in split(part, self.most)]

    def begin(self, number: int, memory: Memory, ranks: Ranks) -> bool:
        """Whether step ``number`` begins with the reduced size: the same in all processes, and all must ask."""
        if self.most is None or self.failed_in is None:
            return False
        waited = number - self.failed_in
        if waited < self.wait:
            return True
        none_came_free = self.room_bytes is not None and memory.crowded() and memory.room_bytes() <= self.room_bytes
        return waited < LONGEST_WAIT and bool(ranks.highest(none_came_free, memory.device))

    def lacked(self, room_bytes: int) -> None:
        """This process ran out of memory with ``room_bytes``, because others hold the rest."""
        self.room_bytes = max(self.room_bytes or 0, room_bytes)

    def smaller(self, largest: int, *, crowded: bool) -> int:
        """What to try after micro-batches of up to ``largest`` failed: half, or what is known to have room beside others."""
        return min(largest // 2, self.most) if crowded and self.most is not None else largest // 2

    def reduce(self, number: int, most: int) -> None:
        """In step ``number`` others left room for no more than ``most``."""
        lately = self.failed_in is not None and number - self.failed_in <= LONGEST_WAIT
        self.wait = min(2 * self.wait, LONGEST_WAIT) if lately else FIRST_WAIT
        self.failed_in, self.most = number, most

    def restore(self) -> None:
        """The planned size held again."""
        self.most = self.room_bytes = None


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished optimizer step."""

    loss: float
    update: Update
    began_with: int | None
    """Most examples in a micro-batch of the first try, where it was reduced; None where it was as planned."""


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How a run does its steps again."""

    step: Step
    memory: Memory
    run_micro: Callable[[Micro, float], torch.Tensor]
    make: Callable[[Sequence[int]], Micro]
    on_fallback: Callable[[Fallback], None]
    """Gets each try that failed, at once; after one that is reduced to nothing the run ends."""
    ranks: Ranks
    planned: Callable[[int], list[tuple[int, ...]]]
    """This process's micro-batches of a step, as indices."""
    on_note: Callable[[str], None]
    sizes: Sizes = field(default_factory=Sizes)

    def run(self, number: int, micros: list[Micro], *, begin: Callable[[], None], learning_rate: float) -> Done:
        """Step ``number`` over ``micros``, which may have been made for another size than the step is to begin with;
        ``begin`` is called before every micro-batch and may raise.

        Raises ``StillOutOfMemory`` when there is nothing left to halve.
        """
        device = self.step.device
        began_with = self.sizes.most if self.sizes.begin(number, self.memory, self.ranks) else None
        micros, crowded, most = self._sized(number, micros, began_with), False, 0
        total = self.ranks.sum(sum(micro.inputs.supervised_tokens for micro in micros), device)
        while True:
            rng.seed_step(self.step.contract.seed, number, self.ranks.rank)
            passes = int(self.ranks.highest(len(micros), device))
            tried = self._try(number, micros, passes, total, begin, learning_rate)
            if not isinstance(tried, Refused):
                loss, update = tried
                self._learn(number, most if crowded else None, as_planned=not most and began_with is None)
                return Done(loss=self.ranks.sum(loss, device), update=update, began_with=began_with)
            largest = int(self.ranks.highest(_largest(micros), device))
            most, crowded = self.sizes.smaller(largest, crowded=tried.crowded), crowded or tried.crowded
            self._fell_back(number, tried, largest, most)
            gc.collect()
            self.memory.release()
            # Made again from the data: halves of tensors would keep the padding of the whole.
            micros = [self.make(part) for micro in micros for part in split(micro.indices, most)]

    def _sized(self, number: int, micros: list[Micro], began_with: int | None) -> list[Micro]:
        """The micro-batches of the step at the size that it begins with. They were made ahead, at the size of that time."""
        if self.sizes.failed_in is None:
            return micros
        parts = self.planned(number) if began_with is None else self.sizes.cut(self.planned(number))
        fitting = parts == [micro.indices for micro in micros]
        return micros if fitting else [self.make(part) for part in parts]

    def _learn(self, number: int, most: int | None, *, as_planned: bool) -> None:
        """Step ``number`` is done, with no more than ``most`` because of others, or ``as_planned`` at its first try."""
        before = self.sizes.most
        if most is not None:
            self.sizes.reduce(number, most)
            if most != before:
                self.on_note(
                    f"other processes hold the GPU's memory: steps begin with {most} examples at a time until the planned"
                    " micro-batches fit again"
                )
        elif before is not None and as_planned:
            self.sizes.restore()
            self.on_note(f"the planned micro-batches fit again from step {number}")

    def _try(
        self, number: int, micros: Sequence[Micro], passes: int, total: float, begin: Callable[[], None], rate: float
    ) -> tuple[float, Update] | Refused:
        try:
            loss = self._passes(micros, passes, total, begin)
            if isinstance(loss, Refused):
                return loss
            with self.memory.working():
                self.ranks.sum_gradients(self.step.parameters)
                update = self.step.update(learning_rate=rate)
                return float(loss), update
        except torch.OutOfMemoryError as error:
            refused = self._refused(error, ids_of(micros))
            if not self.ranks.alone:  # the others have updated already
                self._fell_back(number, refused, _largest(micros), 0)
            return refused
        finally:
            self.step.optimizer.zero_grad(set_to_none=True)

    def _passes(self, micros: Sequence[Micro], passes: int, total: float, begin: Callable[[], None]) -> torch.Tensor | Refused:
        """This process's part of the loss, all ``passes`` made; or where a process ran out of memory, the same in all."""
        ids: Sequence[str] = ()
        shares = [torch.zeros((), device=self.step.device)]  # one of several processes may have nothing in a short step
        try:
            with self.step.even(passes, backward=True), self.memory.working():
                for micro in micros:
                    begin()
                    ids = micro.ids
                    shares.append(self.run_micro(micro, total))
                found = torch.stack(shares).sum()  # before the update: after it nothing may fail any more
                if not self.ranks.alone:
                    ids = ids_of(micros)
                    self.step.make_room()
        except torch.OutOfMemoryError as error:
            found = self._refused(error, ids)
            self.step.optimizer.zero_grad(set_to_none=True)  # telling the others takes memory too
        return self.ranks.first_of(found if isinstance(found, Refused) else None, self.step.device) or found

    def _refused(self, error: torch.OutOfMemoryError, ids: Sequence[str]) -> Refused:
        """``ids``: of the micro-batch; of all that this process has in the step where it was the update that had no memory."""
        refused = Refused.of(error, ids, self.step, self.memory, self.ranks)
        if refused.crowded:
            self.sizes.lacked(self.memory.room_bytes())
        return refused

    def _fell_back(self, number: int, refused: Refused, largest: int, reduced_to: int) -> None:
        """Tell of a try with micro-batches of up to ``largest``; raises ``StillOutOfMemory`` when it was the last."""
        examples = min(largest, len(refused.ids))
        self.on_fallback(refused.fallback(number, reduced_to or None, micro_batch=examples))
        if not reduced_to:
            raise refused.ends()


def _largest(micros: Sequence[Micro]) -> int:
    return max((len(micro.indices) for micro in micros), default=0)


def describe(fallback: Fallback) -> str:
    """A fallback in one line."""
    shown = ", ".join(fallback.examples[:4]) + (", ..." if len(fallback.examples) > 4 else "")
    why = "; other processes hold the GPU's memory" if fallback.crowded else ""
    where = f" in process {fallback.process}" if fallback.process else ""
    evaluated = fallback.during == "evaluation"
    what = f"the evaluation after step {fallback.step}" if evaluated else f"step {fallback.step}"
    then = f"{'they are evaluated' if evaluated else 'the step is done'} again with {fallback.reduced_to} at a time"
    if fallback.reduced_to is None:
        then = "nothing is left to halve"
    return (
        f"out of memory{where} in phase {fallback.phase!r} of {what} with"
        f" {fallback.micro_batch} examples ({shown}){why}; {then}"
    )


def out_of_memory_in(where: str, error: StillOutOfMemory, plan: Plan, memory: Memory, *, hint: str) -> BudgetftError:
    """The error that ends a run of ``plan`` for which nothing was left to halve."""
    return out_of_memory(
        error,
        phase=error.phase,
        where=where,
        ids=error.ids,
        cap_bytes=memory.cap_bytes,
        budget_bytes=plan.gpu.budget_bytes,
        hint=hint,
    )


def refusal(plan: Plan, memory: Memory, phase: Phase, detail: str) -> Outcome:
    """What a run found out about the setting of ``plan``: that it runs out of memory."""
    return Outcome(
        status="oom",
        phase=phase,
        detail=detail,
        knobs=plan.knobs,
        evidence=memory.evidence,
        budget_bytes=plan.gpu.budget_bytes,
        cap_bytes=memory.cap_bytes,
        stack=memory.stack,
    )
