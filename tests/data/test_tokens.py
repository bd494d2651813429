import random

import pytest

from budgetft.contract import Contract
from budgetft.data.tokens import pixel_bounds, resized_size, smart_resize, visual_tokens
from budgetft.errors import UsageError
from budgetft.model import load_model


def random_sizes(count, seed, smallest=28, largest=4000):
    rng = random.Random(seed)
    return [(rng.randint(smallest, largest), rng.randint(smallest, largest)) for _ in range(count)]


@pytest.mark.parametrize("factor", [28, 32])
def test_the_resize_rule_equals_that_of_qwen_vl_utils_on_random_sizes(factor):
    from qwen_vl_utils import smart_resize as theirs

    rng = random.Random(factor)
    for height, width in [*random_sizes(800, seed=1), *random_sizes(200, seed=2, smallest=2, largest=60)]:
        bounds = {
            "min_pixels": rng.choice((784, 3136, 65536)),
            "max_pixels": rng.choice((65536, 200_704, 12_845_056)),
        }
        expected = theirs(height, width, factor, **bounds)
        if 0 in expected:  # a strip that they shrink to nothing, which then fails inside PIL
            with pytest.raises(UsageError):
                smart_resize(height, width, factor=factor, **bounds)
        else:
            assert smart_resize(height, width, factor=factor, **bounds) == expected


@pytest.mark.parametrize("name", ["tiny-qwen2.5-vl", "tiny-qwen3-vl"])
def test_patch_counts_equal_those_of_the_image_processor_on_random_sizes(name):
    from budgetft.data.processor import load_processor

    model = load_model(name)
    images = load_processor(model).image_processor
    for max_pixels in (100_352, 602_112):
        contract = Contract(max_pixels=max_pixels)
        low, high = pixel_bounds(model, contract)
        for height, width in random_sizes(500, seed=max_pixels):
            patches = images.get_number_of_image_patches(height, width, {"min_pixels": low, "max_pixels": high})
            assert visual_tokens(width, height, model, contract) == patches // model.merge_size**2


def test_halves_are_rounded_to_even():
    assert smart_resize(28 * 2 + 14, 28 * 3 + 14, factor=28, min_pixels=784, max_pixels=10**7) == (56, 112)


def test_the_published_token_table_is_reproduced():
    table = {602_112: 720, 262_144: 312, 151_200: 180, 100_352: 120, 50_176: 60}
    model = load_model("qwen2.5-vl-3b")
    assert {cap: visual_tokens(1920, 1080, model, Contract(max_pixels=cap)) for cap in table} == table


def test_more_pixels_never_cost_fewer_tokens():
    model = load_model("tiny-qwen2.5-vl")
    for height, width in random_sizes(50, seed=3, smallest=100):
        counts = [visual_tokens(width, height, model, Contract(max_pixels=28 * 28 * n)) for n in (64, 128, 256, 1024)]
        assert counts == sorted(counts)


@pytest.mark.parametrize("name", ["tiny-qwen2.5-vl", "tiny-qwen3-vl"])
def test_a_cap_below_the_models_floor_is_kept(name):
    model = load_model(name)
    contract = Contract(max_pixels=2048)
    for height, width in random_sizes(200, seed=4, smallest=200, largest=300):
        new_width, new_height = resized_size(width, height, model, contract)
        assert new_width * new_height <= 2048


def test_an_image_is_never_larger_than_the_models_own_limit():
    model = load_model("tiny-qwen2.5-vl")
    width, height = resized_size(9000, 9000, model, Contract(max_pixels=10**9))
    assert width * height <= model.max_pixels


@pytest.mark.parametrize(("width", "height"), [(2010, 10), (10, 2010)])
def test_an_aspect_above_200_is_refused(width, height):
    with pytest.raises(UsageError, match=f"{width}x{height} has an aspect above 200"):
        resized_size(width, height, load_model("tiny-qwen2.5-vl"), Contract())


def test_a_strip_that_would_shrink_to_nothing_is_refused():
    with pytest.raises(UsageError, match="has a side under 28 pixels"):
        resized_size(4000, 40, load_model("tiny-qwen2.5-vl"), Contract(max_pixels=784 * 4))
