"""What the caching allocator adds to a memory model's live bytes: its events replayed at a grid of settings, each when asked
for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from budgetft.knobs import Allocator
from budgetft.predict.allocator import CachingAllocator
from budgetft.predict.compose import EventTemplate, compose
from budgetft.predict.expandable import peaks
from budgetft.predict.memory_model import LARGEST_MICRO_BATCH, MemoryModel, Overhead, between, layout_of

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, LARGEST_MICRO_BATCH)
THIRDS = 3
LARGEST_BYTES = 100 * 2**30
"""Live bytes above which settings are not replayed, but take what the largest below adds. The same for every budget: what a
setting needs must not depend on what there is."""
ALLOCATORS: tuple[Allocator, ...] = ("default", "expandable")


@dataclass(frozen=True, kw_only=True)
class Replays:
    """``memory_model``, what makes the events of its templates, and the sizes of what is there throughout, in order of
    allocation.
    """

    memory_model: MemoryModel
    templates: Mapping[str, Callable[[], EventTemplate]]
    """By layout; made when asked for."""
    static: Sequence[int]
    _templates: dict[str, EventTemplate] = field(default_factory=dict)
    _cells: dict[tuple[Allocator, int, int], tuple[int, int]] = field(default_factory=dict)

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of checkpointed layers of the grid."""
        layers = self.memory_model.layers
        counts = sorted({round(layers * part / THIRDS) for part in range(THIRDS + 1)})
        return tuple(count for count in counts if layout_of(layers, count) in self.memory_model.templates)

    def at(self, kind: Allocator, micro_batch: int, checkpointed_layers: int) -> tuple[int, int]:
        """As :meth:`budgetft.predict.memory_model.Overhead.at`; replays what it needs and has not yet."""
        counts = self.counts
        return between(
            MICRO_BATCHES, counts, lambda row, column: self._cell(kind, row, column), micro_batch, checkpointed_layers
        )

    def table(self) -> dict[Allocator, Overhead]:
        """All of it."""

        def rows(kind: Allocator, which: int) -> tuple[tuple[int, ...], ...]:
            columns = range(len(MICRO_BATCHES))
            return tuple(tuple(self._cell(kind, row, column)[which] for column in columns) for row in range(len(self.counts)))

        return {
            kind: Overhead(
                micro_batches=MICRO_BATCHES, checkpointed=self.counts, allocated=rows(kind, 0), reserved=rows(kind, 1)
            )
            for kind in ALLOCATORS
        }

    def _cell(self, kind: Allocator, row: int, column: int) -> tuple[int, int]:
        """(allocated, reserved) bytes above the live ones at one setting of the grid."""
        if (kind, row, column) not in self._cells:
            size, count = MICRO_BATCHES[column], self.counts[row]
            peak, _ = self.memory_model.peak_bytes(size, count, accumulating=True)
            if peak <= LARGEST_BYTES:
                found = self._replayed(kind, size, count, peak)
            else:
                found = self._cell(kind, row, column - 1) if column else (0, 0)
            self._cells[kind, row, column] = found
        return self._cells[kind, row, column]

    def _replayed(self, kind: Allocator, size: int, count: int, peak: int) -> tuple[int, int]:
        memory_model = self.memory_model
        static = np.array([*self.static, round(memory_model.inputs(size))], dtype=np.int64)
        layout = layout_of(memory_model.layers, count)
        if layout not in self._templates:
            self._templates[layout] = self.templates[layout]()
        template = self._templates[layout]
        sizes, ends = compose(template, memory_model=memory_model, checkpointed_layers=count, micro_batch=size)
        allocated, reserved = (peaks if kind == "expandable" else replayed_peaks)(static, sizes, ends)
        return max(0, allocated - peak), max(0, reserved - peak)


def replayed_peaks(static: np.ndarray, sizes: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
    """As :func:`budgetft.predict.expandable.peaks`, without expandable segments: block by block."""
    allocator = CachingAllocator("default")
    allocator.run((-1 - number, each) for number, each in enumerate(static.tolist()))
    allocator.run(
        (event if size else end, size) for event, (size, end) in enumerate(zip(sizes.tolist(), ends.tolist(), strict=True))
    )
    return allocator.allocated_peak_bytes, allocator.reserved_peak_bytes
