"""Examples to inputs in background threads, in order, a little ahead of the loop.

Threads, not processes: decoding and resizing release the interpreter lock, a killed run leaves no worker behind, and
nothing is forked from a process that already holds a card.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from budgetft.data.collate import collate, encode
from budgetft.step.inputs import Inputs, prepare
from budgetft.step.step import Step
from budgetft.train.features import FeaturesOf
from budgetft.train.job import Job

AHEAD = 2
"""Effective batches that are made while one is trained on."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Micro:
    """One micro-batch on the host, and which examples it holds."""

    indices: tuple[int, ...]
    ids: tuple[str, ...]
    inputs: Inputs


def make_micro(indices: Sequence[int], job: Job, processor: Any, step: Step, features_of: FeaturesOf | None = None) -> Micro:
    """The micro-batch of the examples at ``indices``, pinned when it goes to a card; errors as in ``encode``."""
    encoded = [
        encode(job.examples[index], processor, job.model, job.plan.contract, features_of=features_of) for index in indices
    ]
    batch = collate(encoded, processor.tokenizer.pad_token_id)
    inputs = prepare(batch, step.base, vision=step.knobs.vision)
    if step.device.type == "cuda":
        inputs = inputs.map(lambda tensor: tensor.pin_memory())
    return Micro(indices=tuple(indices), ids=batch.ids, inputs=inputs)


def split(indices: Sequence[int], micro_batch: int) -> list[tuple[int, ...]]:
    """``indices`` in micro-batches, in order."""
    return [tuple(indices[start : start + micro_batch]) for start in range(0, len(indices), micro_batch)]


def prefetched(
    batches: Iterable[Sequence[T]], make: Callable[[T], R], *, ahead: int = AHEAD, workers: int | None = None
) -> Iterator[list[R]]:
    """``[make(part) for part in batch]`` for every batch, in order, ``ahead`` batches being made in the background.

    An error of ``make`` is raised where its batch would have come. Closing the iterator stops the threads.
    """
    pool = ThreadPoolExecutor(workers or min(8, max(1, (os.cpu_count() or 2) // 2)), thread_name_prefix="loader")
    pending: deque[list[Future[R]]] = deque()
    try:
        for batch in batches:
            pending.append([pool.submit(make, part) for part in batch])
            if len(pending) > ahead:
                yield [future.result() for future in pending.popleft()]
        while pending:
            yield [future.result() for future in pending.popleft()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
