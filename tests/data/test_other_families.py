"""Data of families other than Qwen-VL, against their own processors and against what their models make of it."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from budgetft.asked import Typed
from budgetft.contract import Contract
from budgetft.data import recipe
from budgetft.data.collate import Encoded, collate, encode, synthetic_batch
from budgetft.data.conversation import Message, Part
from budgetft.data.encode_other import picture_inputs
from budgetft.data.examples import Example
from budgetft.data.features import find_pictures
from budgetft.data.preview import preview
from budgetft.data.processor import load_processor
from budgetft.data.shapes import counts, shape_of, with_frames
from budgetft.data.stats import measure_shapes
from budgetft.data.survey import survey
from budgetft.data.turns import end_ids
from budgetft.errors import BudgetftError, UsageError
from budgetft.model import load_model
from budgetft.workload import Shape, Workload
from tests.other_models import NAMES, write_folder

CONTRACT = Contract(max_pixels=8000)
CHATTING = [name for name in NAMES if name != "paligemma2"]
APART = ("qwen3_5", "mllama")
"""A token of this vocabulary would reach from the prompt into the answer: they are tokenized apart, as at inference."""
IMAGE = Part(type="image")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Any:
    root = tmp_path_factory.mktemp("models")
    return cache(lambda name: write_folder(root / name, name))


@pytest.fixture(scope="module")
def opened(folders) -> Any:
    def both(name: str) -> tuple[Any, Any]:
        model = load_model(str(folders(name)))
        return load_processor(model), model

    both("llava")  # loads transformers, which no test is to wait for
    return both


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> tuple[str, ...]:
    root = tmp_path_factory.mktemp("pictures")
    found = []
    for number, (width, height) in enumerate([(100, 60), (60, 100), (90, 70)]):
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        found.append(str(root / f"{number}.png"))
    return tuple(found)


@pytest.fixture(scope="module")
def examples(pictures) -> list[Example]:
    return [
        Example(id="one", images=pictures[:1], prompt="What is it?", answer="It is red."),
        Example(id="two", images=pictures[:2], prompt="And what are those two?", answer="Blue."),
    ]


def label_text(encoded: Encoded, processor: Any) -> str:
    return processor.tokenizer.decode(encoded.labels[encoded.labels != -100])


def own_batch(name: str, processor: Any, examples: list[Example], *, answered: bool) -> Any:
    """What the processor itself makes of all of them at once, padded on the right; not ``answered``, of the prompts."""
    images = [[Image.open(path).convert("RGB") for path in one.images] for one in examples]
    padded: dict[str, Any] = {"padding": True, "padding_side": "right", "return_tensors": "pt"}
    if name == "paligemma2":
        texts = ["<image>" * len(one.images) + one.prompt for one in examples]
        given = {"text": texts, **({"suffix": [one.answer for one in examples]} if answered else {})}
        return processor(images=images, **padded, **given)
    texts = []
    for one in examples:
        user = [*({"type": "image"} for _ in one.images), {"type": "text", "text": one.prompt}]
        answer = [{"type": "text", "text": one.answer}]
        said = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        if answered:
            texts.append(processor.apply_chat_template(said).rstrip() + ("</s>" if name == "llava" else ""))
        else:
            texts.append(processor.apply_chat_template(said[:1], add_generation_prompt=True))
    bos = processor.tokenizer.bos_token
    special = bos is None or not texts[0].startswith(bos)
    return processor(images=images, text=texts, add_special_tokens=special, **padded)


@pytest.mark.parametrize(
    ("name", "answered"), [(name, True) for name in NAMES if name not in APART] + [(name, False) for name in NAMES]
)
def test_a_batch_is_bit_for_bit_the_processors_own(name, answered, opened, examples):
    processor, model = opened(name)
    encoded = [encode(one, processor, model, CONTRACT, answered=answered) for one in examples]
    batch = collate(encoded, processor.tokenizer.pad_token_id)
    own = own_batch(name, processor, examples, answered=answered)
    assert torch.equal(batch.input_ids, own["input_ids"])
    assert batch.attention_mask is not None
    assert torch.equal(batch.attention_mask, own["attention_mask"])
    skipped = {"input_ids", "attention_mask", "labels", "token_type_ids", "mm_token_type_ids"}
    assert set(batch.images) == set(own) - skipped
    for key, value in batch.images.items():
        assert value.dtype == own[key].dtype
        assert torch.equal(value, own[key]), key
    assert batch.pixel_values.numel() == batch.image_grid_thw.numel() == 0
    if model.facts.answers_marked and answered:
        labels = own["labels"].masked_fill(own["attention_mask"] == 0, -100)
        assert torch.equal(batch.labels, labels)
    elif not model.facts.answers_marked and (types := own.get(model.facts.token_types or "")) is not None:
        assert torch.equal(batch.mm_token_type_ids, types)


@pytest.mark.parametrize("name", NAMES)
def test_only_answers_and_the_ends_of_their_turns_are_learned(name, opened, examples):
    ends = {"llava": "</s>", "idefics3": "<end_of_utterance>", "gemma3": "<end_of_turn>", "paligemma2": "<eos>"}
    processor, model = opened(name)
    encoded = encode(examples[0], processor, model, CONTRACT)
    starts = {"llava": " ", "idefics3": " ", "qwen3_5": "\n</think>\n\n"}
    end = "<|eot_id|>" if name == "mllama" else ends.get(name, "<|im_end|>")
    assert label_text(encoded, processor) == f"{starts.get(name, '')}It is red.{end}"
    assert not ((encoded.labels != -100) & (encoded.mm_token_type_ids > 0)).any()


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_what_the_encoder_makes_and_nothing_of_a_picture_is_decoded(name, opened, examples, monkeypatch):
    processor, model = opened(name)
    encoded = [encode(one, processor, model, CONTRACT) for one in examples]
    monkeypatch.setattr("budgetft.data.encode_other.load_image", lambda path: pytest.fail("decoded"))
    shapes = measure_shapes(examples, processor, model, CONTRACT)
    for shape, one in zip(shapes, encoded, strict=True):
        assert shape.total_tokens(model.pixel_step) == len(one.input_ids)
        assert shape.visual_tokens(model.pixel_step) == int(one.mm_token_type_ids.sum())
        assert shape.supervised_tokens == int((one.labels != -100).sum())
    assert [one.visual for one in survey(examples, processor, model, CONTRACT).counted] == [
        shape.visual_tokens(1) for shape in shapes
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_synthetic_batch_has_the_shapes_of_a_real_one(name, opened, examples):
    processor, model = opened(name)
    shapes = measure_shapes(examples, processor, model, CONTRACT)
    real = collate([encode(one, processor, model, CONTRACT) for one in examples], 0)
    made, again = (synthetic_batch(shapes, model, seed=1) for _ in range(2))
    for field in ("input_ids", "labels", "mm_token_type_ids", "attention_mask"):
        assert getattr(made, field).shape == getattr(real, field).shape, field
    assert {key: (value.shape, value.dtype) for key, value in made.images.items()} == {
        key: (value.shape, value.dtype) for key, value in real.images.items()
    }
    assert torch.equal((made.labels != -100).sum(dim=1), (real.labels != -100).sum(dim=1))
    assert torch.equal(made.mm_token_type_ids.sum(dim=1), real.mm_token_type_ids.sum(dim=1))
    assert torch.equal(made.input_ids, again.input_ids)
    assert not torch.equal(made.input_ids, synthetic_batch(shapes, model, seed=2).input_ids)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mllama"])
def test_the_model_makes_a_row_for_every_placeholder(name, folders, opened, examples):
    from transformers import AutoConfig, AutoModelForImageTextToText

    processor, model = opened(name)
    base: Any = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folders(name)))
    real = collate([encode(one, processor, model, CONTRACT) for one in examples], 0)
    made = synthetic_batch(measure_shapes(examples, processor, model, CONTRACT), model, seed=0)
    for batch in (real, made):
        with torch.no_grad():
            found = base.base_model.get_image_features(**batch.images, return_dict=True).pooler_output
        rows = [found] if isinstance(found, torch.Tensor) else list(found)
        assert sum(row.reshape(-1, row.shape[-1]).shape[0] for row in rows) == int(batch.mm_token_type_ids.sum())


@pytest.mark.parametrize("name", NAMES)
def test_with_cached_vision_a_synthetic_batch_has_features_and_no_pixels(name, opened, examples):
    processor, model = opened(name)
    shapes = measure_shapes(examples, processor, model, CONTRACT)
    batch = synthetic_batch(shapes, model, seed=0, vision="cached")
    assert batch.features is not None
    assert batch.features.shape == (int(batch.mm_token_type_ids.sum()), 64)
    assert not any(key.startswith("pixel") for key in batch.images)


@pytest.mark.parametrize("name", ["llava", "internvl", "qwen3_5"])
def test_features_stand_for_pixels_in_a_real_example_too(name, opened, examples):
    processor, model = opened(name)
    plain = encode(examples[1], processor, model, CONTRACT)
    tokens = measure_shapes(examples, processor, model, CONTRACT)[1].tokens or ()
    counted = enumerate(zip(examples[1].images, tokens, strict=True))
    rows = {path: torch.full((count, 64), float(place)) for place, (path, count) in counted}
    found = encode(examples[1], processor, model, CONTRACT, features_of=lambda block: rows[block[0]])
    assert torch.equal(found.input_ids, plain.input_ids)
    assert torch.equal(found.labels, plain.labels)
    assert found.features is not None
    assert torch.equal(found.features, torch.cat([*rows.values()]))
    assert {key: value.tolist() for key, value in found.images.items()} == {
        key: value.tolist() for key, value in plain.images.items() if not key.startswith("pixel")
    }
    with pytest.raises(UsageError, match="visual tokens, its features 1"):
        encode(examples[1], processor, model, CONTRACT, features_of=lambda block: torch.zeros(1, 64))


@pytest.mark.parametrize("name", ["llava", "internvl", "gemma3"])
def test_inputs_of_a_picture_alone_are_those_of_an_example_with_it(name, opened, examples):
    processor, model = opened(name)
    alone = picture_inputs(examples[0].images[0], processor, model, CONTRACT)
    assert {key: value.tolist() for key, value in alone.items()} == {
        key: value.tolist() for key, value in encode(examples[0], processor, model, CONTRACT).images.items()
    }


@pytest.mark.parametrize("name", CHATTING)
def test_every_learned_answer_of_several_turns_is_learned_in_its_place(name, opened, pictures):
    processor, model = opened(name)
    talk = (
        Message.of("user", IMAGE, "What is it?"),
        Message.of("assistant", "A red ball.", learn=True),
        Message.of("user", IMAGE, "And this?"),
        Message.of("assistant", "A cube.", learn=True),
    )
    encoded = encode(Example.talk(talk, id="talk", images=pictures[:2]), processor, model, CONTRACT)
    learned = label_text(encoded, processor)
    assert learned.index("A red ball.") < learned.index("A cube.")
    assert "this" not in learned
    first = (encoded.labels == -100).nonzero()[:, 0]
    answer = int((encoded.labels != -100).nonzero()[0])
    told = processor.tokenizer.decode(encoded.input_ids[answer:])
    assert told.lstrip().startswith("A red ball.")
    assert (first > answer).any()


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("llava", "</s>"),
        ("gemma3", "<end_of_turn>"),
        ("mllama", "<|eot_id|>"),
        ("paligemma2", "<eos>"),
        ("qwen3_5", "<|im_end|>"),
    ],
)
def test_an_answer_ends_where_its_learned_turn_does(name, end, opened):
    processor, model = opened(name)
    ends = end_ids(processor, model)
    assert ends[0] == processor.tokenizer.convert_tokens_to_ids(end)
    assert processor.tokenizer.eos_token_id in ends
    assert processor.tokenizer.pad_token_id in ends


def test_an_answer_that_the_template_writes_otherwise_than_it_asks_stands_after_the_prompt(folders, tmp_path, examples):
    template = (
        "{%- for message in messages -%}<|im_start|>{{ message['role'] }}\n{%- for part in message['content'] -%}"
        "{{- 'MARK' if part['type'] == 'image' else part['text'] -}}{%- endfor -%}<|im_end|>\n{%- endfor -%}"
        "{%- if add_generation_prompt -%}<|im_start|>assistant\n<think>off</think>{%- endif -%}"
    )
    model = load_model(str(write_folder(tmp_path / "m", "internvl", template=template)))
    processor = load_processor(model)
    encoded = encode(examples[0], processor, model, CONTRACT)
    assert label_text(encoded, processor) == "It is red.<|im_end|>"
    prompt = encode(examples[0], processor, model, CONTRACT, answered=False).input_ids
    assert torch.equal(encoded.input_ids[: len(prompt)], prompt)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_learned_follows_on_the_prompt_that_inference_gives(name, opened, examples):
    processor, model = opened(name)
    whole = encode(examples[1], processor, model, CONTRACT)
    prompt = encode(examples[1].replace(answer=""), processor, model, CONTRACT, answered=False)
    assert torch.equal(whole.input_ids[: len(prompt.input_ids)], prompt.input_ids)
    assert int((whole.labels != -100).nonzero()[0]) == len(prompt.input_ids)
    assert {key: value.shape for key, value in prompt.images.items() if key != "cross_attention_mask"} == {
        key: value.shape for key, value in whole.images.items() if key != "cross_attention_mask"
    }


@pytest.mark.parametrize("name", CHATTING)
def test_text_alone_is_an_example_also_beside_one_with_images(name, opened, examples):
    processor, model = opened(name)
    text = Example(id="text", images=(), prompt="Say so.", answer="So.")
    alone = collate([encode(text, processor, model, CONTRACT)], 0)
    assert alone.images == {}
    with_images = encode(examples[0], processor, model, CONTRACT)
    both = collate([encode(text, processor, model, CONTRACT), with_images], 0)
    kept = both.images["pixel_values"]
    if name == "mllama":  # it has a row for every example
        assert not kept[0].any()
        assert not both.images["cross_attention_mask"][0].any()
        kept = kept[1:]
    assert torch.equal(kept, with_images.images["pixel_values"])


def test_a_prefix_model_refuses_conversations_and_text_alone(opened, pictures):
    processor, model = opened("paligemma2")
    for example in (
        Example(id="text", images=(), prompt="Say so.", answer="So."),
        Example.talk(
            (Message.of("system", "Be brief."), Message.of("user", IMAGE, "?"), Message.of("assistant", "x", learn=True)),
            id="t",
            images=pictures[:1],
        ),
    ):
        with pytest.raises(UsageError, match="one prompt and one answer"):
            encode(example, processor, model, CONTRACT)


def test_videos_are_refused_and_frames_as_images_are_not(opened, pictures):
    processor, model = opened("internvl")
    film = Example(id="film", images=pictures[:2], prompt="?", answer="x", video_fps=1.0)
    with pytest.raises(UsageError, match="example 'film': videos are for the Qwen-VL families") as refused:
        encode(film, processor, model, CONTRACT)
    assert "list of images" in str(refused.value.hint)
    assert encode(film.replace(video_fps=None), processor, model, CONTRACT).images


def test_examples_that_are_too_long_are_refused_with_their_numbers(opened, examples):
    processor, model = opened("llava")
    with pytest.raises(UsageError, match=r"example 'one' has 57 tokens \(16 of them visual\); the limit is 56"):
        encode(examples[0], processor, model, CONTRACT.replace(max_length=56))


def test_a_mark_of_images_in_a_text_is_refused(opened, examples):
    processor, model = opened("llava")
    with pytest.raises(UsageError, match=r"2 marks of images \(<image>\), the example 1"):
        encode(examples[0].replace(prompt="an <image> here"), processor, model, CONTRACT)


def test_a_model_without_a_template_says_so(folders, tmp_path, examples):
    folder = write_folder(tmp_path / "m", "llava", template="")
    model = load_model(str(folder))
    with pytest.raises(UsageError, match="m has no chat template"):
        encode(examples[0], load_processor(model), model, CONTRACT)


# -- sizes ---------------------------------------------------------------------------------------------------------------


def test_pictures_are_shrunk_only_where_that_saves_tokens(opened, tmp_path):
    path = tmp_path / "large.png"
    Image.effect_noise((400, 240), 90).convert("RGB").save(path)
    example = Example(id="large", images=(str(path),), prompt="?", answer="x")
    sizes = {}
    for name in ("qwen3_5", "internvl", "llava", "gemma3", "idefics3"):
        processor, model = opened(name)
        sizes[name] = measure_shapes([example], processor, model, CONTRACT)[0].images[0]
    assert sizes["llava"] == sizes["gemma3"] == sizes["idefics3"] == (400, 240)
    assert sizes["qwen3_5"] == sizes["internvl"] == recipe.shrunk(400, 240, 8000)


def test_an_example_is_shown_with_its_marks_and_its_images_named(opened, examples):
    processor, model = opened("gemma3")
    shown = preview(examples[1], processor, model, CONTRACT)
    encoded = encode(examples[1], processor, model, CONTRACT)
    assert (shown.tokens, shown.visual_tokens) == (len(encoded.input_ids), 8)
    assert [piece.text for piece in shown.pieces if piece.kind == "medium"] == ["[image 1]", "[image 2]"]
    assert [piece.text for piece in shown.pieces if piece.kind == "mark"][:2] == ["<bos>", "<start_of_turn>"]
    assert "".join(piece.text for piece in shown.pieces if piece.learned) == "Blue.<end_of_turn>"
    assert [one.tokens for one in shown.shown] == [4, 4]


def test_features_of_a_picture_have_as_many_rows_as_it_has_visual_tokens(opened, examples):
    _, model = opened("internvl")
    found = find_pictures(examples, model, CONTRACT)
    assert [(one.width, one.height, one.visual_tokens(1)) for one in found] == [(100, 60, 12), (60, 100, 12)]


def test_a_size_is_run_once_however_many_pictures_have_it(opened, pictures, monkeypatch):
    processor, model = opened("internvl")
    examples = [Example(id=str(n), images=(pictures[0],), prompt=f"{n}?", answer="x") for n in range(5)]
    measure_shapes(examples, processor, model, CONTRACT)
    monkeypatch.setattr("budgetft.data.told.recipe.noise", lambda *_: pytest.fail("ran again"))
    assert len(measure_shapes(examples, processor, model, CONTRACT)) == 5


def test_more_images_of_a_shape_are_asked_of_the_processor(opened):
    _, model = opened("llava_onevision")
    one = shape_of([(100, 60)], 60, 5, model)
    two = with_frames(Workload.uniform(one), 2, model, video=False).worst[0]
    assert one.tokens == (44,)
    assert two.tokens == (17, 17)  # several are not cut into tiles
    assert len(two.images) == 2
    with pytest.raises(UsageError, match="videos are for the Qwen-VL families"):
        with_frames(Workload.uniform(one), 2, model, video=True)


def test_shapes_without_counts_are_written_as_before():
    shape = Shape(images=((56, 84),), text_tokens=30, supervised_tokens=9)
    assert json.loads(shape.model_dump_json()) == {"images": [[56, 84]], "text_tokens": 30, "supervised_tokens": 9}
    counted = shape.replace(tokens=(7,))
    assert Shape.read(json.loads(counted.model_dump_json()), source="x") == counted
    assert counted.visual_tokens(28) == 7
    with pytest.raises(UsageError, match="2 counts of visual tokens for 1 images"):
        Shape.make(images=((56, 84),), tokens=(7, 7), text_tokens=30, supervised_tokens=9)


# -- processors ----------------------------------------------------------------------------------------------------------


def test_a_processor_is_kept_until_its_files_change(folders):
    model = load_model(str(folders("llava")))
    first = load_processor(model)
    assert load_processor(model) is first
    config = Path(str(model.weights)) / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    assert load_processor(model) is not first


@pytest.mark.parametrize(
    ("name", "tokens", "text"),
    [
        ("gemma-3-4b", 256, 4),  # begin, end and an empty line on either side
        ("internvl3.5-1b", 2304, 2),
        ("smolvlm2-256m", 832, 30),
        ("paligemma2-3b", 256, 0),
        ("llava-1.5-7b", 576, 0),
    ],
)
def test_typed_sizes_are_counted_for_bundled_descriptions(name, tokens, text):
    model = load_model(name)
    assert counts([(1280, 720)], model) == ((tokens,), text)
    shape = Typed(image="1280x720", text_tokens=300).shape(model, Contract(max_pixels=1280 * 720))
    assert (shape.images, shape.tokens, shape.text_tokens) == (((1280, 720),), (tokens,), 300)


def test_a_folder_without_a_tokenizer_counts_pictures_and_refuses_text(folders, tmp_path, examples):
    folder = tmp_path / "bare"
    write_folder(folder, "llava")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UsageError, match="has no tokenizer"):
        load_processor(load_model(str(folder)))
    (folder / "tokens.json").write_text(json.dumps({"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 190}))
    model = load_model(str(folder))
    processor = load_processor(model)
    assert shape_of([(100, 60)], 40, 5, model).tokens == (16,)
    assert synthetic_batch([shape_of([(100, 60)], 40, 5, model)], model, seed=0).input_ids.shape == (1, 56)
    for refused in (
        lambda: encode(examples[0], processor, model, CONTRACT),
        lambda: measure_shapes(examples, processor, model, CONTRACT),
    ):
        with pytest.raises(UsageError, match="description without the model's tokenizer"):
            refused()


def test_a_processor_that_lacks_a_package_is_one_sentence(folders, tmp_path):
    import importlib.util

    if importlib.util.find_spec("num2words"):
        pytest.skip("num2words is installed")
    folder = write_folder(tmp_path / "smol", "idefics3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "smolvlm"}))
    named = json.loads((folder / "processor_config.json").read_text())
    parts = {"processor_class": "SmolVLMProcessor", "video_processor": {"video_processor_type": "SmolVLMVideoProcessor"}}
    (folder / "processor_config.json").write_text(json.dumps({**named, **parts}))
    with pytest.raises(BudgetftError) as failure:
        load_processor(load_model(str(folder)))
    assert "num2words" in failure.value.message
    assert "\n" not in failure.value.message


def test_pixels_are_joined_on_the_dimension_that_a_family_has():
    one = Encoded(
        id="x", input_ids=torch.ones(3, dtype=torch.long), labels=torch.ones(3, dtype=torch.long),
        mm_token_type_ids=torch.zeros(3, dtype=torch.long), pixel_values=torch.empty(0, 0),
        image_grid_thw=torch.empty(0, 3, dtype=torch.long), stack_on=-1,
        images={"pixel_values": torch.ones(1, 3, 4, 8), "target_sizes": torch.ones(1, 2)},
    )  # fmt: skip
    batch = collate([one, replace(one, images={**one.images, "pixel_values": torch.ones(1, 3, 4, 6)})], 0)
    assert batch.images["pixel_values"].shape == (1, 3, 4, 14)
    assert batch.images["target_sizes"].shape == (2, 2)
