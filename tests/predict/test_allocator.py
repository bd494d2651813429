"""The model of the caching allocator follows its rules, and replays what a GPU recorded."""

import gzip
import json
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed: it draws the sequences of allocations")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budgetft.predict.allocator import MIB, CachingAllocator

HISTORY = Path(__file__).parent / "allocator_history.json.gz"
KINDS = ("default", "expandable")


def run(kind: str, *events: tuple[int, int], cap_bytes: int | None = None) -> CachingAllocator:
    allocator = CachingAllocator(kind, cap_bytes=cap_bytes)
    allocator.run(events)
    return allocator


@pytest.mark.parametrize("kind", KINDS)
def test_small_tensors_share_a_segment_of_two_mebibytes(kind):
    allocator = run(kind, *((number, 1000) for number in range(100)))
    assert allocator.reserved_bytes == 2 * MIB
    assert allocator.allocated_bytes == 100 * 1024


def test_middle_sizes_share_twenty_mebibytes_and_large_ones_get_their_own_segment_rounded_to_two():
    assert run("default", (0, 3 * MIB)).reserved_bytes == 20 * MIB
    assert run("default", (0, 3 * MIB), (1, 16 * MIB)).reserved_bytes == 20 * MIB
    assert run("default", (0, 43 * MIB)).reserved_bytes == 44 * MIB


def test_a_large_block_is_split_only_when_more_than_a_mebibyte_is_left():
    kept_whole = run("default", (0, 43 * MIB))
    assert kept_whole.allocated_bytes == 44 * MIB
    split = run("default", (0, 44 * MIB), (0, 0), (1, 42 * MIB), (2, 2 * MIB))
    assert split.allocated_bytes == 44 * MIB
    assert split.reserved_bytes == 44 * MIB


def test_the_smallest_free_block_that_fits_is_taken():
    allocator = run("default", (0, 60 * MIB), (1, 40 * MIB), (0, 0), (1, 0), (2, 38 * MIB), (3, 58 * MIB))
    assert allocator.reserved_bytes == 100 * MIB


def test_neighbours_that_are_free_merge_and_other_segments_do_not():
    pieces = [(number, 4 * MIB) for number in range(5)]
    freed = [(number, 0) for number in range(5)]
    assert run("default", *pieces, *freed, (9, 20 * MIB)).reserved_bytes == 20 * MIB
    two_segments = [(0, 20 * MIB), (1, 20 * MIB), (0, 0), (1, 0)]
    assert run("default", *two_segments, (2, 40 * MIB)).reserved_bytes == 80 * MIB


def test_expandable_segments_merge_what_the_default_cannot():
    two = [(0, 20 * MIB), (1, 20 * MIB), (0, 0), (1, 0), (2, 40 * MIB)]
    assert run("expandable", *two).reserved_bytes == 40 * MIB


def test_an_expandable_segment_grows_by_whole_pages_and_only_by_what_is_missing():
    assert run("expandable", (0, 43 * MIB)).reserved_bytes == 60 * MIB
    assert run("expandable", (0, 43 * MIB), (1, 10 * MIB)).reserved_bytes == 60 * MIB
    assert run("expandable", (0, 43 * MIB), (1, 30 * MIB)).reserved_bytes == 80 * MIB


@pytest.mark.parametrize("kind", KINDS)
def test_above_the_cap_free_segments_are_given_back_before_it_is_out_of_memory(kind):
    fits = run(kind, (0, 60 * MIB), (0, 0), (1, 80 * MIB), cap_bytes=100 * MIB)
    assert not fits.out_of_memory
    assert fits.reserved_bytes == 80 * MIB
    full = run(kind, (0, 60 * MIB), (1, 80 * MIB), cap_bytes=100 * MIB)
    assert full.out_of_memory
    assert full.retries == 1


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(KINDS),
    sizes=st.lists(st.integers(1, 64 * MIB), min_size=1, max_size=60),
    order=st.randoms(use_true_random=False),
)
def test_blocks_never_overlap_reserved_covers_allocated_and_all_can_be_given_back(kind, sizes, order):
    allocator, alive = CachingAllocator(kind), []
    for number, size in enumerate(sizes):
        assert allocator.allocate(number, size)
        alive.append(number)
        if order.random() < 0.5:
            allocator.release(alive.pop(order.randrange(len(alive))))
        assert sum(sizes[number] for number in alive) <= allocator.allocated_bytes <= allocator.reserved_bytes
        spans = sorted((block.address, block.address + block.size) for _, block in allocator._held.values())
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for number in alive:
        allocator.release(number)
    allocator.empty_cache()
    assert allocator.allocated_bytes == 0
    assert allocator.reserved_bytes == 0


HALF_A_PERCENT = 0.005
"""What is claimed of the replay in reports/prediction."""


def recorded() -> list[dict]:
    with gzip.open(HISTORY, "rt") as file:
        return json.load(file)


@pytest.mark.parametrize("number", range(2), ids=["ours, default", "stock, expandable"])
def test_a_recorded_step_of_a_gpu_is_replayed_to_half_a_percent(number):
    record = recorded()[number]
    allocator = CachingAllocator(record["knobs"]["allocator"])
    if record["held_before"]:
        allocator.allocate(-1, record["held_before"])
    allocator.run([tuple(event) for event in record["events"]])
    assert allocator.reserved_peak_bytes == pytest.approx(record["reserved_peak_bytes"], rel=HALF_A_PERCENT)
    assert allocator.allocated_peak_bytes == pytest.approx(record["allocated_peak_bytes"], rel=HALF_A_PERCENT)
