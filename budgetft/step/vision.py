"""The frozen vision tower without a graph: equal images together, windows sorted by length.

Stock transformers hooks the tower's patch embedding when checkpointing is enabled and so runs its whole backward for
nothing, and it attends to one window per kernel call. Here the tower runs under ``no_grad`` and a window's place in the
sequence is chosen so that windows of equal length lie side by side; the tower's own inverse permutation undoes it.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch

from budgetft.knobs import VISION_GROUP
from budgetft.outcome import Phase
from budgetft.step.attention import Segments


@dataclass(frozen=True, kw_only=True)
class VisionGroup:
    """Consecutive images of one size, with everything the tower would otherwise compute on the device."""

    first_patch: int
    last_patch: int
    grid: np.ndarray
    tensors: dict[str, torch.Tensor]
    """Keyword arguments of the tower that live on its device."""
    arrays: dict[str, np.ndarray]
    """Keyword arguments that are only read on the host."""
    segments: Segments


def group_images(grid: np.ndarray, visual_config: Any, *, patches_at_once: int = VISION_GROUP) -> tuple[VisionGroup, ...]:
    """Split images with patch grids ``grid`` (n, 3) into groups of consecutive equal ones, of so many patches at most unless
    one image has more; slices of a video are images."""
    grid = np.repeat(grid, grid[:, 0], axis=0)
    grid[:, 0] = 1
    groups, first, patch = [], 0, 0
    while first < len(grid):
        patches = int(grid[first].prod())
        most = max(1, patches_at_once // patches)
        last = first + 1
        while last < len(grid) and last - first < most and (grid[last] == grid[first]).all():
            last += 1
        count = last - first
        groups.append(_group(grid[first:last], patch, patch + count * patches, visual_config))
        first, patch = last, patch + count * patches
    return tuple(groups)


def _group(grid: np.ndarray, first_patch: int, last_patch: int, config: Any) -> VisionGroup:
    from transformers import vision_utils

    images, patches = len(grid), int(grid[0].prod())
    tensor_grid = torch.from_numpy(grid)
    merge = config.spatial_merge_size
    tensors = {"position_ids": vision_utils.get_vision_position_ids(tensor_grid, merge)}
    arrays = {"cu_seqlens": np.array([0, images * patches], dtype=np.int32)}
    windows: tuple[tuple[int, int, int], ...] = ()
    if getattr(config, "window_size", None):
        index, windows = _sorted_windows(grid[:1], config)
        per_image = patches // merge**2
        tensors["window_index"] = torch.cat([index + i * per_image for i in range(images)])
        arrays["cu_window_seqlens"] = arrays["cu_seqlens"]
    if getattr(config, "num_position_embeddings", None):
        side = int(config.num_position_embeddings**0.5)
        tensors["interp_indices"], tensors["interp_weights"] = vision_utils.get_vision_interpolation_indices_and_weights(
            tensor_grid, side, align_corners=True, spatial_merge_size=merge
        )
    segments = Segments(images=images, patches=patches, windows=windows)
    return VisionGroup(
        first_patch=first_patch, last_patch=last_patch, grid=grid, tensors=tensors, arrays=arrays, segments=segments
    )


def _sorted_windows(grid: np.ndarray, config: Any) -> tuple[torch.Tensor, tuple[tuple[int, int, int], ...]]:
    """The window order of one image with equal lengths side by side, and its runs of equal length."""
    from transformers import vision_utils

    merge_unit = config.spatial_merge_size**2
    index, bounds = vision_utils.get_vision_window_index(
        torch.from_numpy(grid), config.spatial_merge_size, config.window_size, config.patch_size
    )
    lengths = (bounds[1:] - bounds[:-1]).tolist()
    windows = sorted(index.split([length // merge_unit for length in lengths]), key=len, reverse=True)
    runs, start = [], 0
    for length in sorted(set(lengths), reverse=True):
        count = lengths.count(length)
        runs.append((start, count, length))
        start += count * length
    return torch.cat(windows), tuple(runs)


def freeze(visual: Any, on_phase: Callable[[Phase], None]) -> None:
    """Make ``visual`` compute without a graph, group by group; :func:`unfreeze` undoes it."""
    windowed = set(range(len(visual.blocks))) - set(getattr(visual, "fullatt_block_indexes", range(len(visual.blocks))))
    for number, block in enumerate(visual.blocks):
        block.attn.windowed = number in windowed
    visual.forward = partial(_frozen_forward, visual, on_phase)


def unfreeze(visual: Any) -> None:
    """Give ``visual`` its stock forward back."""
    visual.__dict__.pop("forward", None)


def _frozen_forward(
    visual: Any,
    on_phase: Callable[[Phase], None],
    pixel_values_PC: torch.Tensor,
    grid_thw: Any = None,
    groups: tuple[VisionGroup, ...] = (),
    **_: Any,
) -> Any:
    """The tower's output for all images: ``pooler_output`` (visual tokens, hidden) and deepstack features, if it has any."""
    on_phase("vision")
    stock_forward = type(visual).forward
    outputs = []
    with torch.no_grad():
        for group in groups:
            outputs.append(
                stock_forward(
                    visual,
                    pixel_values_PC[group.first_patch : group.last_patch],
                    grid_thw=group.grid,
                    segments=group.segments,
                    **group.tensors,
                    **group.arrays,
                )
            )
            outputs[-1].last_hidden_state = None
    on_phase("forward")
    return outputs[0] if len(outputs) == 1 else _concatenate(outputs)


def _concatenate(outputs: list[Any]) -> Any:
    joined = type(outputs[0])()
    for field in fields(outputs[0]):
        parts = [getattr(output, field.name) for output in outputs]
        if isinstance(parts[0], torch.Tensor):
            setattr(joined, field.name, torch.cat(parts))
        elif isinstance(parts[0], list):
            setattr(joined, field.name, [torch.cat(level) for level in zip(*parts, strict=True)])
    return joined
