"""Frames of a video are encoded as the processor of each family does it, with pixels or with cached features."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from budgetft.contract import Contract
from budgetft.data.collate import collate, encode, synthetic_batch
from budgetft.data.examples import read_dataset, write_dataset
from budgetft.data.features import find_pictures
from budgetft.data.processor import load_processor
from budgetft.data.stats import measure_shapes
from budgetft.data.visuals import block_patches, blocks_of, prompt_text
from budgetft.errors import UsageError
from budgetft.model import load_model
from budgetft.workload import Shape

CONTRACT = Contract()
FAMILIES = ("tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl")
FPS = 0.7


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    model = load_model(request.param)
    return model, load_processor(model)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frames")
    noise = np.random.default_rng(0)
    for number in range(5):
        pixels = noise.integers(0, 255, (224, 448, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def video_of(example, folder, count):
    images = tuple(str(folder / f"{number}.png") for number in range(count))
    return example.replace(images=images, video_fps=FPS)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_video_is_encoded_as_the_familys_processor_does_it(family, example, frames, count):
    model, processor = family
    video = video_of(example, frames, count)
    encoded = encode(video, processor, model, CONTRACT)
    pictures = [Image.open(path) for path in video.images]
    message = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": video.prompt}]}
    text = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    # Each frame is from the middle of its part; at one frame a second the processor tells their own numbers as seconds.
    metadata = {"total_num_frames": count, "fps": 1.0, "frames_indices": [(frame + 0.5) / FPS for frame in range(count)]}
    reference = processor(
        text=[text + video.answer + "<|im_end|>"],
        videos=[pictures],
        videos_kwargs={
            "do_sample_frames": False,
            "video_metadata": [metadata],
            "do_resize": False,  # 448 x 224: a multiple of 28 and of 32
        },
        return_tensors="pt",
    )
    assert torch.equal(encoded.input_ids, reference["input_ids"][0])
    assert torch.equal(encoded.mm_token_type_ids, reference["mm_token_type_ids"][0])
    assert torch.equal(encoded.image_grid_thw, reference["video_grid_thw"])
    assert torch.equal(encoded.pixel_values, reference["pixel_values_videos"])
    if model.family == "qwen2_5_vl":
        assert encoded.second_per_grid_ts.tolist() == pytest.approx([2 / FPS])


@pytest.mark.parametrize("count", [1, 4, 5])
def test_the_shape_of_a_video_is_that_of_its_tokens(family, example, frames, count):
    model, processor = family
    video = video_of(example, frames, count)
    encoded = encode(video, processor, model, CONTRACT)
    (shape,) = measure_shapes([video], processor, model, CONTRACT)
    assert shape.total_tokens(model.pixel_step) == len(encoded.input_ids)
    assert shape.visual_tokens(model.pixel_step) == int((encoded.input_ids == processor.video_token_id).sum())
    assert (shape.frames, len(shape.images)) == (count, -(-count // 2))


def test_a_video_brings_no_more_text_than_is_predicted_of_it(family, example, frames):
    model, processor = family
    video, image = video_of(example, frames, 5), video_of(example, frames, 1).replace(video_fps=None)
    found, one = measure_shapes([video, image], processor, model, CONTRACT)
    assert found.text_tokens <= one.with_frames(5, model, video=True).text_tokens <= found.text_tokens + 3
    assert one.with_frames(5, model, video=True).images == found.images


def test_the_slices_of_a_video_have_the_patches_that_the_video_has(family, example, frames):
    model, processor = family
    video = video_of(example, frames, 5)
    blocks = blocks_of(video, model)
    assert [len(block) for block in blocks] == [2, 2, 1]  # the last frame stands for itself twice
    parts = [block_patches(block, processor, model, CONTRACT)[0] for block in blocks]
    assert torch.equal(torch.cat(parts), encode(video, processor, model, CONTRACT).pixel_values)


@pytest.mark.parametrize("count", [2, 5])
def test_a_video_with_features_is_encoded_as_the_one_with_pixels(family, example, frames, count):
    model, processor = family
    video = video_of(example, frames, count)
    found = {each.block: each for each in find_pictures([video], model, CONTRACT)}
    made = {block: torch.randn(each.visual_tokens(model.pixel_step), model.feature_width) for block, each in found.items()}
    pixels = encode(video, processor, model, CONTRACT)
    cached = encode(video, processor, model, CONTRACT, features_of=made.__getitem__)
    for field in ("input_ids", "labels", "mm_token_type_ids", "image_grid_thw", "second_per_grid_ts"):
        assert torch.equal(getattr(pixels, field), getattr(cached, field)), field
    assert torch.equal(cached.features, torch.cat(list(made.values())))


def test_a_slice_is_known_by_both_of_its_frames_and_their_order(example, frames):
    model = load_model("tiny-qwen2.5-vl")
    video = video_of(example, frames, 2)
    first, second = video.images
    one, turned, alone = (
        find_pictures([video.replace(images=images)], model, CONTRACT) for images in (video.images, (second, first), (first,))
    )
    (image,) = find_pictures([video.replace(images=(first,), video_fps=None)], model, CONTRACT)
    assert len({one[0].digest, turned[0].digest, alone[0].digest}) == 3
    assert alone[0].digest == image.digest


def test_a_batch_of_images_and_videos_says_which_is_which(family, example, frames):
    model, processor = family
    image = video_of(example, frames, 2).replace(video_fps=None)
    video = video_of(example, frames, 4)
    batch = collate([encode(each, processor, model, CONTRACT) for each in (image, video, image)], 0)
    assert batch.second_per_grid_ts is not None
    assert (batch.second_per_grid_ts > 0).tolist() == [False, False, True, False, False]
    assert batch.image_grid_thw[:, 0].tolist() == [1, 1, 2, 1, 1]
    assert sorted(set(batch.mm_token_type_ids[1].tolist())) == [0, 2]


def test_frames_of_several_sizes_are_refused_by_name(example, frames, tmp_path):
    model = load_model("tiny-qwen2.5-vl")
    processor = load_processor(model)
    other = tmp_path / "other.png"
    Image.new("RGB", (60, 100)).save(other)
    video = video_of(example, frames, 2)
    odd = video.replace(images=(*video.images, str(other)))
    with pytest.raises(
        UsageError,
        match=r"example 'one': .* one size: the first is 448x224, .*other\.png is 56x112",
    ):
        encode(odd, processor, model, CONTRACT)
    with pytest.raises(UsageError, match=r"example 'one': frames of one video must be of one size"):
        measure_shapes([odd], processor, model, CONTRACT)


def test_a_made_up_video_has_its_shape_even_where_text_is_scarce(family):
    model, _ = family
    edge = model.pixel_step
    text = 4 + 2 * (32 if model.slices_apart else 1)
    shape = Shape(images=((edge, edge),) * 32, text_tokens=text, supervised_tokens=2, frames=64)
    batch = synthetic_batch([shape], model, seed=0)
    assert batch.input_ids.shape == (1, text + 32)
    assert batch.image_grid_thw.tolist() == [[32, model.merge_size, model.merge_size]]
    assert int((batch.mm_token_type_ids == 2).sum()) == 32
    with pytest.raises(UsageError, match="too few"):
        synthetic_batch([shape.replace(text_tokens=4)], model, seed=0)


def test_a_dataset_keeps_the_rate_of_a_video_and_is_another_for_it(example, frames, tmp_path):
    video = video_of(example, frames, 3)
    written = write_dataset([video], tmp_path / "video", images_root=frames)
    images = write_dataset([video.replace(video_fps=None)], tmp_path / "images", images_root=frames)
    assert read_dataset(tmp_path / "video")[0].video_fps == FPS
    assert images[0].video_fps is None
    assert written.fingerprint != images.fingerprint


def test_a_dataset_from_before_there_were_videos_is_read_and_keeps_its_fingerprint(example, frames, tmp_path):
    import datasets

    image = video_of(example, frames, 1).replace(video_fps=None)
    now = write_dataset([image], tmp_path / "now", images_root=frames)
    table = datasets.Dataset.load_from_disk(str(tmp_path / "now")).remove_columns("video_fps")
    table.save_to_disk(str(tmp_path / "old"))
    shutil.copytree(tmp_path / "now" / "images", tmp_path / "old" / "images")
    old = read_dataset(tmp_path / "old")
    assert old[0].video_fps is None
    assert old.fingerprint == now.fingerprint


def test_a_prompt_has_one_placeholder_for_a_whole_video(family, example, frames):
    _, processor = family
    text = prompt_text(video_of(example, frames, 4), processor)
    assert text.count("<|video_pad|>") == 1
    assert "<|image_pad|>" not in text
