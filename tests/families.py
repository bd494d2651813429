"""Tiny models of every supported type, and batches for them made by hand: nothing here comes from the library under test.

``families.json`` has a configuration of each type and, for one image, the inputs that the type's processor makes: ``noise``
and ``ones`` by their shape, others by their values.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

FAMILIES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "families.json").read_text())
PACKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
IMAGE = 190
"""The id of the placeholder; ids of text lie below 180."""


@dataclass(frozen=True)
class Row:
    """One example: its ids and labels, before padding."""

    ids: torch.Tensor
    labels: torch.Tensor


def config_of(name: str) -> Any:
    from transformers import AutoConfig

    # Configurations keep and edit what they are given.
    return AutoConfig.for_model(FAMILIES[name]["type"], **json.loads(json.dumps(FAMILIES[name]["config"])))


def build(name: str, *, dtype: torch.dtype = torch.float32, scale: float = 1.0, seed: int = 0) -> Any:
    """The tiny model with random weights, ``scale`` times as large as transformers makes them."""
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config_of(name), dtype=dtype)
    fill(model, scale=scale)
    model.config.use_cache = False
    return model


def model_of(name: str) -> Any:
    """The same as a :class:`budgetft.model.Model`."""
    from budgetft.model import Model

    config = json.loads(config_of(name).to_json_string(use_diff=False))
    facts = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2} if FAMILIES[name]["type"] in PACKED else {}
    return Model(name=f"tiny-{name}", family=FAMILIES[name]["type"], config=config, **facts)


def fill(model: Any, *, scale: float = 1.0) -> None:
    """Give weights that a type leaves empty or huge some numbers, and scale all matrices."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.is_floating_point() and (not torch.isfinite(parameter).all() or parameter.abs().max() > 1e3):
            parameter.data.normal_(0, 0.02, generator=generator)
        if parameter.dim() > 1:
            parameter.data.mul_(scale)


def images_of(name: str, count: int) -> dict[str, torch.Tensor]:
    """What the model takes of ``count`` images."""
    generator = torch.Generator().manual_seed(1)
    axis = -1 if name == "minicpmv4_6" else 0

    def one(spec: dict[str, Any]) -> torch.Tensor:
        if "noise" in spec:
            return torch.randn(*spec["noise"], generator=generator)
        if "ones" in spec:
            return torch.ones(*spec["ones"], dtype=torch.long)
        return torch.tensor(spec["each"], dtype=getattr(torch, spec["dtype"]))

    made = {key: [one(spec) for _ in range(count)] for key, spec in FAMILIES[name]["images"].items()}
    return {key: torch.cat(parts, dim=axis if parts[0].dim() == 4 else 0) for key, parts in made.items()}


def rows_of(name: str, count: int = 2, *, before: int = 7, after: int = 5, answer: int = 6, shorter: int = 0) -> list[Row]:
    """``count`` examples of one image each; the last is ``shorter`` tokens shorter."""
    family, generator = FAMILIES[name], torch.Generator().manual_seed(0)
    opening, closing = (torch.tensor(part, dtype=torch.long) for part in _around(family))
    rows = []
    for place in range(count):
        less = shorter if place == count - 1 else 0
        first = torch.randint(3, 180, (before,), generator=generator)
        second = torch.randint(3, 180, (after + answer - less,), generator=generator)
        run = torch.full((family["tokens"],), family.get("image_id", IMAGE))
        ids = torch.cat([first, opening, run, closing, second])
        labels = torch.full_like(ids, -100)
        labels[-answer:] = ids[-answer:]
        rows.append(Row(ids=ids, labels=labels))
    return rows


def _around(family: dict[str, Any]) -> tuple[list[int], list[int]]:
    ids = family.get("around", [])
    return ids[:1], ids[1:]


def batch_of(name: str, count: int = 2, **sizes: int) -> Any:
    """The same as a :class:`budgetft.data.collate.Batch`."""
    from budgetft.data.collate import Encoded, collate

    placeholder = FAMILIES[name].get("image_id", IMAGE)
    encoded = [
        Encoded(
            id=f"{name}-{place}",
            input_ids=row.ids,
            labels=row.labels,
            mm_token_type_ids=(row.ids == placeholder).long(),
            pixel_values=torch.empty(0, 0),
            image_grid_thw=torch.empty(0, 3, dtype=torch.long),
        )
        for place, row in enumerate(rows_of(name, count, **sizes))
    ]
    batch, images = collate(encoded, pad_token_id=0), images_of(name, count)
    if name == "mllama":
        images["cross_attention_mask"] = torch.tensor([1, 1, 0, 0]).expand(*batch.input_ids.shape, 1, 4)
    return replace(batch, **images) if FAMILIES[name]["type"] in PACKED else replace(batch, images=images)


def stock_inputs(name: str, batch: Any) -> dict[str, Any]:
    """Keyword arguments of transformers' own forward for ``batch``."""
    types = {"gemma3": "token_type_ids", "paligemma2": "token_type_ids", **dict.fromkeys(MARKED, "mm_token_type_ids")}
    images = batch.images or {"pixel_values": batch.pixel_values, "image_grid_thw": batch.image_grid_thw}
    found = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels, **images}
    if name in types:
        learned = name == "paligemma2"  # a prefix that all see, then what is learned
        found[types[name]] = (batch.labels != -100).long() if learned else batch.mm_token_type_ids
    return found


MARKED = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "glm4v", "paddleocr_vl", "gemma4", "gemma4_31b")
