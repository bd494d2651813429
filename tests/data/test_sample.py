import pytest
from PIL import Image

from budgetft.data.examples import read_dataset
from budgetft.data.synthetic.sample import write_sample
from budgetft.errors import UsageError


def test_the_same_seed_gives_the_same_bytes(tmp_path, sample):
    again = write_sample(tmp_path / "again", count=48)
    assert again.fingerprint == sample.fingerprint
    assert write_sample(tmp_path / "other", count=48, seed=1).fingerprint != sample.fingerprint


def test_a_larger_sample_begins_with_the_smaller_one(tmp_path, sample):
    small = write_sample(tmp_path / "small", count=5)
    assert [(one.id, one.answer) for one in small] == [(one.id, one.answer) for one in sample[:5]]


def test_captions_have_60_to_150_words(tmp_path, sample):
    many = write_sample(tmp_path / "many", count=160, seed=5)
    lengths = [len(example.answer.split()) for example in (*sample, *many)]
    assert min(lengths) >= 60
    assert max(lengths) <= 150
    assert max(lengths) - min(lengths) > 30  # so that padding and bucketing matter


def test_both_actors_and_both_views_of_a_scenario_share_its_source(sample):
    first = sample[:4]
    assert {one.source_id for one in first} == {"sample-0000"}
    assert [one.id.split("|")[2:] for one in first] == [
        ["pedestrian", "overhead_view"],
        ["vehicle", "overhead_view"],
        ["pedestrian", "vehicle_view"],
        ["vehicle", "vehicle_view"],
    ]
    assert first[0].images == first[1].images != first[2].images


def test_image_sizes_differ(sample):
    sizes = set()
    for example in sample:
        with Image.open(example.images[0]) as image:
            sizes.add(image.size)
    assert len(sizes) >= 3


def test_a_sample_of_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot make 0 examples"):
        write_sample(tmp_path / "none", count=0)
    with pytest.raises(UsageError, match="does not exist"):
        read_dataset(tmp_path / "none")
