"""Held-out loss while training: in the same precision, without a graph, and never with more than a chunk of logits.

Several processes share the examples.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from budgetft.data.bucket import split
from budgetft.data.examples import Examples
from budgetft.data.visuals import FeaturesOf
from budgetft.step.step import Step
from budgetft.train.job import Job
from budgetft.train.loader import Micro, make_micro, prefetched
from budgetft.train.memory import Held, Memory
from budgetft.train.preflight import checked_shapes, heaviest_batches
from budgetft.train.ranks import Ranks
from budgetft.train.recover import Refused


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
    features_of: FeaturesOf | None = None
    """Of their images, when the plan has cached vision."""
    ranks: Ranks = field(default_factory=Ranks)

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.job.steps

    def fly(self) -> Held:
        """Evaluate the heaviest batches before the first step; raises ``torch.OutOfMemoryError``."""
        parts = heaviest_batches(self.job, checked_shapes(self.job, self.processor))
        with self.step.even(len(parts), backward=False):
            for part in parts:
                self._sum(self._make(part))
        held = self.memory.read()
        self.memory.forget_peaks()
        return held

    def loss(self) -> float:
        """Mean over the supervised tokens of all examples. Batches that do not fit are halved.

        Raises ``StillOutOfMemory`` when one example does not fit.
        """
        device = self.step.device
        total, tokens, refused = 0.0, 0.0, None
        waiting = self.ranks.share(split(range(len(self.job.examples)), self.job.plan.knobs.micro_batch))
        while passes := int(self.ranks.highest(len(waiting), device)):
            halves: list[Sequence[int]] = []
            batches = prefetched(([part] for part in waiting), self._make)
            with self.step.even(passes, backward=False), closing(batches) as planned:  # pyright: ignore[reportArgumentType]
                for (micro,) in planned:
                    found = self._try(micro)
                    if not isinstance(found, Refused):
                        total, tokens = total + found, tokens + micro.inputs.supervised_tokens
                    elif len(micro.indices) == 1:
                        refused = found
                    else:
                        halves += self._halved(micro)
            refused = self.ranks.first_of(refused, device)
            if refused is not None:
                raise refused.ends()
            waiting = halves
        return self.ranks.sum(total, device) / self.ranks.sum(tokens, device)

    def _make(self, indices: Sequence[int]) -> Micro:
        return make_micro(indices, self.job, self.processor, self.step, self.features_of)

    def _halved(self, micro: Micro) -> list[Sequence[int]]:
        self.memory.release()
        half = len(micro.indices) // 2
        self.on_note(f"warning: out of memory evaluating {len(micro.indices)} examples; going on with {half} at a time")
        return list(split(micro.indices, half))

    def _try(self, micro: Micro) -> float | Refused:
        """The sum of the losses, or how memory ran out."""
        try:
            return float(self._sum(micro))
        except torch.OutOfMemoryError as error:
            return Refused.of(error, micro.ids, self.step, self.memory, self.ranks)

    def _sum(self, micro: Micro) -> torch.Tensor:
        with self.memory.working():
            return self.step.evaluate(micro.inputs.to(self.step.device))


def held_out_job(examples: Examples, job: Job, on_note: Callable[[str], None]) -> Job:
    """``job`` with ``examples`` in place of its own; that some are trained on is told."""
    known = {example.id for example in job.examples}
    shared = sum(example.id in known for example in examples)
    if shared:
        on_note(f"warning: {shared} of {len(examples)} held-out examples have the id of one that is trained on")
    return replace(job, examples=examples)
