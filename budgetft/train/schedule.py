"""The learning rate of a step and the examples it takes: both follow from the step's number alone.

The learning rate of step s (from 1) of S is that of the contract times a factor. In the warm-up, the first
W = ceil(``warmup_ratio`` S) steps, the factor is s / W. After it, with p = (s - 1 - W) / (S - W), which goes from 0 towards 1:

- ``cosine``: (1 + cos(pi p)) / 2
- ``linear``: 1 - p
- ``constant_with_warmup``: 1
- ``constant``: 1, in every step: it has no warm-up

The names are those of transformers, and so are the factors, but that its warm-up starts from 0 where ours starts from 1 / W.
"""

import math
import random
from functools import lru_cache

from budgetft.contract import Contract


def total_steps(contract: Contract, examples: int) -> int:
    """Optimizer steps of the contract's epochs: enough that every example is seen ``epochs`` times."""
    return math.ceil(contract.epochs * examples / contract.effective_batch)


def learning_rate(step: int, steps: int, contract: Contract) -> float:
    """Of step ``step`` (from 1) of ``steps``, by the formula above."""
    warmup = 0 if contract.lr_schedule == "constant" else math.ceil(contract.warmup_ratio * steps)
    if step <= warmup:
        return contract.learning_rate * step / warmup
    progress = (step - 1 - warmup) / (steps - warmup)
    if contract.lr_schedule == "cosine":
        return contract.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    return contract.learning_rate * (1.0 - progress if contract.lr_schedule == "linear" else 1.0)


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
