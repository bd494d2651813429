"""Examples to inputs in background threads, in order, a little ahead of the loop.

Threads, not processes: decoding and resizing release the interpreter lock, a killed run leaves no worker behind, and
nothing is forked from a process that already holds a GPU.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from budgetft.data.bucket import Ceiling, micro_batches
from budgetft.data.collate import collate, encode
from budgetft.data.visuals import FeaturesOf
from budgetft.step.inputs import Inputs
from budgetft.step.step import Step
from budgetft.train.job import Job
from budgetft.train.schedule import step_examples
from budgetft.workload import Shape

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


def ids_of(micros: Iterable[Micro]) -> list[str]:
    """Of all their examples."""
    return [name for micro in micros for name in micro.ids]


def make_micro(indices: Sequence[int], job: Job, processor: Any, step: Step, features_of: FeaturesOf | None = None) -> Micro:
    """The micro-batch of the examples at ``indices``, pinned when it goes to a GPU; errors as in ``encode``."""
    encoded = [
        encode(job.examples[index], processor, job.model, job.plan.contract, features_of=features_of) for index in indices
    ]
    batch = collate(encoded, processor.tokenizer.pad_token_id)
    inputs = step.prepare_on_host(batch)
    if step.device.type == "cuda":
        inputs = inputs.map(lambda tensor: tensor.pin_memory())
    return Micro(indices=tuple(indices), ids=batch.ids, inputs=inputs)


def step_micro_batches(number: int, job: Job, shapes: Sequence[Shape]) -> list[tuple[int, ...]]:
    """The micro-batches, as indices, of step ``number`` (from 1): its examples as the plan batches them.

    They follow from the number and the data's ``shapes`` alone, so that a resumed run makes them again.
    """
    plan = job.plan
    indices = step_examples(number, len(shapes), plan.contract)
    ceiling = Ceiling.of(plan.workload.heaviest(plan.knobs.micro_batch), job.model.pixel_step)
    parts = micro_batches([shapes[index] for index in indices], plan.knobs.batching, ceiling, pixel_step=job.model.pixel_step)
    return [tuple(indices[position] for position in part) for part in parts]


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
