"""The quick replay of expandable segments reserves and allocates what replaying every block does."""

import random

import numpy as np
import pytest

from budgetft.predict.allocator import SMALL, CachingAllocator
from budgetft.predict.expandable import peaks

MIB = 2**20


def block_by_block(static: list[int], events: list[tuple[int, int]]) -> tuple[int, int]:
    allocator = CachingAllocator("expandable")
    allocator.run((-1 - number, size) for number, size in enumerate(static))
    allocator.run(events)
    return allocator.allocated_peak_bytes, allocator.reserved_peak_bytes


def quickly(static: list[int], events: list[tuple[int, int]]) -> tuple[int, int]:
    """``events`` as (tensor, bytes): each as bytes, or as the event that made the tensor."""
    made = {tensor: place for place, (tensor, size) in enumerate(events) if size}
    sizes = np.array([size for _, size in events], dtype=np.int64)
    ends = np.array([-1 if size else made.get(tensor, -1) for tensor, size in events], dtype=np.int64)
    return peaks(np.array(static, dtype=np.int64), sizes, ends)


def drawn(seed: int) -> tuple[list[int], list[tuple[int, int]]]:
    draw = random.Random(seed)
    special = (1, 512, 513, SMALL, SMALL + 1, 2 * MIB, 20 * MIB)
    static = [draw.choice((*special, draw.randint(1, 2**26))) for _ in range(draw.randint(0, 20))]
    live, events = [], []
    for tensor in range(draw.randint(1, 400)):
        while live and draw.random() < 0.4:
            events.append((live.pop(draw.randrange(len(live))), 0))
        events.append((tensor, draw.choice((*special, round(2 ** draw.uniform(0, 26))))))
        live.append(tensor)
        if draw.random() < 0.02:
            events.append((10**6, 0))  # of what was there before
    return static, events


@pytest.mark.parametrize("seed", range(40))
def test_it_reserves_and_allocates_what_every_block_does(seed):
    static, events = drawn(seed)
    assert quickly(static, events) == block_by_block(static, events)


def test_a_hole_is_taken_before_the_end_grows_and_the_smallest_that_fits_first():
    four = [(number, size * MIB) for number, size in enumerate((30, 4, 10, 4))]
    holes = [*four, (0, 0), (2, 0)]
    assert quickly([], [*holes, (4, 9 * MIB)]) == (48 * MIB, 60 * MIB)
    assert quickly([], [*holes, (4, 9 * MIB), (5, 30 * MIB)]) == (48 * MIB, 60 * MIB)
    assert quickly([], [*holes, (4, 9 * MIB), (5, 31 * MIB)]) == (48 * MIB, 80 * MIB)


def test_nothing_takes_nothing():
    assert quickly([], []) == (0, 0)
