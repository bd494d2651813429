"""Models in parts: without their vision tower, for features that were computed before, and the tower alone, to compute them.

Shapes: V visual tokens of all images, F numbers of a token: the language model's width, and as many for each deepstack level.
"""

import copy
import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from budgetft.step.pretrained import load_pretrained, unloadable
from budgetft.value import read_json

WHAT = "the vision tower of"
"""In what an error says of it."""


class CachedTower(nn.Module):
    """In the tower's place: given features instead of pixels, it hands them on as the tower would."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        self.spatial_merge_size = config.spatial_merge_size
        self.levels = len(getattr(config, "deepstack_visual_indexes", ()))

    def forward(self, features_VF: torch.Tensor, grid_thw: Any = None, **_: Any) -> Any:
        """The tower's output, as views of ``features_VF``."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        pooled, *levels = features_VF.chunk(1 + self.levels, dim=1)
        if not levels:
            return BaseModelOutputWithPooling(pooler_output=pooled)  # pyright: ignore[reportArgumentType]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=pooled, deepstack_features=levels)  # pyright: ignore


def joined_features(output: Any) -> torch.Tensor:
    """(V, F): what :class:`CachedTower` takes, from the output of a tower."""
    return torch.cat([output.pooler_output, *(getattr(output, "deepstack_features", None) or ())], dim=1)


def without_blocks(vision_config: Any) -> Any:
    """A copy with no blocks: a tower that is thrown away need not be made in full."""
    shallow = copy.deepcopy(vision_config)
    shallow.depth = 0
    if hasattr(shallow, "deepstack_visual_indexes"):
        shallow.deepstack_visual_indexes = []
    return shallow


def towerless_class(config: Any) -> Any:
    """The transformers class of ``config``, less its tower: the tower's weights in a checkpoint are not read."""

    def leave_out(self: Any) -> None:
        self.model.visual = CachedTower(self.config.vision_config, self.dtype)

    return _partial_class(config, leave_out, _keys_to_ignore_on_load_unexpected=[r"visual\."])


def load_tower(config: Any, weights: str | None, *, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    """The tower alone, frozen, in evaluation mode; random from ``seed`` when ``weights`` is None.

    Raises ``UsageError`` when the weights cannot be read.
    """
    if weights is None:
        torch.manual_seed(seed)
        with torch.device("meta"):
            kind = type(_class_of(config)._from_config(config).model.visual)
        with torch.device(device):
            tower = kind._from_config(config.vision_config, dtype=dtype)
    else:
        tower = _pretrained_tower(config, weights, dtype, device)
    return tower.requires_grad_(False).eval()


def _pretrained_tower(config: Any, weights: str, dtype: torch.dtype, device: torch.device) -> Any:
    def leave_out(self: Any) -> None:
        self.model.language_model = nn.Identity()
        self.lm_head = nn.Identity()

    only_tower = _partial_class(
        config,
        leave_out,
        _tied_weights_keys={},
        _keys_to_ignore_on_load_unexpected=[r"language_model", r"lm_head", r"^(model\.)?(layers|embed_tokens|norm)\."],
    )
    whole = load_pretrained(lambda: only_tower, weights, dtype=dtype, device=device, what=WHAT)
    return whole.model.visual


def _partial_class(config: Any, leave_out: Any, **fields: Any) -> Any:
    """A subclass that drops parts once it is made. It bears the name of its base: transformers looks up by name how to
    read older checkpoints."""
    base = _class_of(config)

    def __init__(self: Any, config: Any) -> None:
        base.__init__(self, config)
        leave_out(self)

    return type(base.__name__, (base,), {"__init__": __init__, "__module__": base.__module__, **fields})


def _class_of(config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]


def tower_fingerprint(weights: str | None, *, seed: int) -> str:
    """SHA-256 of the tower's tensors as the checkpoint ``weights`` (a folder or hub id) stores them; the seed of random ones.

    Raises ``UsageError`` when the checkpoint cannot be read or holds no tower.
    """
    if weights is None:
        return f"random, seed {seed}"
    from safetensors import SafetensorError, safe_open

    digest, found = hashlib.sha256(), 0
    try:
        for path in _checkpoint_files(weights):
            with safe_open(path, framework="pt") as file:
                for name in sorted(name for name in file.keys() if "visual." in name):  # noqa: SIM118
                    tensor = file.get_tensor(name)
                    digest.update(f"{name.rpartition('visual.')[2]} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
                    found += 1
    except (OSError, ValueError, SafetensorError) as error:
        raise unloadable(WHAT, weights, str(error).splitlines()[0]) from None
    if not found:
        raise unloadable(WHAT, weights, "it holds no vision tower")
    return digest.hexdigest()


def _checkpoint_files(weights: str) -> list[str]:
    """The safetensors files with the tower's tensors, in the order of their names."""
    from transformers.utils.hub import cached_file

    def located(name: str, *, must: bool) -> str | None:
        return cached_file(weights, name, _raise_exceptions_for_missing_entries=must)

    index = located("model.safetensors.index.json", must=False)
    if index is None:
        return [str(located("model.safetensors", must=True))]
    placed = read_json(Path(index)).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise unloadable(WHAT, weights, "the weight_map of its index is no table of file names")
    return [str(located(name, must=True)) for name in sorted({file for key, file in placed.items() if "visual." in key})]
