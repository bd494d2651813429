"""Held-out loss while training: in the same precision, without a graph, and never with more than a chunk of logits.

Several processes share the examples.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from budgetft.data.bucket import split
from budgetft.data.examples import Examples
from budgetft.data.visuals import FeaturesOf
from budgetft.errors import BudgetftError
from budgetft.step.step import Step
from budgetft.train.folder import NO_DATA
from budgetft.train.job import Job
from budgetft.train.loader import Micro, make_micro, prefetched
from budgetft.train.memory import Memory
from budgetft.train.preflight import checked_shapes, heaviest_batches
from budgetft.train.ranks import Ranks
from budgetft.train.readings import Held
from budgetft.train.record import Fallback
from budgetft.train.recover import Refused, StillOutOfMemory, out_of_memory_in
from budgetft.train.samples import Samples


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Examples that are not trained on; ``job`` is the run's with these examples in place of its own."""

    job: Job
    processor: Any
    step: Step
    memory: Memory
    every: int
    """Steps between evaluations; the last step has one too."""
    on_note: Callable[[str], None]
    on_fallback: Callable[[Fallback], None]
    """Gets each batch that did not fit; after one that is reduced to nothing the run ends."""
    features_of: FeaturesOf | None = None
    """Of their images, when the plan has cached vision."""
    ranks: Ranks = field(default_factory=Ranks)
    samples: Samples | None = None
    """In one process alone."""

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.job.steps

    def fly(self) -> Held:
        """Evaluate the heaviest batches before the first step; raises ``torch.OutOfMemoryError``."""
        parts = heaviest_batches(self.job, checked_shapes(self.job, self.processor))
        with self.step.even(len(parts), backward=False):
            for part in parts:
                self._sum(self._make(part))
        if self.samples is not None:
            self.samples.fly()
        held = self.memory.read()
        self.memory.forget_peaks()
        return held

    def after(self, step: int) -> tuple[float | None, BudgetftError | None]:
        """The loss after ``step`` where it is due and finite; and what ends the run in it, although the step is done.

        Raises only what the other processes do not know of.
        """
        if not self.due(step):
            return None, None
        try:
            loss = self.loss(step)
        except StillOutOfMemory as error:
            where = f"evaluation after step {step}, one example at a time"
            hint = f"evaluate other data, or --eval-data {NO_DATA}"
            return None, out_of_memory_in(where, error, self.job.plan, self.memory, hint=hint)
        except BudgetftError as error:
            if not self.ranks.alone:  # they wait for what this one would do next
                raise
            return None, error
        self.on_note(f"held-out loss after step {step}: {loss:.4f}")
        if self.samples is not None:
            self.samples.after(step)
        return (loss if math.isfinite(loss) else None), None

    def loss(self, after: int) -> float:
        """Mean over the supervised tokens of all examples, after that step. Batches that do not fit are halved.

        Raises ``StillOutOfMemory`` when one example does not fit.
        """
        device = self.step.device
        total, tokens, refused = 0.0, 0.0, None
        waiting = self.ranks.share(split(range(len(self.job.examples)), self.job.plan.knobs.micro_batch))
        while passes := int(self.ranks.highest(len(waiting), device)):
            halves: list[Sequence[int]] = []
            fallbacks: list[Fallback] = []
            batches = prefetched(([part] for part in waiting), self._make)
            with self.step.even(passes, backward=False), closing(batches) as planned:  # pyright: ignore[reportArgumentType]
                for (micro,) in planned:
                    found = self._try(micro)
                    if not isinstance(found, Refused):
                        total, tokens = total + found, tokens + micro.inputs.supervised_tokens
                        continue
                    half = len(micro.indices) // 2
                    fallbacks.append(found.fallback(after, half or None, during="evaluation"))
                    refused = refused if half else found
                    halves += split(micro.indices, half) if half else []
                    self.memory.release()
            for fallback in self.ranks.gathered(fallbacks, device):
                self.on_fallback(fallback)
            refused = self.ranks.first_of(refused, device)
            if refused is not None:
                raise refused.ends()
            waiting = halves
        return self.ranks.sum(total, device) / self.ranks.sum(tokens, device)

    def _make(self, indices: Sequence[int]) -> Micro:
        return make_micro(indices, self.job, self.processor, self.step, self.features_of)

    def _try(self, micro: Micro) -> float | Refused:
        """The sum of the losses, or how memory ran out."""
        try:
            return float(self._sum(micro))
        except torch.OutOfMemoryError as error:
            return Refused.of(error, micro.ids, self.step, self.memory, self.ranks)

    def _sum(self, micro: Micro) -> torch.Tensor:
        with self.memory.working():
            return self.step.evaluate(self.step.take(micro.inputs))


def held_out_job(examples: Examples, job: Job, on_note: Callable[[str], None]) -> Job:
    """``job`` with ``examples`` in place of its own; that some are trained on is told."""
    known = {example.id for example in job.examples}
    shared = sum(example.id in known for example in examples)
    if shared:
        on_note(f"warning: {shared} of {len(examples)} held-out examples have the id of one that is trained on")
    return replace(job, examples=examples)
