"""Bucketing: the same examples with less padding, and never more in a micro-batch than was planned for."""

import itertools
import random

import pytest

from budgetft.data.bucket import Ceiling, micro_batches, padded_tokens, padding_share, split
from budgetft.workload import Shape

STEP = 28


def shape(text: int, *, supervised: int = 4, images: int = 1) -> Shape:
    return Shape(images=((56, 56),) * images, text_tokens=text, supervised_tokens=supervised)


def ragged(seed: int, count: int) -> list[Shape]:
    draw = random.Random(seed)
    return [shape(draw.randint(20, 400), supervised=draw.randint(1, 19), images=draw.randint(1, 3)) for _ in range(count)]


def worst(shapes: list[Shape], count: int) -> list[Shape]:
    order = sorted(shapes, key=lambda s: (s.total_tokens(STEP), s.visual_tokens(STEP)), reverse=True)
    return [order[i % len(order)] for i in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1, 2, 3, 8, 24])
def test_every_example_is_in_one_micro_batch_and_there_are_not_more_than_in_order(seed, size):
    shapes = ragged(seed, 24)
    ceiling = Ceiling.of(worst(shapes, size), STEP)
    for batching in ("padded", "bucketed"):
        parts = micro_batches(shapes, batching, ceiling, pixel_step=STEP)
        assert sorted(itertools.chain(*parts)) == list(range(24))
        assert len(parts) <= 24 / size


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [2, 3, 8])
def test_bucketing_pads_less_than_the_order_drawn_and_stays_under_the_ceiling(seed, size):
    shapes = ragged(seed, 24)
    ceiling = Ceiling.of(worst(shapes, size), STEP)
    made = {
        batching: [[shapes[i] for i in part] for part in micro_batches(shapes, batching, ceiling, pixel_step=STEP)]
        for batching in ("padded", "bucketed")
    }
    assert padding_share(made["bucketed"], STEP) < padding_share(made["padded"], STEP)
    for part in made["bucketed"]:
        assert padded_tokens(part, STEP) <= ceiling.padded_tokens
        if len(part) > size:
            assert sum(one.visual_tokens(STEP) for one in part) <= ceiling.visual_tokens
            assert sum(one.supervised_tokens for one in part) <= ceiling.supervised_tokens


def test_no_other_cut_of_the_sorted_examples_pads_less():
    shapes = ragged(7, 9)
    ceiling = Ceiling.of(worst(shapes, 3), STEP)
    made = micro_batches(shapes, "bucketed", ceiling, pixel_step=STEP)
    order = sorted(shapes, key=lambda one: one.total_tokens(STEP), reverse=True)

    def allowed(part: list[Shape]) -> bool:
        return len(part) <= 3 or (
            padded_tokens(part, STEP) <= ceiling.padded_tokens
            and sum(one.visual_tokens(STEP) for one in part) <= ceiling.visual_tokens
            and sum(one.supervised_tokens for one in part) <= ceiling.supervised_tokens
        )

    totals = []
    for cuts in itertools.chain(*(itertools.combinations(range(1, 9), n) for n in range(3))):
        parts = [order[a:b] for a, b in itertools.pairwise((0, *cuts, 9))]
        if all(map(allowed, parts)):
            totals.append(sum(padded_tokens(part, STEP) for part in parts))
    assert sum(padded_tokens([shapes[i] for i in part], STEP) for part in made) == min(totals)


def test_short_examples_share_with_more_than_long_ones():
    shapes = [shape(400), *[shape(40, supervised=1) for _ in range(7)]]
    ceiling = Ceiling.of([shape(400, supervised=9, images=4)] * 4, STEP)
    assert [len(part) for part in micro_batches(shapes, "bucketed", ceiling, pixel_step=STEP)] == [1, 7]


def test_a_long_answer_or_many_images_keep_a_micro_batch_at_the_planned_size():
    worst_two = [shape(400, supervised=10)] * 2
    ceiling = Ceiling.of(worst_two, STEP)
    for heavy in (shape(40, supervised=10), shape(32, supervised=1, images=3)):
        parts = micro_batches([heavy] * 6, "bucketed", ceiling, pixel_step=STEP)
        assert [len(part) for part in parts] == [2, 2, 2]


def test_examples_of_one_length_need_no_more_micro_batches_than_fit():
    parts = micro_batches([shape(40)] * 8, "bucketed", Ceiling.of([shape(40)] * 4, STEP), pixel_step=STEP)
    assert [len(part) for part in parts] == [4, 4]
    assert padding_share([[shape(40)] * 4] * 2, STEP) == 0


def test_the_same_examples_give_the_same_micro_batches_whatever_came_before():
    shapes, ceiling = ragged(1, 16), Ceiling.of(worst(ragged(1, 16), 4), STEP)
    first = micro_batches(shapes, "bucketed", ceiling, pixel_step=STEP)
    micro_batches(ragged(2, 16), "bucketed", ceiling, pixel_step=STEP)
    assert micro_batches(shapes, "bucketed", ceiling, pixel_step=STEP) == first


def test_no_example_is_left_out_where_the_last_micro_batch_is_not_full():
    assert split([5, 1, 4, 2, 3], 2) == [(5, 1), (4, 2), (3,)]
    assert split([7], 4) == [(7,)]
