"""What the step reads: a batch with everything that can be computed on the host already computed.

Positions, window orders and target indices cost nothing there, and would force the device to wait in the middle of a step.

Shapes: B examples, S tokens, N supervised tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from budgetft.data.collate import Batch
from budgetft.knobs import VISION_GROUP, Vision
from budgetft.step.family import family_of
from budgetft.step.vision import VisionGroup

IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """One micro-batch for :class:`budgetft.step.step.Step`."""

    input_ids_BS: torch.Tensor
    attention_mask_BS: torch.Tensor | None
    """None when no example is padded."""
    labels_BS: torch.Tensor
    target_index_N: torch.Tensor
    """Flat positions (in B * S) whose hidden state predicts a supervised token."""
    targets_N: torch.Tensor
    others: dict[str, Any]
    """Keyword arguments of the model beside these: positions, images by transformers' names, and groups of those that a frozen
    tower takes together. Arrays stay on the host."""
    sample_weights_N: torch.Tensor | None = None
    """(N,) float32, of each supervised token's example in the loss; None when all are 1."""

    @property
    def supervised_tokens(self) -> float:
        """What the loss is divided by: supervised tokens, each counted with the weight of its example. Read it on the host."""
        return len(self.targets_N) if self.sample_weights_N is None else float(self.sample_weights_N.sum())

    def map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> "Inputs":
        """A copy with ``move`` applied to every tensor."""
        changes = {name: move(value) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return replace(self, **changes, others={name: _map(value, move) for name, value in self.others.items()})

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor."""
        found: list[torch.Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)
        return found

    def to(self, device: torch.device) -> "Inputs":
        """A copy on ``device``, on the CPU too: it must die with its step there as on a GPU."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True, copy=True))


def _map(value: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return move(value)
    if isinstance(value, tuple) and value and isinstance(value[0], VisionGroup):
        return moved_groups(value, move)
    return value


def moved_groups(groups: tuple[VisionGroup, ...], move: Callable[[torch.Tensor], torch.Tensor]) -> tuple[VisionGroup, ...]:
    """Copies with ``move`` applied to every tensor."""
    return tuple(replace(group, tensors={name: move(tensor) for name, tensor in group.tensors.items()}) for group in groups)


def visual_grids(grid_I3: torch.Tensor, seconds_I: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The keyword arguments by which transformers' models know the grids of I images and videos apart; none for none."""
    if seconds_I is None:
        return {"image_grid_thw": grid_I3} if len(grid_I3) else {}
    is_video_I = seconds_I > 0
    found = {"video_grid_thw": grid_I3[is_video_I], "second_per_grid_ts": seconds_I[is_video_I]}
    return found if is_video_I.all() else {"image_grid_thw": grid_I3[~is_video_I], **found}


def prepare(batch: Batch, base_model: Any, *, vision: Vision, vision_group: int = VISION_GROUP) -> Inputs:
    """Host-side :class:`Inputs` of ``batch`` for a transformers vision-language model.

    Where positions are known, a slice of a video is to the Qwen-VL families what an image is: the tower attends within a slice,
    and a feature goes to the next placeholder. So videos get the placeholders of images, and take their way through the model.
    """
    family = family_of(base_model.config.model_type)
    input_ids_BS = batch.input_ids
    if batch.second_per_grid_ts is not None:
        input_ids_BS = input_ids_BS.masked_fill(batch.mm_token_type_ids == 2, base_model.config.image_token_id)
    flat = batch.labels[:, 1:].reshape(-1)
    kept = (flat != IGNORED).nonzero()[:, 0]
    length = batch.labels.shape[1]
    example_N = kept // (length - 1)
    index_N = example_N * length + kept % (length - 1)
    return Inputs(
        input_ids_BS=input_ids_BS,
        attention_mask_BS=batch.attention_mask,
        labels_BS=batch.labels,
        target_index_N=index_N,
        targets_N=flat[kept],
        others=family.prepare(batch, base_model, vision=vision, vision_group=vision_group),
        sample_weights_N=None if batch.weights is None else batch.weights[example_N],
    )
