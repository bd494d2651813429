"""Tiny models with a tiny vocabulary, and real ones with few layers: for tests whose point is neither.

The bundled tiny models have the real vocabulary of 151,936 words, as real tokenizers need it. On so small a model embeddings
and logits are then 99 of 100 bytes and operations. Synthetic batches need only a few words and the ids of the markers.
"""

from collections.abc import Iterable
from typing import Any

import pytest

from budgetft.model import Model, load_model

FAMILIES = ("tiny-qwen2.5-vl", "tiny-qwen2-vl", "tiny-qwen3-vl")
ENDS = {"bos_token_id": 0, "eos_token_id": 1}
MARKERS = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")


def tiny_model(name: str = "tiny-qwen2.5-vl", *, words: int = 384, **text: object) -> Model:
    """A bundled tiny model with ``words`` words, the markers last; keyword arguments replace fields of its text config."""
    model = load_model(name)
    config = {**model.config, "text_config": {**model.text, "vocab_size": words, **ENDS, **text}, **ENDS}
    config |= {marker: words - len(MARKERS) + place for place, marker in enumerate(MARKERS)}
    return model.replace(config=config)


def short_model(name: str = "qwen2.5-vl-3b", *, layers: int = 12, blocks: int = 4) -> Model:
    """A bundled model at its real widths and vocabulary, with few decoder layers and few blocks in its tower.

    Layers of a kind are alike: what holds for twelve of them holds for 36. Every kind of block that the tower has stays.
    """
    model = load_model(name)
    vision = {**model.config["vision_config"], "depth": blocks}
    for marked in ("fullatt_block_indexes", "deepstack_visual_indexes"):
        if marked in vision:
            vision[marked] = [1, 2, 3] if marked.startswith("deepstack") else [1, blocks - 1]
    text = {"num_hidden_layers": layers}
    config = {**model.config, "vision_config": vision}
    config |= {"text_config": {**model.text, **text}} if "text_config" in model.config else text
    return model.replace(config=config)


def sliced(names: Iterable[str], settings: Iterable[str], *, share: int = 2) -> list[Any]:
    """Every name with every setting, as parameters: one of ``share`` in the suite, all in the sweep.

    The slice has each setting with some name and each name with some settings, as in a Latin square.
    """
    pairs = [((first + second), (name, setting)) for first, name in enumerate(names) for second, setting in enumerate(settings)]
    return [
        pytest.param(*pair, marks=() if number % share == 0 else pytest.mark.sweep, id="-".join(pair)) for number, pair in pairs
    ]
