"""The features that a plan with cached vision trains on: found, checked against images and weights, computed where lacking."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from budgetft.data.features import (
    KEY_FILE,
    FeatureCache,
    FeatureKey,
    Picture,
    check_free_space,
    feature_bytes,
    find_pictures,
)
from budgetft.data.visuals import Block
from budgetft.errors import BudgetftError, UsageError
from budgetft.knobs import computed_in
from budgetft.step.features import feature_key
from budgetft.train.job import RANDOM, Job
from budgetft.units import format_gib

if TYPE_CHECKING:
    import torch


WAIT_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True)
class PlannedFeatures:
    """Reads the features of a block of images."""

    cache: FeatureCache
    digests: dict[Block, str]

    def __call__(self, block: Block) -> "torch.Tensor":
        return self.cache.read(self.digests[block])

    @property
    def fp32_blocks(self) -> tuple[str, ...]:
        """The tower's blocks that computed in fp32, named as in the whole model."""
        return tuple(f"model.visual.{name}" for name in self.cache.fp32_blocks)


def planned_features(
    job: Job, folder: Path | None, *, device: str, on_note: Callable[[str], None], fills: bool = True
) -> PlannedFeatures | None:
    """The features of the job's images, from ``folder`` or the plan's; None for a plan without cached vision.

    What the cache lacks is computed first, in a process of its own: the tower never shares the GPU with the training. Of
    several processes one ``fills`` the cache, the others wait for it; should it fail, the launcher ends them.
    Raises ``UsageError`` for a cache of something else and for images that changed, ``BudgetftError`` when the disk has no
    room or the computing fails.
    """
    plan = job.plan
    if plan.knobs.vision != "cached":
        if folder is not None:
            raise UsageError("--cache is for plans with cached vision", hint="plan again: budgetft plan --cache auto")
        return None
    if folder is None:
        if plan.features is None:
            raise UsageError("the plan has cached vision and names no cache", hint="give --cache DIR")
        folder = Path(plan.features.folder)
    pictures = find_pictures(job.examples, job.model, plan.contract)
    precision = computed_in(plan.knobs.base_precision)
    key = feature_key(job.model, plan.contract, precision, job.weights)
    wanted = {each.digest: each for each in pictures}
    cache, missing = _opened(folder, key, wanted)
    while missing and not fills:
        time.sleep(WAIT_SECONDS)
        cache, missing = _opened(folder, key, wanted)
    if missing:
        needed = feature_bytes(missing, job.model, precision)
        check_free_space(folder, needed)
        on_note(f"computing the features of {len(missing)} of {len(wanted)} images: {format_gib(needed)} in {folder}")
        _compute(job, folder, key, device)
        cache = FeatureCache(folder, key)
    assert cache is not None
    lost = next((each for each in wanted.values() if each.digest not in cache), None)
    if lost is not None:
        raise BudgetftError(f"the feature cache {folder} still lacks image {lost.block[0]}")
    digests = {each.block: each.digest for each in pictures}
    return PlannedFeatures(cache=cache, digests=digests)


def _opened(folder: Path, key: FeatureKey, wanted: dict[str, Picture]) -> tuple[FeatureCache | None, list[Picture]]:
    """The cache as it is now, and what it lacks."""
    cache = FeatureCache(folder, key) if (folder / KEY_FILE).is_file() else None
    return cache, [each for digest, each in wanted.items() if cache is None or digest not in cache]


def _compute(job: Job, folder: Path, key: FeatureKey, device: str) -> None:
    named = job.plan.model.name if job.plan.model.weights is None else job.weights or job.plan.model.weights
    options = {
        "model": named,
        "weights": job.weights or RANDOM,
        "max-pixels": job.plan.contract.max_pixels,
        "precision": key.precision,
        "seed": job.plan.contract.seed,
        "device": device,
        "out": folder,
    }
    command = [sys.executable, "-m", "budgetft", "data", "cache", str(job.examples.folder)]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise BudgetftError(
            f"computing the features failed with exit code {done.returncode}; its error is above",
            hint="run it alone: " + " ".join(["budgetft", *command[3:]]),
        )
