"""A model of PyTorch's CUDA caching allocator: what it reserves, and counts as allocated, for a sequence of tensors.

The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` (torch 2.6 to 2.14, one stream, default settings): sizes are
rounded to 512 bytes; up to 1 MiB comes from 2 MiB segments, up to 10 MiB from 20 MiB ones, the rest from segments of its
own rounded to 2 MiB; the smallest free block that fits is taken, and split when more than 1 MiB (512 bytes for small
blocks and in expandable segments) would be left; neighbours that are free merge. Expandable segments grow at their end by
pages of 2 and 20 MiB. Above the cap, segments that are wholly free are given back once before it is out of memory.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field

from budgetft.knobs import Allocator

MIB = 2**20
MINIMUM = 512
SMALL = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
OWN_SEGMENT = 10 * MIB
OWN_ROUNDING = 2 * MIB
ADDRESSES = 2**50
"""Where the large pool's expandable segment begins: each pool grows in a range of its own."""

Event = tuple[int, int]
"""(tensor, bytes): bytes positive for an allocation, anything else for the end of the tensor."""


@dataclass(slots=True, eq=False)
class _Block:
    address: int
    size: int
    free: bool
    before: "_Block | None" = None
    after: "_Block | None" = None


@dataclass(slots=True)
class _Pool:
    small: bool
    free: list[tuple[int, int]] = field(default_factory=list)
    """(size, address) of the free blocks, sorted: the first that is large enough is the best fit."""
    blocks: dict[int, _Block] = field(default_factory=dict)
    """The free blocks by address."""
    end: _Block | None = None
    """The last block of an expandable segment."""


class CachingAllocator:
    """Allocate and free by tensor number; bytes are peaks since the last :meth:`forget_peaks`."""

    def __init__(self, kind: Allocator, *, cap_bytes: int | None = None) -> None:
        self.expandable = kind == "expandable"
        self.cap_bytes = cap_bytes
        self.allocated_bytes = self.allocated_peak_bytes = 0
        self.reserved_bytes = self.reserved_peak_bytes = 0
        self.retries = 0
        self.out_of_memory = False
        self._pools = (_Pool(small=True), _Pool(small=False))
        self._held: dict[int, tuple[_Pool, _Block]] = {}
        self._next_address = 0

    def run(self, events: Iterable[Event]) -> None:
        """Apply ``events`` in order; stops at the first that does not fit under the cap."""
        for tensor, size in events:
            if size <= 0:
                self.release(tensor)
            elif not self.allocate(tensor, size):
                self.out_of_memory = True
                return

    def allocate(self, tensor: int, size: int) -> bool:
        """Whether there was room."""
        wanted = max(MINIMUM, -(-size // MINIMUM) * MINIMUM)
        pool = self._pools[0 if wanted <= SMALL else 1]
        block = self._best_fit(pool, wanted) or self._new(pool, wanted)
        if block is None:
            self._give_back()
            self.retries += 1
            block = self._new(pool, wanted)
            if block is None:
                return False
        self._split(pool, block, wanted)
        block.free = False
        self._held[tensor] = pool, block
        self.allocated_bytes += block.size
        self.allocated_peak_bytes = max(self.allocated_peak_bytes, self.allocated_bytes)
        return True

    def release(self, tensor: int) -> None:
        """End ``tensor``; one that was never allocated is ignored."""
        held = self._held.pop(tensor, None)
        if held is None:
            return
        pool, block = held
        self.allocated_bytes -= block.size
        self._insert(pool, block)

    def empty_cache(self) -> None:
        """Give back every segment that is wholly free."""
        self._give_back()

    def forget_peaks(self) -> None:
        self.allocated_peak_bytes, self.reserved_peak_bytes = self.allocated_bytes, self.reserved_bytes

    def _best_fit(self, pool: _Pool, wanted: int) -> _Block | None:
        place = bisect_left(pool.free, (wanted, -1))
        if place == len(pool.free):
            return None
        if self.expandable and pool.end is not None and pool.end.free:
            # The last block could grow, so it counts as the largest of all: anything else that fits is taken first.
            while place < len(pool.free) and pool.free[place][1] == pool.end.address:
                place += 1
            if place == len(pool.free):
                place = bisect_left(pool.free, (wanted, -1))
        _, address = pool.free.pop(place)
        return pool.blocks.pop(address)

    def _new(self, pool: _Pool, wanted: int) -> _Block | None:
        return self._grown(pool, wanted) if self.expandable else self._segment(pool, wanted)

    def _segment(self, pool: _Pool, wanted: int) -> _Block | None:
        if wanted <= SMALL:
            size = SMALL_SEGMENT
        elif wanted < OWN_SEGMENT:
            size = LARGE_SEGMENT
        else:
            size = -(-wanted // OWN_ROUNDING) * OWN_ROUNDING
        return self._reserve(size)

    def _grown(self, pool: _Pool, wanted: int) -> _Block | None:
        page = SMALL_SEGMENT if pool.small else LARGE_SEGMENT
        last = pool.end
        missing = wanted - (last.size if last is not None and last.free else 0)
        block = self._reserve(-(-missing // page) * page)
        if block is None:
            return None
        block.address = (0 if pool.small else ADDRESSES) if last is None else last.address + last.size
        if last is not None:
            last.after, block.before = block, last
        pool.end = block
        if last is not None and last.free:
            self._remove(pool, last)
            block = self._joined(pool, last, block)
        return block

    def _reserve(self, size: int) -> _Block | None:
        if self.cap_bytes is not None and self.reserved_bytes + size > self.cap_bytes:
            return None
        block = _Block(self._next_address, size, free=False)
        self._next_address += size
        self.reserved_bytes += size
        self.reserved_peak_bytes = max(self.reserved_peak_bytes, self.reserved_bytes)
        return block

    def _split(self, pool: _Pool, block: _Block, wanted: int) -> None:
        left = block.size - wanted
        if left < MINIMUM if pool.small or self.expandable else left <= SMALL:
            return
        rest = _Block(block.address + wanted, left, free=True, before=block, after=block.after)
        if block.after is not None:
            block.after.before = rest
        block.after, block.size = rest, wanted
        if pool.end is block:
            pool.end = rest
        self._put(pool, rest)

    def _insert(self, pool: _Pool, block: _Block) -> None:
        block.free = True
        for neighbour in (block.before, block.after):
            if neighbour is not None and neighbour.free:
                self._remove(pool, neighbour)
                block = self._joined(pool, *sorted((block, neighbour), key=lambda each: each.address))
        self._put(pool, block)

    def _joined(self, pool: _Pool, left: _Block, right: _Block) -> _Block:
        left.size += right.size
        left.after = right.after
        if right.after is not None:
            right.after.before = left
        if pool.end is right:
            pool.end = left
        return left

    def _put(self, pool: _Pool, block: _Block) -> None:
        block.free = True
        insort(pool.free, (block.size, block.address))
        pool.blocks[block.address] = block

    def _remove(self, pool: _Pool, block: _Block) -> None:
        pool.free.pop(bisect_left(pool.free, (block.size, block.address)))
        del pool.blocks[block.address]

    def _give_back(self) -> None:
        for pool in self._pools:
            for block in list(pool.blocks.values()):
                if self.expandable:
                    self._shrink(pool, block)
                elif block.before is None and block.after is None:
                    self._remove(pool, block)
                    self.reserved_bytes -= block.size

    def _shrink(self, pool: _Pool, block: _Block) -> None:
        """Unmap the whole pages of a free block; only at the end, where it matters for what follows."""
        page = SMALL_SEGMENT if pool.small else LARGE_SEGMENT
        whole = block.size // page * page
        if pool.end is not block or whole == 0:
            return
        self._remove(pool, block)
        self.reserved_bytes -= whole
        block.size -= whole
        if block.size:
            self._put(pool, block)
        else:
            pool.end = block.before
            if block.before is not None:
                block.before.after = None
