"""Positions of tokens in time, height and width, for the rotary embeddings of the Qwen-VL families.

The rule is that of the Qwen2-VL paper (arXiv 2409.12191, section 2.1) and of Qwen2.5-VL's report (arXiv 2502.13923, section
2.1.1): text counts on in all three; a picture's tokens have the row and the column that they are in, and a video's, in
time, the slice (Qwen2-VL) or its time in steps of ``1 / tokens_per_second`` seconds (Qwen2.5-VL); what follows starts one
above the highest position so far. It is computed here because transformers 5.3 to 5.23 places the text after a video by its
height and width alone, inside the time of the video.

Shapes: B examples, S tokens, I images and videos.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def rope_positions(
    types_BS: torch.Tensor,
    grid_I3: torch.Tensor,
    seconds_I: torch.Tensor | None,
    attention_mask_BS: torch.Tensor | None,
    config: Any,
) -> torch.Tensor:
    """(3, B, S) int64 positions on the device of ``types_BS``; 0 on padding.

    ``types_BS`` is 0 on text, 1 on tokens of images, 2 on those of videos; ``grid_I3`` has the slices, patch rows and patch
    columns of each image and video in the order of their tokens, and ``seconds_I`` the seconds from a slice to the next, 0 for
    an image (None when all are images). ``config`` is the model's, of transformers.
    """
    vision = config.vision_config
    merge = int(vision.spatial_merge_size)
    # Only Qwen2.5-VL counts time in seconds; the slices of Qwen3-VL are pictures, each after its time as text.
    per_second = float(getattr(vision, "tokens_per_second", 0) or 0) if config.model_type == "qwen2_5_vl" else 0.0
    apart = config.model_type not in ("qwen2_vl", "qwen2_5_vl")
    types = types_BS.cpu().numpy()
    mask = None if attention_mask_BS is None else attention_mask_BS.cpu().numpy().astype(bool)
    blocks = _blocks(grid_I3.tolist(), None if seconds_I is None else seconds_I.tolist(), merge, per_second, apart)
    found = np.zeros((3, *types.shape), dtype=np.int64)
    for row in range(types.shape[0]):
        real = np.flatnonzero(mask[row]) if mask is not None else np.arange(types.shape[1])
        found[:, row, real] = _of_example(types[row, real] > 0, blocks)
    return torch.from_numpy(found).to(types_BS.device)


def rope_deltas(positions_3BS: torch.Tensor, attention_mask_BS: torch.Tensor | None) -> torch.Tensor:
    """(B, 1): what is added to the number of tokens so far for the position of the next."""
    highest_B = positions_3BS.amax(dim=(0, 2))
    if attention_mask_BS is None:
        lengths_B = torch.full_like(highest_B, positions_3BS.shape[2])
    else:
        lengths_B = attention_mask_BS.sum(dim=1).to(highest_B)
    return (highest_B + 1 - lengths_B).unsqueeze(1)


def _blocks(
    grids: list[list[int]], seconds: list[float] | None, merge: int, per_second: float, apart: bool
) -> Iterator[np.ndarray]:
    """(3, tokens) of every picture that stands together in the text, counted from its own start."""
    for place, (slices, rows, columns) in enumerate(grids):
        gap = seconds[place] if seconds is not None else 0.0
        # In single precision and cut off, as the models were taught.
        step = np.float32(gap) * np.float32(per_second) if per_second and gap > 0 else np.float32(1)
        times = (np.arange(slices, dtype=np.float32) * step).astype(np.int64)
        for part in np.zeros((slices, 1), dtype=np.int64) if apart else [times]:
            grid = np.meshgrid(part, np.arange(rows // merge), np.arange(columns // merge), indexing="ij")
            yield np.stack(grid).reshape(3, -1)


def _of_example(is_visual_S: np.ndarray, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """(3, S) positions; takes the blocks of this example from ``blocks``."""
    parts, place, following = [], 0, 0
    while place < len(is_visual_S):
        if is_visual_S[place]:
            part = next(blocks) + following
        else:
            others = np.flatnonzero(is_visual_S[place:])
            length = int(others[0]) if len(others) else len(is_visual_S) - place
            part = np.broadcast_to(np.arange(length) + following, (3, length))
        parts.append(part)
        place += part.shape[1]
        following = int(part.max()) + 1
    return np.concatenate(parts, axis=1) if parts else np.zeros((3, 0), dtype=np.int64)
