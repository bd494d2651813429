"""Held-out loss while training: in the same precision, without a graph, and never with more than a chunk of logits."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
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
from budgetft.train.recover import StillOutOfMemory


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

    def due(self, step: int) -> bool:
        return step % self.every == 0 or step == self.job.steps

    def fly(self) -> Held:
        """Evaluate the heaviest batches before the first step; raises ``torch.OutOfMemoryError``."""
        for part in heaviest_batches(self.job, checked_shapes(self.job, self.processor)):
            self._sum(self._make(part))
        held = self.memory.read()
        self.memory.forget_peaks()
        return held

    def loss(self) -> float:
        """Mean over the supervised tokens of all examples. Batches that do not fit are halved.

        Raises ``StillOutOfMemory`` when one example does not fit.
        """
        total, tokens = 0.0, 0.0
        parts = split(range(len(self.job.examples)), self.job.plan.knobs.micro_batch)
        with closing(prefetched(([part] for part in parts), self._make)) as planned:  # pyright: ignore[reportArgumentType]
            for (micro,) in planned:
                total += self._all_of(micro)
                tokens += micro.inputs.supervised_tokens
        return total / tokens

    def _make(self, indices: Sequence[int]) -> Micro:
        return make_micro(indices, self.job, self.processor, self.step, self.features_of)

    def _all_of(self, micro: Micro) -> float:
        total, waiting = 0.0, deque([micro])
        while waiting:
            part = waiting.popleft()
            found = self._try(part)
            if not isinstance(found, str):
                total += found
            elif len(part.indices) == 1:
                raise StillOutOfMemory(found, phase=self.step.phase, ids=part.ids)
            else:
                self.memory.release()
                half = len(part.indices) // 2
                self.on_note(f"warning: out of memory evaluating {len(part.indices)} examples; going on with {half} at a time")
                waiting.extendleft(map(self._make, reversed(split(part.indices, half))))
        return total

    def _try(self, micro: Micro) -> float | str:
        """The sum of the losses, or what torch said when memory ran out."""
        try:
            return float(self._sum(micro))
        except torch.OutOfMemoryError as error:
            return (str(error).splitlines() or ["out of memory"])[0][:300]

    def _sum(self, micro: Micro) -> torch.Tensor:
        with self.memory.working():
            inputs = micro.inputs.to(self.step.device)
            self.memory.count(tensor for tensor in vars(inputs).values() if isinstance(tensor, torch.Tensor))
            return self.step.evaluate(inputs)


def held_out_job(examples: Examples, job: Job, on_note: Callable[[str], None]) -> Job:
    """``job`` with ``examples`` in place of its own; that some are trained on is told."""
    known = {example.id for example in job.examples}
    shared = sum(example.id in known for example in examples)
    if shared:
        on_note(f"warning: {shared} of {len(examples)} held-out examples have the id of one that is trained on")
    return replace(job, examples=examples)
