"""A checkpoint is loaded whole or refused by name: nothing in it is made up."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.model import load_model
from budgetft.step.build import build_model, model_config
from budgetft.step.tower import load_tower

CONTRACT = Contract(rank=2, alpha=4, effective_batch=1)
CPU = torch.device("cpu")
VOCABULARY = 64


def small(*, tied=False):
    model = load_model("tiny-qwen2.5-vl")
    text = {**model.text, "vocab_size": VOCABULARY, "tie_word_embeddings": tied}
    return model.replace(config={**model.config, "text_config": text, "tie_word_embeddings": tied})


def save(folder, **options):
    from transformers import AutoModelForImageTextToText

    tied = options.pop("tied", False)
    AutoModelForImageTextToText.from_config(model_config(small(tied=tied))).save_pretrained(folder, **options)
    return folder


def build(folder, **options):
    return build_model(small(), CONTRACT, base_precision="fp32", device=CPU, weights=str(folder), **options)


def without(folder, part):
    """The checkpoint without the first tensor whose name holds ``part``; that name."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if part in name)
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("vision", ["frozen", "cached"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_its_name(tmp_path, vision):
    folder = save(tmp_path / "weights")
    build(folder, vision=vision)
    lost = without(folder, "layers.0.")
    with pytest.raises(UsageError, match="1 of the model's tensors are not there") as caught:
        build(folder, vision=vision)
    assert lost.rpartition("layers")[2] in caught.value.message


def test_a_tower_that_lacks_a_tensor_is_refused_by_its_name(tmp_path):
    folder = save(tmp_path / "weights")
    lost = without(folder, "visual.blocks.1.")
    with pytest.raises(UsageError, match=r"cannot load the vision tower of .*: 1 of the model's tensors") as caught:
        load_tower(model_config(small()), str(folder), dtype=torch.float32, device=CPU, seed=0)
    assert lost.rpartition("blocks")[2] in caught.value.message


def test_a_head_that_is_the_embedding_is_not_missed(tmp_path):
    folder = save(tmp_path / "weights", tied=True)
    assert not any("lm_head" in name for name in load_file(folder / "model.safetensors"))
    model = build(folder).get_base_model()
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


@pytest.mark.parametrize("index", [{}, {"weight_map": 7}, {"weight_map": {"a": 1}}, {"weight_map": {"a": "../b"}}, []])
def test_a_damaged_index_is_refused(tmp_path, index):
    folder = save(tmp_path / "weights", max_shard_size="100KB")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="cannot load weights from"):
        build(folder)
    with pytest.raises(UsageError, match="cannot load the vision tower of"):
        load_tower(model_config(small()), str(folder), dtype=torch.float32, device=CPU, seed=0)
