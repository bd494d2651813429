"""Values that a step reads back from the device, given to it beforehand: fake tensors do not know them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from budgetft.step.inputs import Inputs
from budgetft.step.step import Step
from budgetft.step.tower import CachedTower


@contextmanager
def static_deepstack(step: Step, inputs: Inputs) -> Iterator[None]:
    """Qwen3-VL adds vision features by a boolean mask, whose count a fake tensor does not know; here it is given.

    The same operations on the same sizes; a mask's positions live only inside the operator, so they are not counted.
    """
    text = step.base.model.language_model
    if not hasattr(text, "_deepstack_process"):
        yield
        return
    merge = step.base.model.visual.spatial_merge_size**2
    visual_tokens = int(inputs.grid.prod(axis=1).sum()) // merge

    positions = torch.empty(visual_tokens, 2, dtype=torch.int64).unbind(1)

    def add_features(hidden_states: torch.Tensor, mask: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states.clone()
        local = hidden_states[positions] + features.to(hidden_states.dtype)
        if local.requires_grad:
            local.register_hook(lambda grad, kept=mask: None)  # backward keeps the mask; here it hangs on the hook
        hidden_states[positions] = local
        return hidden_states

    text._deepstack_process = add_features
    try:
        yield
    finally:
        del text._deepstack_process


def with_indices(inputs: Inputs, base_model: Any) -> Inputs:
    """``inputs`` with the indices that stock vision computes from the grid on the device: fake tensors could not."""
    if inputs.vision or inputs.pixel_values_PC is None or isinstance(base_model.model.visual, CachedTower):
        return inputs
    from transformers import vision_utils

    config = base_model.model.visual.config
    grid = torch.from_numpy(inputs.grid)
    given: dict[str, Any] = {
        "image_position_ids": vision_utils.get_vision_position_ids(grid, config.spatial_merge_size),
        "image_cu_seqlens": vision_utils.get_vision_cu_seqlens(grid).numpy(),
    }
    if getattr(config, "window_size", None):
        index, bounds = vision_utils.get_vision_window_index(
            grid, config.spatial_merge_size, config.window_size, config.patch_size
        )
        given |= {"image_window_index": index, "image_cu_window_seqlens": bounds.numpy()}
    if getattr(config, "num_position_embeddings", None):
        indices, weights = vision_utils.get_vision_interpolation_indices_and_weights(
            grid,
            int(config.num_position_embeddings**0.5),
            align_corners=True,
            spatial_merge_size=config.spatial_merge_size,
        )
        given |= {"image_interp_indices": indices, "image_interp_weights": weights}
    return replace(inputs, vision=given)
