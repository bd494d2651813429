"""A feature cache gives back what was put in, or says why not."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from budgetft.contract import Contract
from budgetft.data import features
from budgetft.data.collate import collate, encode
from budgetft.data.examples import Example, write_dataset
from budgetft.data.features import (
    KEY_FILE,
    FeatureCache,
    FeatureKey,
    FeatureWriter,
    Picture,
    check_free_space,
    create_cache,
    feature_bytes,
    find_pictures,
)
from budgetft.data.processor import load_processor
from budgetft.data.visuals import block_patches
from budgetft.errors import BudgetftError, UsageError
from budgetft.model import load_model

CONTRACT = Contract()
KEY = FeatureKey(tower="t", weights="w", min_pixels=784, max_pixels=200_704, precision="fp32", width=6)


def damaged_never(path: Path) -> None:
    raise AssertionError(path)


@pytest.fixture
def cache(tmp_path):
    """Three images' features in two files."""
    folder = tmp_path / "cache"
    create_cache(folder, KEY, on_damaged=damaged_never)
    tensors = {name: torch.full((tokens, 6), float(tokens)) for name, tokens in (("a", 2), ("b", 3), ("c", 4))}
    with FeatureWriter(folder, shard_bytes=5 * 6 * 4) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
    return folder, tensors


def test_what_was_written_is_read_back_exactly(cache):
    folder, tensors = cache
    assert len(list(folder.glob("*.safetensors"))) == 2
    opened = FeatureCache(folder, KEY)
    assert len(opened) == 3
    assert all(torch.equal(opened.read(name), tensor) for name, tensor in tensors.items())
    assert "d" not in opened


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_features_are_read_back_bit_for_bit(tmp_path, precision):
    key = KEY.replace(precision=precision)
    create_cache(tmp_path, key, on_damaged=damaged_never)
    tensor = torch.randn(5, 6).to({"fp16": torch.float16, "bf16": torch.bfloat16}[precision])
    with FeatureWriter(tmp_path) as writer:
        writer.add("a", tensor)
    found = FeatureCache(tmp_path, key).read("a")
    assert found.dtype == tensor.dtype
    assert torch.equal(found.view(torch.int16), tensor.view(torch.int16))


def test_writing_goes_on_where_it_was_left(cache):
    folder, _ = cache
    (folder / ".left-by-a-kill.part").write_bytes(b"half")
    (folder / ".tmpLeft").write_bytes(b"half")
    create_cache(folder, KEY, on_damaged=damaged_never)
    with FeatureWriter(folder) as writer:
        writer.add("d", torch.zeros(1, 6))
    assert len(FeatureCache(folder, KEY)) == 4
    assert not list(folder.glob(".*.part")) + list(folder.glob(".tmp*"))


@pytest.mark.parametrize("cut", [1, 100, 10_000])
def test_a_truncated_file_is_refused_and_its_images_are_computed_again(cache, cut):
    folder, _ = cache
    shard = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(UsageError, match=f"{shard.name} is damaged"):
        FeatureCache(folder, KEY)
    told: list[Path] = []
    left = create_cache(folder, KEY, on_damaged=told.append)
    assert told == [shard]
    assert len(left) == 1


def test_a_file_with_tensors_of_another_kind_is_damaged(cache):
    from safetensors.torch import save_file

    folder, _ = cache
    for tensor in (torch.zeros(2, 7), torch.zeros(2, 6, dtype=torch.float16), torch.zeros(6)):
        save_file({"x": tensor}, folder / "odd.safetensors")
        with pytest.raises(UsageError, match="damaged"):
            FeatureCache(folder, KEY)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": "other"}, "of other weights"),
        ({"tower": "other"}, "of another vision tower"),
        ({"max_pixels": 1}, "its max_pixels is 200704, not 1"),
        ({"precision": "fp16"}, "its precision is fp32, not fp16"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_the_reason(cache, change, reason):
    folder, _ = cache
    other = KEY.replace(**change)
    with pytest.raises(UsageError, match=reason):
        FeatureCache(folder, other)
    with pytest.raises(UsageError, match=reason):
        create_cache(folder, other, on_damaged=damaged_never)
    assert len(FeatureCache(folder, other, ignore=tuple(change))) == 3


def test_what_is_no_cache_is_left_alone(tmp_path):
    with pytest.raises(UsageError, match="no feature cache"):
        FeatureCache(tmp_path / "none", KEY)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="not empty"):
        create_cache(tmp_path, KEY, on_damaged=damaged_never)
    with pytest.raises(UsageError, match="not a folder"):
        create_cache(tmp_path / "thesis.txt", KEY, on_damaged=damaged_never)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / KEY_FILE).write_text('{"version": 1, "tower"')
    with pytest.raises(UsageError, match="not JSON"):
        FeatureCache(tmp_path, KEY)


def test_a_full_disk_keeps_what_was_written_and_leaves_nothing_half(cache, monkeypatch):
    folder, _ = cache
    before = sorted(path.name for path in folder.iterdir())

    def refuse(tensors, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", refuse)
    with (
        pytest.raises(BudgetftError, match="disk is full; the features of 0 images"),
        FeatureWriter(folder, shard_bytes=1) as w,
    ):
        w.add("d", torch.zeros(1, 6))
    assert sorted(path.name for path in folder.iterdir()) == before
    assert len(FeatureCache(folder, KEY)) == 3


def test_one_process_writes_at_a_time(cache):
    folder, _ = cache
    with FeatureWriter(folder), pytest.raises(UsageError, match="another process"), FeatureWriter(folder):
        pass


def test_what_does_not_fit_the_disk_is_refused_before_it_is_computed(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_free_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(BudgetftError, match="free"):
        check_free_space(tmp_path / "not" / "yet", 2 * free)


def test_the_cost_on_disk_counts_equal_images_once():
    model = load_model("qwen2.5-vl-3b")
    one = Picture(block=("a.jpg",), digest="1", width=448, height=448)
    synthetic, other = (
        Picture(block=("b.jpg",), digest="1", width=448, height=448),
        Picture(block=("c",), digest="2", width=28, height=56),
    )
    assert feature_bytes([one, synthetic], model, "fp16") == 256 * 2048 * 2
    assert feature_bytes([one, synthetic, other], model, "fp32") == (256 + 2) * 2048 * 4
    deep = load_model("qwen3-vl-4b")
    picture = Picture(block=("a.jpg",), digest="1", width=448, height=448)
    assert feature_bytes([picture], deep, "fp16") == 14 * 14 * 2560 * (1 + 3) * 2


def test_every_image_is_found_once_with_its_content_and_size(sample):
    model = load_model("tiny-qwen2.5-vl")
    pictures = find_pictures(sample, model, CONTRACT)
    assert [each.block for each in pictures] == list(dict.fromkeys((path,) for example in sample for path in example.images))
    assert all(Path(each.block[0]).stem == each.digest[:24] for each in pictures)
    smaller = find_pictures(sample, model, Contract(max_pixels=28 * 28 * 4))
    assert max(each.visual_tokens(28) for each in smaller) <= 4


def test_what_was_kept_of_pictures_that_were_shown_otherwise_is_not_used_again_and_all_else_is(tmp_path):
    import hashlib

    from media import exif, jpeg_with, png, tiff

    pixels = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    (tmp_path / "plain.jpg").write_bytes(b"")
    Image.fromarray(pixels).save(tmp_path / "plain.jpg")
    plain = (tmp_path / "plain.jpg").read_bytes()
    grey = pixels[..., :1]
    always = {
        "plain.jpg": plain,
        "upright.jpg": jpeg_with(plain, (0xE1, b"Exif\0\0" + exif(1))),
        "rgba.png": png(np.concatenate([pixels, grey], 2), 6, 8),
        "turned.tif": tiff([pixels], (0, 274, 6)),
    }
    anew = {
        "turned.jpg": jpeg_with(plain, (0xE1, b"Exif\0\0" + exif(6))),
        "grey alpha.png": png(np.concatenate([grey, grey], 2), 4, 8),
        "key.png": png(pixels, 2, 8, (b"tRNS", bytes(6))),
        "linear.png": png(pixels, 2, 8, (b"gAMA", (100_000).to_bytes(4, "big"))),
    }
    for name, content in {**always, **anew}.items():
        (tmp_path / name).write_bytes(content)
    model = load_model("tiny-qwen2.5-vl")
    examples = [Example(id=name, images=(str(tmp_path / name),), prompt="?", answer="!") for name in (*always, *anew)]
    found = {Path(each.block[0]).name: each for each in find_pictures(examples, model, CONTRACT)}
    for name, content in {**always, **anew}.items():
        same = found[name].digest == hashlib.sha256(content).hexdigest()
        assert same is (name in always), name
    sideways = {name: (one.width, one.height) == (56, 84) for name, one in found.items()}
    assert [name for name, turned in sideways.items() if turned] == ["turned.tif", "turned.jpg"]


def test_changed_and_missing_images_are_refused_all_at_once(example, picture, tmp_path):
    from PIL import Image

    examples = write_dataset([example], tmp_path / "data", images_root=picture.parent)
    (stored,) = examples[0].images
    Image.new("RGB", (50, 50)).save(stored)
    gone = Example(id="two", images=(str(tmp_path / "gone.png"),), prompt="?", answer="!")
    with pytest.raises(UsageError, match="2 problems") as caught:
        find_pictures([*examples, gone], load_model("tiny-qwen2.5-vl"), CONTRACT)
    assert "was changed since" in caught.value.message
    assert "gone.png" in caught.value.message


@pytest.mark.parametrize("name", ["tiny-qwen2.5-vl", "tiny-qwen2-vl", "tiny-qwen3-vl"])
def test_an_example_with_features_is_encoded_as_the_one_with_pixels(sample, name):
    model = load_model(name)
    processor = load_processor(model)
    sizes = {each.block: each for each in find_pictures(sample, model, CONTRACT)}
    made = {block: torch.randn(each.visual_tokens(model.pixel_step), model.feature_width) for block, each in sizes.items()}
    first = sample[0]
    two = first.replace(images=(first.images[0], sample[1].images[0]))
    pairs = [
        (encode(each, processor, model, CONTRACT), encode(each, processor, model, CONTRACT, features_of=made.__getitem__))
        for each in (first, two)
    ]
    for pixels, cached in pairs:
        for field in ("input_ids", "labels", "mm_token_type_ids", "image_grid_thw"):
            assert torch.equal(getattr(pixels, field), getattr(cached, field)), field
        assert pixels.features is None
        assert len(cached.pixel_values) == 0
    batch = collate([cached for _, cached in pairs], pad_token_id=0)
    assert batch.features is not None
    assert torch.equal(batch.features, torch.cat([made[path,] for each in (first, two) for path in each.images]))


def test_features_of_another_size_are_refused_by_name(sample):
    model = load_model("tiny-qwen2.5-vl")
    short = torch.zeros(1, model.feature_width)
    with pytest.raises(UsageError, match=r"visual tokens, its features 1"):
        encode(sample[0], load_processor(model), model, CONTRACT, features_of=lambda path: short)


def test_an_image_is_cut_into_the_patches_that_an_example_has(sample):
    model = load_model("tiny-qwen2.5-vl")
    processor = load_processor(model)
    whole = encode(sample[0], processor, model, CONTRACT)
    parts = [block_patches((path,), processor, model, CONTRACT) for path in sample[0].images]
    assert torch.equal(torch.cat([patches for patches, _ in parts]), whole.pixel_values)
    assert torch.equal(torch.cat([grid for _, grid in parts]), whole.image_grid_thw)


def test_the_defaults_write_a_quarter_of_a_gibibyte_at_a_time(tmp_path):
    assert FeatureWriter(tmp_path)._shard_bytes == features.SHARD_BYTES == 2**28
