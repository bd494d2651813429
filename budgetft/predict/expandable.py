"""What the caching allocator reserves with expandable segments, in a quarter of the time of replaying its blocks one by one.

The same rules as :class:`budgetft.predict.allocator.CachingAllocator` of kind ``expandable``, without a cap. Three things
follow from them. Every size and every page is a multiple of 512 bytes, so a block is exactly as large as its tensor. Nothing is
given back, so what is reserved in the end is the peak, and the two pools never meet: each is one range that grows at its end.
And what is allocated before anything is freed lies one after the other. A test holds the two equal.
"""

from bisect import bisect_left, insort

import numpy as np

from budgetft.predict.allocator import LARGE_SEGMENT, MINIMUM, SMALL, SMALL_SEGMENT

ADDRESS_BITS = 32
"""Addresses and sizes are counted in units of 512 bytes: below 2 TiB."""
ADDRESS = 2**ADDRESS_BITS - 1


def peaks(static: np.ndarray, sizes: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    """(allocated, reserved) bytes at their peaks.

    ``static``: bytes of what is allocated first and stays. ``sizes``: of the events that follow, in order, bytes of an
    allocation, 0 for the end of a tensor. ``ends``: for an end, which event the allocation was; negative: none of these.
    """
    kept, units = _units(static), _units(sizes)
    begins = sizes > 0
    counts = begins | (ends >= 0)
    first = np.where(begins, np.arange(len(sizes)), ends)[counts]  # of the tensor that an event is about
    small = (units <= SMALL // MINIMUM)[first]
    changes = np.where(begins[counts], units[first], -units[first])
    allocated = int(kept.sum()) + max(0, int(np.cumsum(changes).max(initial=0)))
    reserved = 0
    for of_pool, limit in ((small, SMALL_SEGMENT), (~small, LARGE_SEGMENT)):
        before = kept[(kept <= SMALL // MINIMUM) == (limit == SMALL_SEGMENT)].sum()
        reserved += _grown(int(before), changes[of_pool].tolist(), first[of_pool].tolist(), limit // MINIMUM)
    return allocated * MINIMUM, reserved * MINIMUM


def _units(sizes: np.ndarray) -> np.ndarray:
    return -(-sizes.astype(np.int64) // MINIMUM)


def _grown(start: int, changes: list[int], tensors: list[int], page: int) -> int:
    """How far one pool's range grows, in units. ``changes``: sizes allocated (positive) and freed of ``tensors``.

    ``free`` holds the free blocks but for the one at the end, as size and address in one number: the first that is large enough
    is the best fit.
    """
    top, end = start, -(-start // page) * page  # used up to top, reserved up to end
    free: list[int] = []
    begin_at: dict[int, int] = {}  # of each free block: its size by where it begins, where it begins by where it ends
    ending_at: dict[int, int] = {}
    held = [0] * (max(tensors, default=-1) + 1)
    for change, tensor in zip(changes, tensors, strict=True):
        if change > 0:
            place = bisect_left(free, change << ADDRESS_BITS)
            if place == len(free):
                held[tensor] = top
                top += change
                if top > end:
                    end += -((end - top) // page) * page
                continue
            block = free.pop(place)
            address, size = block & ADDRESS, block >> ADDRESS_BITS
            del begin_at[address]
            held[tensor] = address
            if size > change:
                stop, address, size = address + size, address + change, size - change
                insort(free, size << ADDRESS_BITS | address)
                begin_at[address] = size
                ending_at[stop] = address
            else:
                del ending_at[address + size]
            continue
        address = held[tensor]
        stop = address - change
        if (before := ending_at.pop(address, None)) is not None:
            free.pop(bisect_left(free, begin_at.pop(before) << ADDRESS_BITS | before))
            address = before
        if stop == top:
            top = address
            continue
        if (size := begin_at.pop(stop, None)) is not None:
            free.pop(bisect_left(free, size << ADDRESS_BITS | stop))
            stop += size
        insort(free, (stop - address) << ADDRESS_BITS | address)
        begin_at[address] = stop - address
        ending_at[stop] = address
    return end
