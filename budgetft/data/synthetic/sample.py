"""A small dataset made up on the spot, so that the tool can be tried with nothing downloaded."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from budgetft.data.examples import Example, Examples, write_dataset
from budgetft.data.synthetic.captions import pedestrian_caption, vehicle_caption
from budgetft.data.synthetic.drawing import draw_picture
from budgetft.data.synthetic.scenes import SIZES, Scene, View, draw_scenario
from budgetft.data.wts.tree import ACTORS, PHASES
from budgetft.errors import UsageError


def write_sample(out: Path, *, count: int = 48, seed: int = 0, overwrite: bool = False) -> Examples:
    """``count`` examples of street scenes in ``out``: per scenario two views, and a caption of each actor in each.

    The captions say what was drawn. The same ``seed`` gives the same rows and the same image bytes (on one version
    of Pillow). Raises ``UsageError`` as :func:`budgetft.data.examples.write_dataset` does, and for a count below 1.
    """
    if count < 1:
        raise UsageError(f"cannot make {count} examples", hint="--count must be at least 1")
    with tempfile.TemporaryDirectory(prefix="budgetft-sample-") as drawn:
        return write_dataset(_examples(Path(drawn), count, seed), out, images_root=Path(drawn), overwrite=overwrite)


def _examples(folder: Path, count: int, seed: int) -> Iterator[Example]:
    made = 0
    number = 0
    while made < count:
        # A generator per scenario: a larger count only adds scenarios.
        rng = random.Random(f"{seed}-{number}")
        scene = draw_scenario(rng, number)
        for view in get_args(View):
            name = f"{scene.scenario}-{view}.jpg"
            draw_picture(scene, view, rng.choice(SIZES), rng).save(folder / name, quality=88)
            for actor in ACTORS:
                if made == count:
                    return
                yield Example(
                    id=f"{scene.scenario}|{scene.phase}|{actor}|{view}",
                    images=(name,),
                    prompt=_prompt(scene, view, actor),
                    answer=pedestrian_caption(scene) if actor == "pedestrian" else vehicle_caption(scene),
                    source_id=scene.scenario,
                )
                made += 1
        number += 1


def _prompt(scene: Scene, view: View, actor: str) -> str:
    camera = "a fixed overhead camera" if view == "overhead_view" else "the camera of the vehicle"
    return (
        f"This frame of a traffic scenario was taken by {camera} in phase {scene.phase} ({PHASES[scene.phase]}). "
        f"Describe the {actor}: position, attention, behaviour and surroundings."
    )
