import pytest
import torch
from PIL import Image

from budgetft.contract import Contract
from budgetft.data.collate import collate, encode, synthetic_batch
from budgetft.data.examples import Example
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_shapes
from budgetft.errors import UsageError
from budgetft.model import load_model
from budgetft.workload import Shape

CONTRACT = Contract()
FIELDS = ("input_ids", "labels", "mm_token_type_ids", "attention_mask", "pixel_values", "image_grid_thw")


@pytest.fixture
def reachable(example, picture):
    return example.replace(images=(str(picture),))


def test_only_the_answer_and_its_end_are_supervised(reachable, processor, model):
    encoded = encode(reachable, processor, model, CONTRACT)
    supervised = encoded.labels != -100
    assert processor.tokenizer.decode(encoded.labels[supervised]) == "It is red.<|im_end|>"
    assert torch.equal(encoded.labels[supervised], encoded.input_ids[supervised])
    assert supervised.nonzero()[0] == len(supervised) - supervised.sum()  # they come last, without a gap
    assert processor.tokenizer.decode(encoded.input_ids[~supervised]).endswith("<|im_start|>assistant\n")


def test_placeholders_types_and_patches_agree(reachable, processor, model):
    encoded = encode(reachable, processor, model, CONTRACT)
    assert encoded.image_grid_thw.tolist() == [[1, 4, 8]]  # 100 x 60 becomes 112 x 56
    assert encoded.pixel_values.shape == (32, 3 * 2 * 14 * 14)
    assert encoded.pixel_values.dtype == torch.float32
    assert int((encoded.input_ids == 151_655).sum()) == 8
    assert torch.equal(encoded.mm_token_type_ids, (encoded.input_ids == 151_655).long())


def test_an_image_is_resized_once_and_to_the_contracts_pixels(tmp_path, reachable, processor, model):
    from qwen_vl_utils.vision_process import fetch_image

    path = tmp_path / "noise.png"
    Image.effect_noise((700, 500), 90).convert("RGB").save(path)
    contract = Contract(max_pixels=50_176)
    encoded = encode(reachable.replace(images=(str(path),)), processor, model, contract)
    reference = fetch_image({"image": str(path), "min_pixels": model.min_pixels, "max_pixels": 50_176})
    pixels = processor.image_processor(images=[reference], do_resize=False, return_tensors="pt")
    assert torch.equal(encoded.pixel_values, pixels["pixel_values"])
    assert encoded.image_grid_thw[0].prod() * 14 * 14 <= 50_176


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_colour_modes_are_read(tmp_path, reachable, processor, model, mode):
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (60, 60), (10, 200, 30)).convert(mode).save(path)
    assert encode(reachable.replace(images=(str(path),)), processor, model, CONTRACT).pixel_values.isfinite().all()


def test_an_example_over_the_limit_is_refused_with_its_id_and_numbers(reachable, processor, model):
    length = len(encode(reachable, processor, model, CONTRACT).input_ids)
    encode(reachable, processor, model, Contract(max_length=length))
    with pytest.raises(UsageError) as failure:
        encode(reachable, processor, model, Contract(max_length=length - 1))
    assert failure.value.message == (f"example 'one' has {length} tokens (8 of them visual); the limit is {length - 1}")
    assert "--max-length" in str(failure.value.hint)


def test_an_unreadable_image_is_named_with_its_example(tmp_path, reachable, processor, model):
    path = tmp_path / "broken.jpg"
    path.write_text("no picture")
    with pytest.raises(UsageError, match=r"example 'one': .*broken\.jpg is not an image"):
        encode(reachable.replace(images=(str(path),)), processor, model, CONTRACT)
    Image.new("RGB", (3000, 10)).save(path)
    with pytest.raises(UsageError, match=r"example 'one': image .*broken\.jpg: .*aspect above 200"):
        encode(reachable.replace(images=(str(path),)), processor, model, CONTRACT)


@pytest.mark.parametrize("field", ["prompt", "answer"])
def test_a_control_token_in_the_text_is_refused(reachable, processor, model, field):
    with pytest.raises(UsageError, match=f"{field}: holds the control token"):
        encode(reachable.replace(**{field: "look: <|image_pad|>"}), processor, model, CONTRACT)


def test_a_batch_is_padded_on_the_right(reachable, processor, model):
    short = encode(reachable, processor, model, CONTRACT)
    long = encode(reachable.replace(id="two", answer="It is red, I think, and rather dark."), processor, model, CONTRACT)
    batch = collate([short, long], 151_643)
    t, s = len(short.input_ids), len(long.input_ids)
    assert batch.ids == ("one", "two")
    assert batch.input_ids.shape == batch.labels.shape == batch.mm_token_type_ids.shape == (2, s)
    assert batch.attention_mask is not None
    assert batch.attention_mask.sum(dim=1).tolist() == [t, s]
    assert batch.input_ids[0, t:].tolist() == [151_643] * (s - t)
    assert batch.labels[0, t:].tolist() == [-100] * (s - t)
    assert not batch.mm_token_type_ids[0, t:].any()
    assert torch.equal(batch.pixel_values, torch.cat([short.pixel_values, long.pixel_values]))
    assert batch.image_grid_thw.shape == (2, 3)


def test_a_batch_without_padding_has_no_mask(reachable, processor, model):
    one = encode(reachable, processor, model, CONTRACT)
    assert collate([one, one], 0).attention_mask is None


def test_a_batch_moves_to_a_device_whole(model):
    batch = synthetic_batch([Shape(images=((56, 56),), text_tokens=20, supervised_tokens=4)], model, seed=0)
    moved = batch.to("meta")
    assert moved.ids == batch.ids
    assert moved.attention_mask is None
    assert moved.input_ids.device.type == moved.pixel_values.device.type == "meta"


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl"])
def test_a_synthetic_batch_has_the_shapes_of_a_real_one(sample, name):
    model = load_model(name)
    processor = load_processor(model)
    # Two images of different sizes in the first example.
    examples = [Example.make(**{**sample[0].model_dump(), "images": sample[0].images + sample[2].images}), *sample[4:6]]
    shapes = measure_shapes(examples, processor, model, CONTRACT)
    real = collate([encode(one, processor, model, CONTRACT) for one in examples], 151_643)
    made = synthetic_batch(shapes, model, seed=1)
    for field in FIELDS:
        assert getattr(made, field).shape == getattr(real, field).shape, field
        assert getattr(made, field).dtype == getattr(real, field).dtype, field
    assert torch.equal(made.image_grid_thw, real.image_grid_thw)
    assert torch.equal((made.labels != -100).sum(dim=1), (real.labels != -100).sum(dim=1))
    assert torch.equal(made.mm_token_type_ids.sum(dim=1), real.mm_token_type_ids.sum(dim=1))
    # The first image starts at the same place, so that positions are computed over the same spans.
    assert (made.mm_token_type_ids[0].nonzero()[0] == real.mm_token_type_ids[0].nonzero()[0]).all()


def test_weights_of_examples_come_along_where_any_is_not_1(sample, processor, model):
    first, second = (encode(one, processor, model, CONTRACT) for one in (sample[0], sample[1].replace(weight=0.25)))
    batch = collate([first, second], 0)
    assert batch.weights is not None
    assert batch.weights.tolist() == [1.0, 0.25]
    assert batch.weights.dtype == torch.float32
    assert collate([first, first], 0).weights is None


def test_a_synthetic_batch_is_the_same_for_the_same_seed(model):
    shapes = [Shape(images=((56, 84),), text_tokens=30, supervised_tokens=9)]
    first, again, other = (synthetic_batch(shapes, model, seed=seed) for seed in (3, 3, 4))
    for field in ("input_ids", "pixel_values"):
        assert torch.equal(getattr(first, field), getattr(again, field))
        assert not torch.equal(getattr(first, field), getattr(other, field))


def test_synthetic_ids_are_text_or_the_models_markers(model):
    batch = synthetic_batch([Shape(images=((56, 56), (28, 84)), text_tokens=40, supervised_tokens=9)], model, seed=0)
    ids = batch.input_ids[0]
    assert ids[ids >= 151_643].tolist() == [151_652, *[151_655] * 4, 151_653, 151_652, *[151_655] * 3, 151_653]
    assert batch.labels[0, -9:].tolist() == ids[-9:].tolist()
    assert (batch.labels[0, :-9] == -100).all()


def test_a_synthetic_batch_may_have_no_image(model):
    batch = synthetic_batch([Shape(images=(), text_tokens=8, supervised_tokens=2)], model, seed=0)
    assert batch.pixel_values.shape == (0, 1176)
    assert batch.image_grid_thw.shape == (0, 3)


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        (Shape(images=((56, 60),), text_tokens=30, supervised_tokens=9), "56x60: both sides must be multiples of 28"),
        (Shape(images=((56, 56),), text_tokens=11, supervised_tokens=9), "11 text tokens are too few"),
        (Shape(images=(), text_tokens=9, supervised_tokens=9), "9 text tokens are too few"),
    ],
)
def test_a_shape_that_no_example_could_have_is_refused(model, shape, problem):
    with pytest.raises(UsageError, match=problem):
        synthetic_batch([shape], model, seed=0)


def test_a_model_whose_vocabulary_lacks_the_image_tokens_is_refused(model):
    small = {**model.config, "text_config": {**model.config["text_config"], "vocab_size": 1000}}
    with pytest.raises(UsageError, match="are not in a vocabulary of 1000"):
        synthetic_batch([Shape(images=(), text_tokens=8, supervised_tokens=2)], model.replace(config=small), seed=0)


def test_real_video_frames_become_batches(bikes, processor, model):
    encoded = [encode(example, processor, model, CONTRACT) for example in bikes]
    assert len(encoded) == 24
    batch = collate(encoded[:4], processor.tokenizer.pad_token_id)
    assert batch.image_grid_thw.tolist() == [[1, 20, 46]] * 4  # 640 x 272 becomes 644 x 280
    assert batch.pixel_values.shape == (4 * 920, 1176)
    assert batch.pixel_values.std() > 0.1
    for example, one in zip(bikes, encoded, strict=True):
        assert processor.tokenizer.decode(one.labels[one.labels != -100]) == example.answer + "<|im_end|>"
