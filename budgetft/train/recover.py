"""An optimizer step that survives running out of memory: the same examples again, in smaller micro-batches.

Nothing of what is learned changes: gradients are those of the sum over the step's examples however it is split, the
examples stay, and the generators start from the step's own seed.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from budgetft.data.bucket import split
from budgetft.outcome import Outcome, Phase
from budgetft.plan import Plan
from budgetft.step.step import Step, Update
from budgetft.train import rng
from budgetft.train.loader import Micro
from budgetft.train.memory import Memory
from budgetft.train.ranks import Ranks
from budgetft.train.record import Fallback


class StillOutOfMemory(Exception):
    """Memory ran out with one example in a micro-batch; ``ids`` is that one."""

    def __init__(self, detail: str, *, phase: Phase, ids: Sequence[str]) -> None:
        super().__init__(detail)
        self.phase: Phase = phase
        self.ids = tuple(ids)


@dataclass(frozen=True, kw_only=True)
class Refused:
    """Where a try ran out of memory. It holds no exception: a traceback would keep the tensors of the try alive."""

    micro: Micro
    phase: Phase
    detail: str


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished optimizer step."""

    loss: float
    update: Update
    fallbacks: tuple[Fallback, ...]


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How a run does its steps again."""

    step: Step
    memory: Memory
    run_micro: Callable[[Micro, float], torch.Tensor]
    make: Callable[[Sequence[int]], Micro]
    on_note: Callable[[str], None]
    ranks: Ranks

    def run(self, number: int, micros: list[Micro], *, begin: Callable[[], None], learning_rate: float) -> Done:
        """Step ``number`` over ``micros``; ``begin`` is called before every micro-batch and may raise.

        Raises ``StillOutOfMemory`` when there is nothing left to halve.
        """
        total = self.ranks.sum(sum(micro.inputs.supervised_tokens for micro in micros), self.step.device)
        fallbacks: list[Fallback] = []
        while True:
            rng.seed_step(self.step.contract.seed, number, self.ranks.rank)
            tried = self._try(micros, total, begin, learning_rate)
            if not isinstance(tried, Refused):
                loss, update = tried
                loss = self.ranks.sum(loss, self.step.device)
                return Done(loss=loss, update=update, fallbacks=tuple(fallbacks))
            fallbacks.append(self._fall_back(number, tried, micros))
            # Made again from the data: halves of tensors would keep the padding of the whole.
            micros = [self.make(part) for micro in micros for part in split(micro.indices, fallbacks[-1].reduced_to)]

    def _try(
        self, micros: Sequence[Micro], total: float, begin: Callable[[], None], rate: float
    ) -> tuple[float, Update] | Refused:
        shares = [torch.zeros((), device=self.step.device)]  # one of several processes may have nothing in a short step
        micro = micros[0] if micros else None
        try:
            with self.memory.working():
                for micro in micros:
                    begin()
                    shares.append(self.run_micro(micro, total))
                loss = torch.stack(shares).sum()  # before the update: after it nothing may fail any more
                self.ranks.sum_gradients(self.step.parameters)
                update = self.step.update(learning_rate=rate)
                return float(loss), update
        except torch.OutOfMemoryError as error:
            detail = (str(error).splitlines() or [type(error).__name__])[0][:300]
            if micro is None:
                raise
            return Refused(micro=micro, phase=self.step.phase, detail=detail)
        finally:
            self.step.optimizer.zero_grad(set_to_none=True)

    def _fall_back(self, number: int, refused: Refused, micros: Sequence[Micro]) -> Fallback:
        crowded, neighbours = self.memory.crowded(), self.memory.neighbours()
        largest = max(len(micro.indices) for micro in micros)
        if largest == 1 or (refused.phase == "optimizer" and not self.ranks.alone):  # the others have updated already
            raise StillOutOfMemory(refused.detail, phase=refused.phase, ids=refused.micro.ids)
        gc.collect()
        self.memory.release()
        fallback = Fallback(
            step=number,
            phase=refused.phase,
            micro_batch=len(refused.micro.indices),
            reduced_to=largest // 2,
            examples=refused.micro.ids,
            detail=refused.detail,
            cap_bytes=self.memory.cap_bytes,
            crowded=crowded,
            neighbours=neighbours,
        )
        self.on_note(f"warning: {describe(fallback)}")
        return fallback


def describe(fallback: Fallback) -> str:
    """A fallback in one line."""
    shown = ", ".join(fallback.examples[:4]) + (", ..." if len(fallback.examples) > 4 else "")
    why = "; other processes hold the card's memory" if fallback.crowded else ""
    return (
        f"out of memory in phase {fallback.phase!r} of step {fallback.step} with {fallback.micro_batch} examples ({shown})"
        f"{why}; the step is done again with {fallback.reduced_to} at a time"
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
