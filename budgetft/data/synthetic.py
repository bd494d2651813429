"""A synthetic copy of the WTS data: the same tree and schemas, our own rendering, truth that follows from the scenes."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from budgetft.data.drawing import STYLES, Box, Camera, draw_backdrop, draw_moment, style_named
from budgetft.data.replace import hidden_beside, move_into_place, recover
from budgetft.data.story import Story
from budgetft.data.video import load_av, write_video
from budgetft.errors import UsageError
from budgetft.value import Value

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
MARKER = "synthetic.json"
_FEW_VIDEOS = 24
"""Fewer are drawn in this process: starting others would take longer."""


class SyntheticSpec(Value):
    """Everything that a synthetic dataset depends on: equal specs give equal bytes (on equal versions of Pillow and FFmpeg)."""

    scenarios: int = Field(ge=1)
    seed: int = 0
    style: str = "day"
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Of the scenarios, to train, val and test."""
    videos: int | None = None
    """In all, BDD's left out; None for two to four a scenario."""
    seconds: float = Field(default=4.0, ge=1.0, le=600.0)
    fps: int | None = Field(default=None, ge=1, le=120)
    """None for 10, 15, 30, and 60 in every sixth scenario."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, even; None for 320x180 and some 640x360."""
    external: bool = True
    """Also make videos in the place of BDD_PC_5K."""

    @field_validator("style")
    @classmethod
    def _known_style(cls, style: str) -> str:
        if style not in STYLES:
            raise ValueError(f"must be one of {', '.join(STYLES)}")
        return style

    @field_validator("fractions")
    @classmethod
    def _fractions_of_one(cls, fractions: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError("must be three shares, train, val and test, that add up to 1")
        return fractions

    @field_validator("size")
    @classmethod
    def _even_size(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and (min(size) < 32 or size[0] % 2 or size[1] % 2):
            raise ValueError("must be two even numbers of at least 32")
        return size


@dataclass(frozen=True, kw_only=True)
class Film:
    """One video to render."""

    path: Path
    camera: Camera
    story: Story
    fps: int
    start: float
    """Where it starts in the story, in seconds."""
    seconds: float
    anchor_m: float
    style: str
    seed: str

    @property
    def frames(self) -> int:
        """How many it has."""
        return max(1, round(self.seconds * self.fps))

    def image_id(self, frame: int) -> int:
        """What a box file calls ``frame``: the official extractor writes frames of 60 fps twice."""
        return 2 * frame if 59 < self.fps < 61 else frame


Boxes = dict[int, dict[str, Box]]
"""The box of each actor seen, by frame."""


def render(film: Film) -> Boxes:
    """Write the video of ``film``; where the actors are in it."""
    rng = random.Random(film.seed)
    style = style_named(film.style)
    backdrop = draw_backdrop(film.story.scene, film.camera, rng, style)
    boxes: Boxes = {}

    def frames() -> "Iterator":
        for index in range(film.frames):
            seconds = index / film.fps
            stride = abs((seconds * 2.0) % 2.0 - 1.0)  # two steps a second
            scene = film.story.at(film.start + seconds)
            image, boxes[index] = draw_moment(backdrop, scene, film.camera, style, rng, anchor_m=film.anchor_m, stride=stride)
            yield image

    film.path.parent.mkdir(parents=True, exist_ok=True)
    write_video(film.path, frames(), size=film.camera.size, fps=Fraction(film.fps))
    return boxes


@dataclass(frozen=True, kw_only=True)
class Cast:
    """One scenario of a synthetic dataset: its story and its films by view."""

    name: str
    split: Split
    number: int
    """Among the scenarios of its split."""
    story: Story
    films: dict[str, tuple[Film, ...]]
    normal: bool
    external: bool


def split_of(spec: SyntheticSpec) -> list[Split]:
    """The split of each scenario, in order; each share that is not 0 gets a scenario when there are enough."""
    counts = [int(spec.scenarios * share) for share in spec.fractions]
    order = sorted(range(3), key=lambda i: counts[i] - spec.scenarios * spec.fractions[i])
    for place in range(spec.scenarios - sum(counts)):
        counts[order[place % 3]] += 1
    for place, share in enumerate(spec.fractions):
        most = counts.index(max(counts))
        if share > 0 and not counts[place] and counts[most] > 1:
            counts[place], counts[most] = 1, counts[most] - 1
    return [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]


def _is_synthetic(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (MARKER, "twin.json"))  # the second as before 0.2


def write_synthetic(
    out: Path,
    spec: SyntheticSpec,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    on_start: Callable[[int], None] = lambda videos: None,
    on_video: Callable[[], None] = lambda: None,
) -> int:
    """Write the synthetic data of ``spec`` to ``out``, which appears whole or not at all; how many videos it has.

    ``overwrite`` replaces a synthetic dataset that is already there, never a folder of anything else. Raises ``UsageError``
    for that, and ``BudgetftError`` when the video library is missing.
    """
    from budgetft.data.synthetic_cast import cast_synthetic
    from budgetft.data.synthetic_files import write_annotations

    load_av()
    recover(out, is_whole=_is_synthetic)
    if os.path.lexists(out) and not (overwrite and _is_synthetic(out)):
        hint = "add --force to replace it" if _is_synthetic(out) else "choose another folder"
        raise UsageError(f"{out} exists", hint=hint)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = hidden_beside(out)
    try:
        casts = cast_synthetic(unfinished, spec)
        films = [film for cast in casts for view in cast.films.values() for film in view]
        on_start(len(films))
        boxes = dict(zip((film.path for film in films), _rendered(films, workers, on_video), strict=True))
        write_annotations(unfinished, casts, boxes, spec)
        (unfinished / MARKER).write_text(json.dumps(spec.model_dump(), indent=1) + "\n", encoding="utf-8")
        move_into_place(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return len(films)


def _rendered(films: list[Film], workers: int | None, on_video: Callable[[], None]) -> Iterator[Boxes]:
    if workers is None:
        workers = 1 if len(films) <= _FEW_VIDEOS else min(os.cpu_count() or 1, 8)
    if workers <= 1:
        results = map(render, films)
        yield from (_told(boxes, on_video) for boxes in results)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            yield from map(partial(_told, on_video=on_video), pool.map(render, films, chunksize=2))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _told(boxes: Boxes, on_video: Callable[[], None]) -> Boxes:
    on_video()
    return boxes
