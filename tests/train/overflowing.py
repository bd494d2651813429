"""Checkpoints of random weights in which chosen MLPs overflow fp16."""

from collections.abc import Sequence
from pathlib import Path

import torch

from budgetft.model import load_model
from budgetft.step.build import model_config


def save_overflowing(model_name: str, folder: Path, blocks: Sequence[str], *, factor: float, device: str = "cpu") -> Path:
    """Write the model to ``folder`` in fp16; in ``blocks``, what ``down_proj`` reads is ``factor`` squared times as large.

    What it makes of it is about as large as before.
    """
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    with torch.device(device):
        base = AutoModelForImageTextToText.from_config(model_config(load_model(model_name)), dtype=torch.float16)
    for name in blocks:
        block = base.get_submodule(name)
        for linear, by in (("gate_proj", factor), ("up_proj", factor), ("down_proj", factor**-2)):
            block.get_submodule(linear).weight.data.mul_(by)
    base.save_pretrained(folder, max_shard_size="20GB")
    return folder
