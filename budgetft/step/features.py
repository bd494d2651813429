"""The frozen tower once over every image: what ``vision`` cached reads in its place.

Equal images go through the tower together, as in the step; the kernels are those of the step. Shapes: P patches, C values of
a patch, V visual tokens, F numbers of a visual token.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from budgetft.contract import Contract
from budgetft.data.features import (
    FeatureKey,
    FeatureWriter,
    Picture,
    check_free_space,
    create_cache,
    feature_bytes,
    read_fp32_blocks,
    write_fp32_blocks,
)
from budgetft.data.tokens import pixel_bounds
from budgetft.data.visuals import Block, block_patches
from budgetft.errors import BudgetftError, UsageError
from budgetft.knobs import VISION_GROUP, Attention, Precision
from budgetft.model import Model
from budgetft.precision import LIMIT
from budgetft.step import pointwise, vision
from budgetft.step.attention import implementation
from budgetft.step.build import DTYPES, model_config
from budgetft.step.fp32_blocks import is_fp32_block, make_fp32_block, watching
from budgetft.step.inputs import moved_groups
from budgetft.step.tower import joined_features, load_tower, tower_fingerprint

_TOWER_FACTS = (
    "depth", "embed_dim", "hidden_size", "out_hidden_size", "intermediate_size", "mlp_ratio", "num_heads", "hidden_act",
    "patch_size", "temporal_patch_size", "spatial_merge_size", "window_size", "fullatt_block_indexes",
    "num_position_embeddings", "deepstack_visual_indexes",
)  # fmt: skip
_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class Cached:
    """What caching came to."""

    images: int
    """Distinct images (and slices of videos) of the dataset."""
    computed: int
    """Of them, now; the others were there."""
    wanted_bytes: int
    """Of the features that were computed."""
    seconds: float


def feature_key(model: Model, contract: Contract, precision: Precision, weights: str | None) -> FeatureKey:
    """What features of ``model`` with ``weights`` (None: random) depend on. Reads the tower's weights; errors as there."""
    config = model_config(model).vision_config
    facts = {name: getattr(config, name, None) for name in _TOWER_FACTS}
    facts |= {"mean": model.image_mean, "std": model.image_std, "family": model.family}
    low, high = pixel_bounds(model, contract)
    return FeatureKey(
        tower=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
        weights=tower_fingerprint(weights, seed=contract.seed),
        min_pixels=low,
        max_pixels=high,
        precision=precision,
        width=model.feature_width,
    )


def pick_device(name: str) -> torch.device:
    """``auto`` is the first GPU where there is one. Raises ``UsageError`` for cuda without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("no CUDA GPU is available", hint="leave --device out, or --device cpu")
    on_gpu = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda", 0) if on_gpu else torch.device("cpu")


def pick_precision(name: str, device: torch.device) -> Precision:
    """The one named; for ``auto``, the one that a plan for this device has."""
    if name in DTYPES:
        return name  # pyright: ignore[reportReturnType]
    if device.type == "cpu":
        return "fp32"
    return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"


def cache_features(
    pictures: Sequence[Picture],
    folder: Path,
    *,
    model: Model,
    contract: Contract,
    precision: Precision,
    weights: str | None,
    device: torch.device,
    on_start: Callable[[int, int, int], None] = lambda images, missing, wanted_bytes: None,
    on_images: Callable[[int], None] = lambda count: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> Cached:
    """Compute the features of ``pictures`` that the cache in ``folder`` lacks, and add them to it.

    ``on_start`` is told how much there is to do before any of it is done. Raises ``UsageError`` for a folder of something
    else, unreadable weights or images, and ``BudgetftError`` when the disk has no room, before or while writing.
    """
    from budgetft.data.processor import load_processor

    def drop(path: Path) -> None:
        on_note(f"{path} is damaged: computing what it held again")
        path.unlink()

    started = time.monotonic()
    key = feature_key(model, contract, precision, weights)
    wanted = list({each.digest: each for each in pictures}.values())
    cache = create_cache(folder, key, on_damaged=drop)
    missing = [each for each in wanted if each.digest not in cache]
    needed = feature_bytes(missing, model, precision)
    on_start(len(wanted), len(missing), needed)
    check_free_space(folder, needed)
    if missing:
        tower = Tower(
            model, contract, precision=precision, weights=weights, device=device, fp32_blocks=read_fp32_blocks(folder),
            on_fp32_block=lambda names: (write_fp32_blocks(folder, names), on_note(_told(names))),
        )  # fmt: skip
        processor = load_processor(model if weights is None else model.replace(weights=weights))
        with FeatureWriter(folder) as writer, ThreadPoolExecutor(_WORKERS) as pool:
            for group in _ahead(_groups(missing, model), lambda block: block_patches(block, processor, model, contract), pool):
                for picture, features in zip(group[0], tower.features(group[1], group[2]), strict=True):
                    writer.add(picture.digest, features)
                on_images(len(group[0]))
    return Cached(images=len(wanted), computed=len(missing), wanted_bytes=needed, seconds=round(time.monotonic() - started, 1))


class Tower:
    """The tower alone on a device, with the step's kernels."""

    def __init__(
        self,
        model: Model,
        contract: Contract,
        *,
        precision: Precision,
        weights: str | None,
        device: torch.device,
        fp32_blocks: Sequence[str] = (),
        on_fp32_block: Callable[[tuple[str, ...]], object] = lambda names: None,
    ) -> None:
        """``fp32_blocks``: blocks that are known to overflow; ``on_fp32_block`` is told all of them when another is found."""
        self.device = device
        self.dtype = DTYPES[precision]
        config = model_config(model)
        try:
            self.visual = load_tower(config, weights, dtype=self.dtype, device=device, seed=contract.seed)
        except torch.OutOfMemoryError as error:
            raise _too_large(error) from None
        self.visual.config._attn_implementation = implementation(_attention(device))
        vision.freeze(self.visual, lambda phase: None)
        pointwise.make_fused(self.visual)
        self._on_fp32_block = on_fp32_block
        self._looked_at: set[bytes] = set()
        for name in fp32_blocks:
            make_fp32_block(self.visual.get_submodule(name))

    @property
    def fp32_blocks(self) -> tuple[str, ...]:
        """The blocks that compute in fp32 because they overflow fp16."""
        return tuple(name for name, module in self.visual.named_modules() if is_fp32_block(module))

    def features(self, patches_PC: torch.Tensor, grid: np.ndarray) -> list[torch.Tensor]:
        """(V, F) of each image on the host, from the patches of all and their grids (images, 3).

        In fp16 the first images of each size are looked through as in the precision probe of a run, and any whose features
        are not finite once more. Raises ``BudgetftError`` when they are not finite with the blocks that overflow in fp32.
        """
        size = grid[0].tobytes()
        joined_VF = self._joined(patches_PC, grid, look=self.dtype == torch.float16 and size not in self._looked_at)
        self._looked_at.add(size)
        if not joined_VF.isfinite().all():
            joined_VF = self._joined(patches_PC, grid, look=self.dtype == torch.float16)
        if not joined_VF.isfinite().all():
            raise BudgetftError(
                f"the vision tower makes features that are not finite in {self.dtype}",
                hint="its weights may be damaged; a plan with another precision may hold them",
            )
        merge = self.visual.spatial_merge_size**2
        return list(joined_VF.split((grid.prod(axis=1) // merge).tolist()))

    def _joined(self, patches_PC: torch.Tensor, grid: np.ndarray, *, look: bool) -> torch.Tensor:
        """(V, F) of all images; ``look``: blocks that overflow become fp32 blocks on the way."""
        before = self.fp32_blocks
        groups = moved_groups(vision.group_images(grid, self.visual.config), lambda tensor: tensor.to(self.device))
        watched = watching(self.visual, repair=True) if look else nullcontext()
        try:
            with watched, torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                output = self.visual(patches_PC.to(self.device).type(self.dtype), groups=groups)
            joined_VF = joined_features(output).to(self.dtype).cpu()
        except torch.OutOfMemoryError as error:
            raise _too_large(error) from None
        if self.fp32_blocks != before:
            self._on_fp32_block(self.fp32_blocks)
        return joined_VF


def _told(names: Sequence[str]) -> str:
    return f"{len(names)} blocks of the vision tower exceed {LIMIT:g} and compute in fp32: {', '.join(names)}"


def _attention(device: torch.device) -> Attention:
    """The fused kernel that a plan for this device would name."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        return "flash"
    return "efficient"


def _too_large(error: Exception) -> BudgetftError:
    return BudgetftError(
        f"the vision tower does not fit the GPU: {str(error).split('. ')[0]}",
        hint="free the GPU, lower --max-pixels, or compute on the CPU: --device cpu",
    )


def _groups(pictures: Sequence[Picture], model: Model) -> Iterator[list[Picture]]:
    """Images of one size, as many as the tower takes at a time."""
    by_size: dict[tuple[int, int], list[Picture]] = {}
    for picture in pictures:
        by_size.setdefault((picture.width, picture.height), []).append(picture)
    for (width, height), equal in by_size.items():
        most = max(1, VISION_GROUP // ((width // model.patch_size) * (height // model.patch_size)))
        for start in range(0, len(equal), most):
            yield equal[start : start + most]


def _ahead(
    groups: Iterator[list[Picture]], load: Callable[[Block], tuple[torch.Tensor, torch.Tensor]], pool: ThreadPoolExecutor
) -> Iterator[tuple[list[Picture], torch.Tensor, np.ndarray]]:
    """Each group with its patches and grids; the next one is decoded while one is computed."""

    def submit(group: list[Picture] | None) -> tuple[list[Picture], list[Any]] | None:
        return None if group is None else (group, [pool.submit(load, picture.block) for picture in group])

    coming = submit(next(groups, None))
    while coming is not None:
        (group, futures), coming = coming, submit(next(groups, None))
        loaded = [future.result() for future in futures]
        grid = torch.cat([grid for _, grid in loaded]).numpy().astype(np.int64)
        yield group, torch.cat([patches for patches, _ in loaded]), grid
