"""An adapter's model card: the hub takes its front matter, and its snippet runs."""

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from budgetft.contract import Contract
from budgetft.data.given import Given
from budgetft.knobs import Knobs
from budgetft.model import load_model, model_names
from budgetft.outcome import Stack
from budgetft.train.model_card import card_text
from budgetft.train.provenance import Provenance
from budgetft.units import GIB
from budgetft.weights import BaseWeights

HUB = BaseWeights(name="Qwen/Qwen2.5-VL-3B-Instruct", revision="6" * 40, fingerprint="f" * 64)


def made(base: BaseWeights | None = HUB, **changes: Any) -> Provenance:
    stack = Stack(gpu="NVIDIA L4", driver="1", torch="2.14", transformers="5.23", peft="0.21", python="3.12")
    known: dict[str, Any] = {
        "model": "qwen2.5-vl-3b", "base": base, "plan_fingerprint": "p" * 64, "data_fingerprint": "d" * 32, "examples": 1,
        "steps": 1200, "contract": Contract(), "knobs": Knobs(micro_batch=4, grad_accum=8, checkpointed_layers=6),
        "first_loss": 2.5, "last_loss": 0.5, "heldout_loss": 0.75, "process_peak_bytes": 10 * GIB, "gpu": "NVIDIA L4",
        "family": "qwen2_5_vl", "data": "photos", "train_seconds": 4000.0, "evidence": "measured", "stack": stack,
    }  # fmt: skip
    return Provenance(**{**known, **changes})


def given(**changes) -> Given:
    return Given(model="qwen2.5-vl-3b", min_pixels=3136, max_pixels=200_704, chat_template="", **changes)


def front(card: str) -> dict[str, Any]:
    """What the hub reads of it."""
    return ModelCard(card).data.to_dict()


def snippet(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.S)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32", "nf4"])
def test_the_hub_reads_the_front_matter_and_the_snippet_is_python(precision):
    knobs = Knobs(micro_batch=4, grad_accum=8, checkpointed_layers=6, base_precision=precision)
    text = card_text(made(knobs=knobs, contract=Contract(allow_nf4=True)), given())
    data = front(text)
    assert (data["base_model"], data["library_name"]) == (HUB.name, "peft")
    assert data["pipeline_tag"] == "image-text-to-text"
    assert {"lora", "qwen2.5-vl"} <= set(data["tags"])
    compile(snippet(text), "snippet", "exec")
    assert ("BitsAndBytesConfig(" in text) == (precision == "nf4")


def test_it_says_what_on_what_how_how_well_and_under_what_licence():
    text = card_text(made(base_license="Qwen Research License"), given())
    for told in (
        "6" * 40, "photos, 1 example, hash `dddddddddddd`", "rank 16, alpha 32", "1,200 of 32 examples", "0.0001, cosine",
        "448x448 (200,704 pixels)", "NVIDIA L4", "10.00 GiB (measured)", "67 min for the steps", "| Eval loss | 0.7500 |",
        "Licence of the base weights: Qwen Research License", "It saw no video",
        '"shortest_edge": 3136, "longest_edge": 200704',
    ):  # fmt: skip
        assert told in text


def test_a_base_in_a_folder_is_no_model_of_the_hub_and_its_licence_is_to_be_looked_up(tmp_path):
    text = card_text(made(BaseWeights(name=str(tmp_path), fingerprint="f" * 64), heldout_loss=None))
    assert "base_model" not in front(text)
    assert f"base = {str(tmp_path)!r}" in snippet(text)
    assert "unknown to budgetft: look it up" in text
    assert "It was not evaluated" in text


def test_random_weights_get_no_snippet():
    text = card_text(made(None), given())
    assert "base_model" not in front(text)
    assert "```python" not in text


def test_names_of_files_break_no_table():
    text = card_text(made(data="a|b\nc"), given())
    assert "| Data | a\\|b c, 1 example" in text


def test_an_adapter_of_before_has_a_card_too():
    old = made().model_dump(exclude={"family", "data", "gpus", "train_seconds", "evidence", "stack", "base_license"})
    text = card_text(Provenance.make(**old))
    assert front(text)["base_model"] == HUB.name
    assert "| Time |" not in text


@pytest.mark.parametrize("name", [name for name in model_names() if name.startswith("tiny")])
def test_the_snippet_loads_the_adapter_and_says_something(name, tmp_path, monkeypatch, capsys):
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText

    from budgetft.data.processor import load_processor
    from budgetft.step.build import model_config

    model = load_model(name)
    base = AutoModelForImageTextToText.from_config(model_config(model), dtype=torch.float32)
    base.save_pretrained(tmp_path / "base")
    load_processor(model).save_pretrained(tmp_path / "base")
    _save_adapter(base, tmp_path / "adapter")
    knobs = Knobs(micro_batch=1, grad_accum=32, checkpointed_layers=0, base_precision="fp32")
    own = made(BaseWeights(name=str(tmp_path / "base")), knobs=knobs, family=model.family)
    code = snippet(card_text(own, given())).replace("FOLDER_OR_ID_OF_THIS_ADAPTER", str(tmp_path / "adapter"))
    Image.new("RGB", (300, 300), "red").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(code.replace("max_new_tokens=128", "max_new_tokens=3, min_new_tokens=3").replace('"auto"', '"cpu"'), found)
    assert found["tokens"].shape[1] == found["inputs"]["input_ids"].shape[1] + 3
    assert capsys.readouterr().out.count("\n") >= 1


def _save_adapter(base, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", task_type="CAUSAL_LM")
    get_peft_model(base, config).save_pretrained(str(folder))
