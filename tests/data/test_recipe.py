"""What processors make of pictures: counts by running them, against known facts and against the models themselves."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from budgetft.data import recipe
from budgetft.data.processor import load_processor
from budgetft.errors import BudgetftError, UsageError
from budgetft.model import load_model
from budgetft.profiles import profiles_folder
from budgetft.value import read_json

MODELS = profiles_folder() / "models"
DESCRIBED = sorted(path.parent.name for path in MODELS.glob("*/tokens.json"))
ONE_EACH = sorted({read_json(MODELS / name / "config.json")["model_type"]: name for name in reversed(DESCRIBED)}.values())
"""One description of each model type."""

TINY_VISION = {
    "depth": 2,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 64,
    "mm_embed_dim": 64,
    "output_proj_dims": 64,
}
TINY_TEXT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@cache
def built(name: str) -> tuple[Any, int]:
    return recipe.build_processor(MODELS / name), recipe.placeholder_of(read_json(MODELS / name / "config.json"))


def seen(name: str, *sizes: tuple[int, int], seed: int = 0) -> recipe.Seen:
    return recipe.seen(*built(name), sizes, seed=seed)


def tiny_model(name: str) -> Any:
    """The described model with two narrow layers, and what decides the number of rows as described."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = read_json(MODELS / name / "config.json")
    text, vision = config["text_config"], config["vision_config"]
    text.update({**TINY_TEXT, "vocab_size": 300, "pad_token_id": 0, "num_kv_shared_layers": 0})
    text.pop("eos_token_id", None)
    if "audio_config" in config:
        config["audio_config"] = None
    if "vocab_size_per_layer_input" in text:
        text["vocab_size_per_layer_input"] = 300
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][:1] + text["layer_types"][-1:]
    vision.update({key: value for key, value in TINY_VISION.items() if key in vision})
    for part, key in (
        (vision, "out_hidden_size"),
        (vision, "projection_dim"),
        (config, "projection_dim"),
        (config, "hidden_size"),
    ):
        if key in part:
            part[key] = 64
    kind = config.pop("model_type")
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **config)).eval()


@pytest.mark.parametrize("name", DESCRIBED)
def test_every_description_with_special_tokens_makes_a_processor_that_counts_pictures(name: str) -> None:
    processor, placeholder = built(name)
    tokens, _ = recipe.tokens_of(processor, placeholder, [(448, 448)])
    assert tokens[0] > 0
    for token, number in read_json(MODELS / name / "tokens.json").items():
        assert processor.tokenizer.convert_tokens_to_ids(token) == number


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_ids_that_a_config_names_are_those_of_its_special_tokens(name: str) -> None:
    config, tokens = read_json(MODELS / name / "config.json"), read_json(MODELS / name / "tokens.json")
    named = {key: number for key, number in config.items() if key.startswith(("image", "boi", "eoi", "vision_st", "vision_e"))}
    ids = [number for key, number in named.items() if key.endswith(("token_id", "token_index"))]
    assert ids
    assert set(ids) <= set(tokens.values())


@pytest.mark.parametrize(
    ("name", "tokens", "text"),
    [
        ("qwen3.5-4b", 880, 0),
        ("gemma-3-4b", 256, 4),  # begin, end and an empty line on either side
        ("gemma-4-e2b", 264, 2),
        ("internvl3.5-8b", 2304, 2),  # 8 tiles and the whole
        ("ministral-3-8b", 1196, 26),  # 26 rows end in a mark
        ("lfm2.5-vl-1.6b", 764, 5),  # 2 tiles and the whole, each named
        ("llava-onevision-7b", 5967, 0),
        ("llava-1.5-7b", 576, 0),
        ("paddleocr-vl-0.9b", 1196, 0),
        ("glm-4.1v-9b", 1196, 0),
        ("llama-3.2-vision-11b", 1, 1),
        ("smolvlm2-2.2b", 13 * 81, 30),
    ],
)
def test_a_picture_of_1280_by_720_has_the_tokens_that_are_known_of_each_family(name: str, tokens: int, text: int) -> None:
    found = seen(name, (1280, 720))
    assert found.tokens == (tokens,)
    assert found.text_tokens == text


@pytest.mark.parametrize("name", [name for name in ONE_EACH if not name.startswith("llama-3.2")])
def test_the_model_itself_makes_a_row_for_every_placeholder(name: str) -> None:
    model = tiny_model(name)
    for sizes in ([(640, 480)], [(300, 200), (450, 900)]):
        found = seen(name, *sizes)
        with torch.no_grad():
            made = model.base_model.get_image_features(**found.inputs, return_dict=True).pooler_output
        rows = [made] if isinstance(made, torch.Tensor) else list(made)
        assert sum(row.reshape(-1, row.shape[-1]).shape[0] for row in rows) == sum(found.tokens)


@pytest.mark.parametrize("name", ONE_EACH)
def test_examples_run_one_by_one_and_joined_are_bit_for_bit_the_processors_own_batch(name: str) -> None:
    processor, _ = built(name)
    mark, end = recipe.image_mark(*built(name)), processor.tokenizer.eos_token
    examples = [[(300, 200)], [(200, 260), (420, 130)]]
    pictures = [[recipe.noise(*size, seed=9 * i + k) for k, size in enumerate(sizes)] for i, sizes in enumerate(examples)]
    texts = [end.join([mark] * len(sizes)) for sizes in examples]
    batch = processor(images=pictures, text=texts, return_tensors="pt", padding=True)
    parts = [recipe.seen(*built(name), sizes, seed=9 * i).inputs for i, sizes in enumerate(examples)]
    joined = recipe.joined(parts)
    assert set(joined) == set(batch) - set(recipe.TEXT_INPUTS)
    for key, value in joined.items():
        assert value.dtype == batch[key].dtype
        assert torch.equal(value, batch[key]), key


def test_pictures_of_one_example_are_counted_apart_and_in_order() -> None:
    alone = [seen("qwen3.5-4b", size).tokens[0] for size in ((640, 480), (320, 320), (640, 480))]
    assert list(seen("qwen3.5-4b", (640, 480), (320, 320), (640, 480)).tokens) == alone


def test_a_picture_whose_tokens_depend_on_its_neighbours_is_counted_with_them() -> None:
    assert seen("llava-onevision-7b", (640, 480)).tokens == (2929,)
    assert seen("llava-onevision-7b", (640, 480), (300, 900)).tokens == (730, 730)  # several images are not tiled


def test_an_example_without_pictures_has_no_tokens_and_no_inputs() -> None:
    assert seen("gemma-3-4b") == recipe.Seen(tokens=(), text_tokens=0, inputs={})


def test_a_size_seen_before_does_not_run_the_processor_again(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "llava-1.5-7b"
    first = seen(name, (333, 222)), recipe.tokens_of(*built(name), [(333, 222)])
    monkeypatch.setattr(recipe, "_ran", lambda *_: pytest.fail("ran again"))
    assert (seen(name, (333, 222)).tokens, recipe.tokens_of(*built(name), [(333, 222)])) == (first[0].tokens, first[1])


def test_a_processor_with_its_true_vocabulary_is_counted_as_its_grid_says() -> None:
    processor = load_processor(load_model("tiny-qwen2.5-vl"))
    found = recipe.seen(processor, processor.image_token_id, [(640, 480), (200, 300)])
    grids = found.inputs["image_grid_thw"]
    assert list(found.tokens) == (grids.prod(1) // 4).tolist()
    assert found.text_tokens == 0


@pytest.mark.parametrize("name", ["qwen3.5-4b", "glm-4.1v-9b", "paddleocr-vl-0.9b"])
def test_a_picture_too_elongated_is_refused_in_one_sentence_that_names_one_that_works(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        seen(name, (448, 448), (3000, 2))
    assert "3000x2" in caught.value.message
    assert caught.value.hint is not None
    works = caught.value.hint.split("pictures of ")[1].split(" ")[0]
    width, height = map(int, works.split("x"))
    assert seen(name, (width, height)).tokens[0] > 0


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(UsageError, match="0x20"):
        seen("gemma-3-4b", (0, 20))


def test_a_processor_that_fails_for_another_reason_is_not_blamed_on_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("out of order")

    monkeypatch.setattr(recipe, "_ran", broken)
    with pytest.raises(BudgetftError, match="out of order") as caught:
        seen("gemma-3-4b", (77, 78))
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("width", "height", "most", "expected"),
    [
        (1280, 720, None, (1280, 720)),
        (1280, 720, 921600, (1280, 720)),
        (1280, 720, 230400, (640, 360)),
        (1000, 10, 100, (100, 1)),
        (10, 1000, 100, (1, 100)),
        (7, 5, 1, (1, 1)),
    ],
)
def test_a_picture_is_shrunk_to_the_pixels_allowed_and_keeps_its_shape(
    width: int, height: int, most: int | None, expected: tuple[int, int]
) -> None:
    assert recipe.shrunk(width, height, most) == expected


def test_a_shrunk_picture_never_has_more_pixels_than_allowed_nor_far_fewer() -> None:
    for width, height in ((1920, 1080), (300, 900), (4000, 31), (17, 9999), (640, 481)):
        for most in (999, 50_176, 200_704, 1_000_000):
            found = recipe.shrunk(width, height, most)
            assert found[0] * found[1] <= max(most, 1)
            if width * height > most:
                # A whole number of pixels less on either side at most.
                assert (found[0] + 1) * (found[1] + 1) > most


def test_impossible_pictures_and_limits_are_refused() -> None:
    for width, height, most in ((0, 5, 10), (5, 5, 0)):
        with pytest.raises(UsageError, match="not possible"):
            recipe.shrunk(width, height, most)


def test_the_placeholder_is_read_under_either_name_and_its_absence_is_said() -> None:
    assert recipe.placeholder_of({"image_token_id": 5}) == 5
    assert recipe.placeholder_of({"image_token_index": 7}) == 7
    with pytest.raises(UsageError, match="no image placeholder"):
        recipe.placeholder_of({"model_type": "llama"})


def test_pictures_packed_on_the_last_dimension_are_joined_there_and_their_sizes_on_the_first() -> None:
    parts = [{"pixel_values": torch.ones(1, 3, 2, n), "target_sizes": torch.tensor([[1, n]])} for n in (4, 6)]
    joined = recipe.joined(parts, stack_on=-1)
    assert joined["pixel_values"].shape == (1, 3, 2, 10)
    assert joined["target_sizes"].tolist() == [[1, 4], [1, 6]]


def test_examples_without_pictures_are_left_out_of_the_joined_inputs() -> None:
    one = {"pixel_values": torch.ones(2, 3)}
    assert torch.equal(recipe.joined([{}, one, {}])["pixel_values"], one["pixel_values"])
    assert recipe.joined([{}, {}]) == {}


def copied(name: str, folder: Path, **changes: Any) -> Path:
    """A description folder with files replaced; ``None`` leaves one out."""
    for path in (MODELS / name).iterdir():
        content = changes.get(path.stem, read_json(path))
        if content is not None:
            (folder / path.name).write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": None}, "has no tokens.json"),
        ({"tokens": {"<s>": 1}}, "no token has the id 32000"),
        ({"tokens": {"<image>": 32000, "<s>": 32000}}, "same id"),
        ({"tokens": {"<image>": 32000, "<s>": "1"}}, "whole number"),
        ({"preprocessor_config": None, "processor_config": None}, "neither processor_config.json"),
        ({"processor_config": {"processor_class": "NoProcessor"}}, "no processor 'NoProcessor'"),
        ({"preprocessor_config": {"image_processor_type": "NoSuchThing"}}, "cannot be made"),
    ],
)
def test_a_folder_whose_processor_cannot_be_made_is_refused_in_one_sentence(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BudgetftError) as caught:
        recipe.build_processor(copied("llava-1.5-7b", tmp_path, **changes))
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_package_that_a_processor_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wants(*_: Any) -> Any:
        raise ImportError("LlavaProcessor requires the somelib library")

    monkeypatch.setattr(recipe, "_without_num2words", wants)
    with pytest.raises(BudgetftError, match="somelib"):
        recipe.build_processor(MODELS / "llava-1.5-7b")


def test_smolvlm_needs_no_package_that_spells_numbers_and_the_stand_in_is_taken_away() -> None:
    from transformers.models.smolvlm import processing_smolvlm

    before = processing_smolvlm.num2words
    assert recipe.build_processor(MODELS / "smolvlm2-256m").image_token == "<image>"
    assert processing_smolvlm.num2words is before
