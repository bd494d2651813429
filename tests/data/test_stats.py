from itertools import pairwise

import pytest

from budgetft.contract import Contract
from budgetft.data.collate import encode
from budgetft.data.stats import check_lengths, histogram, measure_shapes, measure_workload, workload_of
from budgetft.errors import UsageError
from budgetft.workload import Shape

CONTRACT = Contract()


@pytest.fixture(scope="module")
def shapes(sample, processor, model):
    return measure_shapes(sample, processor, model, CONTRACT)


def test_token_counts_equal_the_encoders_for_every_sample_example(sample, shapes, processor, model):
    for example, shape in zip(sample, shapes, strict=True):
        encoded = encode(example, processor, model, CONTRACT)
        visual = int(encoded.mm_token_type_ids.sum())
        assert shape.total_tokens(model.pixel_step) == len(encoded.input_ids)
        assert shape.visual_tokens(model.pixel_step) == visual
        assert shape.supervised_tokens == int((encoded.labels != -100).sum())
        grid = [[1, height // 14, width // 14] for width, height in shape.images]
        assert encoded.image_grid_thw.tolist() == grid


def test_token_counts_equal_the_encoders_for_real_frames(bikes, processor, model):
    contract = Contract(max_pixels=100_352)
    measured = measure_shapes(bikes, processor, model, contract)
    lengths = [len(encode(example, processor, model, contract).input_ids) for example in bikes]
    assert [shape.total_tokens(model.pixel_step) for shape in measured] == lengths


def test_no_image_is_decoded(tmp_path, example, processor, model):
    from PIL import Image

    path = tmp_path / "half.jpg"
    Image.effect_noise((300, 200), 80).save(path)
    path.write_bytes(path.read_bytes()[:2000])  # header only
    (shape,) = measure_shapes([example.replace(images=(str(path),))], processor, model, CONTRACT)
    assert shape.images == ((308, 196),)


def test_every_example_that_cannot_be_measured_is_named(sample, example, processor, model):
    bad = [example.replace(id="gone", images=("/nowhere/x.jpg",)), sample[0], example.replace(id="empty", answer=" ")]
    with pytest.raises(UsageError) as failure:
        measure_shapes(bad, processor, model, CONTRACT)
    assert "2 problems" in failure.value.message
    assert "example 'gone': image /nowhere/x.jpg does not exist" in failure.value.message
    assert "example 'empty': answer: empty" in failure.value.message


def test_the_worst_are_the_longest_and_then_those_with_the_most_pixels():
    text = Shape(images=((28, 28),), text_tokens=99, supervised_tokens=9)
    image = Shape(images=((280, 252),), text_tokens=10, supervised_tokens=5)
    short = Shape(images=((28, 28),), text_tokens=20, supervised_tokens=9)
    workload = workload_of([short, text, image], "f", pixel_step=28)
    assert workload.worst == (image, text, short)
    assert (workload.examples, workload.fingerprint) == (3, "f")
    assert sorted(map(str, workload.typical)) == sorted(map(str, workload.worst))


def test_a_workload_keeps_64_of_each_and_samples_by_its_seed():
    shapes = [Shape(images=((28, 28),), text_tokens=20 + n, supervised_tokens=5) for n in range(500)]
    first, again, other = (workload_of(shapes, None, pixel_step=28, seed=seed) for seed in (0, 0, 1))
    assert [shape.text_tokens for shape in first.worst] == list(range(519, 519 - 64, -1))
    assert len(set(first.typical)) == 64
    assert first.typical == again.typical != other.typical


@pytest.mark.parametrize("values", [[7], [3, 3, 9], list(range(100, 140)), [1, 1000]])
def test_a_histogram_counts_every_value_once_in_ranges_that_touch(values):
    bins = histogram(values)
    assert len(bins) <= 10
    assert sum(count for _, _, count in bins) == len(values)
    assert bins[0][0] == min(values)
    assert bins[-1][0] <= max(values) <= bins[-1][1]
    assert all(before[1] + 1 == after[0] for before, after in pairwise(bins))
    assert all(count == sum(low <= value <= high for value in values) for low, high, count in bins)


def test_no_shapes_make_no_workload():
    with pytest.raises(UsageError, match="no examples"):
        workload_of([], None, pixel_step=28)


def test_a_dataset_becomes_a_workload(sample, shapes, processor, model):
    workload = measure_workload(sample, processor, model, CONTRACT)
    assert workload == workload_of(shapes, sample.fingerprint, pixel_step=model.pixel_step)
    longest = max(shape.total_tokens(model.pixel_step) for shape in shapes)
    assert workload.worst[0].total_tokens(model.pixel_step) == longest


def test_rows_over_the_limit_are_counted_and_the_longest_is_named(sample, shapes, processor, model):
    totals = [shape.total_tokens(model.pixel_step) for shape in shapes]
    limit = sorted(totals)[-3]
    over = sum(total > limit for total in totals)
    longest = sample[totals.index(max(totals))].id
    with pytest.raises(UsageError) as failure:
        measure_workload(sample, processor, model, Contract(max_length=limit))
    assert f"{over} of 48 examples have more than {limit} tokens" in failure.value.message
    assert f"{longest!r} has {max(totals)} tokens" in failure.value.message
    assert "--max-length" in str(failure.value.hint)
    assert "--max-pixels" in str(failure.value.hint)
    check_lengths([one.id for one in sample], shapes, model, Contract(max_length=max(totals)))


def test_a_longer_example_is_heavier_than_one_with_more_pixels():
    text = Shape(images=((28, 28),), text_tokens=200, supervised_tokens=9)
    image = Shape(images=((280, 252),), text_tokens=10, supervised_tokens=5)
    assert workload_of([image, text], None, pixel_step=28).worst == (text, image)
