"""The learning rate of a step and the examples it takes: both follow from the step's number alone."""

import math
import random
from functools import lru_cache

from budgetft.contract import Contract


def total_steps(contract: Contract, examples: int) -> int:
    """Optimizer steps of the contract's epochs: enough that every example is seen ``epochs`` times."""
    return math.ceil(contract.epochs * examples / contract.effective_batch)


def learning_rate(step: int, steps: int, contract: Contract) -> float:
    """Of step ``step`` (from 1) of ``steps``: a linear warmup to the contract's, then a cosine that ends at 0."""
    warmup = math.ceil(contract.warmup_ratio * steps)
    if step <= warmup:
        return contract.learning_rate * step / warmup
    progress = (step - 1 - warmup) / (steps - warmup)
    return contract.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


def step_examples(step: int, examples: int, contract: Contract) -> tuple[int, ...]:
    """The indices of the effective batch of step ``step`` (from 1), out of ``examples``.

    Each epoch is a permutation of the data, seeded by the contract and the epoch; the steps cut the endless row of
    permutations into effective batches, so the last incomplete batch of an epoch is filled up from the next one.
    """
    first = (step - 1) * contract.effective_batch
    return tuple(
        _permutation(contract.seed, position // examples, examples)[position % examples]
        for position in range(first, first + contract.effective_batch)
    )


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, examples: int) -> tuple[int, ...]:
    order = list(range(examples))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)
