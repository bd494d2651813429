"""An optimizer step that survives running out of memory: the same examples again, in smaller micro-batches.

Nothing of what is learned changes: gradients are those of the sum over the step's examples however it is split, the
examples stay, and the generators start from the step's own seed. Of several processes all do the step again when one ran
out of memory: they agree on it between passes and update.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from budgetft.train.record import Fallback, Neighbour

T = TypeVar("T")


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
    neighbours: tuple[Neighbour, ...]

    @classmethod
    def of(cls, error: torch.OutOfMemoryError, ids: Sequence[str], step: Step, memory: Memory, ranks: Ranks) -> "Refused":
        return cls(
            process=ranks.rank,
            ids=tuple(ids),
            phase=step.phase,
            detail=(str(error).splitlines() or [type(error).__name__])[0][:300],
            cap_bytes=memory.cap_bytes,
            crowded=memory.crowded(),
            neighbours=memory.neighbours(),
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
            "neighbours": self.neighbours,
        }
        return Fallback(**{**said, **facts})


def attempt(run: Callable[[], T], ids: Sequence[str], step: Step, memory: Memory, ranks: Ranks) -> T | Refused:
    """``run()``, or where the first process that did ran out of memory in it: the same in all, before any waits for it."""
    try:
        done = run()
    except torch.OutOfMemoryError as error:
        done = Refused.of(error, ids, step, memory, ranks)
    return ranks.first_of(done if isinstance(done, Refused) else None, step.device) or done


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished optimizer step."""

    loss: float
    update: Update


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

    def run(self, number: int, micros: list[Micro], *, begin: Callable[[], None], learning_rate: float) -> Done:
        """Step ``number`` over ``micros``; ``begin`` is called before every micro-batch and may raise.

        Raises ``StillOutOfMemory`` when there is nothing left to halve.
        """
        device = self.step.device
        total = self.ranks.sum(sum(micro.inputs.supervised_tokens for micro in micros), device)
        while True:
            rng.seed_step(self.step.contract.seed, number, self.ranks.rank)
            passes = int(self.ranks.highest(len(micros), device))
            tried = self._try(number, micros, passes, total, begin, learning_rate)
            if not isinstance(tried, Refused):
                loss, update = tried
                return Done(loss=self.ranks.sum(loss, device), update=update)
            largest = int(self.ranks.highest(_largest(micros), device))
            self._fell_back(number, tried, largest, largest // 2)
            gc.collect()
            self.memory.release()
            # Made again from the data: halves of tensors would keep the padding of the whole.
            micros = [self.make(part) for micro in micros for part in split(micro.indices, largest // 2)]

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
        return Refused.of(error, ids, self.step, self.memory, self.ranks)

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
    why = "; other processes hold the card's memory" if fallback.crowded else ""
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
