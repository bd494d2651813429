"""A synthetic copy of the WTS data: the same tree and schemas, our own rendering, truth that follows from the scenes."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from budgetft.data.media.video import load_av, write_video
from budgetft.data.replace import hidden_beside, move_into_place, recover
from budgetft.data.synthetic.cast import cast_synthetic
from budgetft.data.synthetic.drawing import draw_backdrop, draw_moment, style_named
from budgetft.data.synthetic.files import write_annotations
from budgetft.data.synthetic.spec import Boxes, Film, SyntheticSpec
from budgetft.errors import UsageError

MARKER = "synthetic.json"
_FEW_VIDEOS = 24
"""Fewer are drawn in this process: starting others would take longer."""


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
