"""A small dataset made up on the spot, so that the tool can be tried with nothing downloaded."""

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from budgetft.data.examples import Example, Examples, write_dataset
from budgetft.data.scenes import PHASES, SIZES, Scene, View, draw_picture, draw_scenario
from budgetft.errors import UsageError

ACTORS = ("pedestrian", "vehicle")


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


def pedestrian_caption(scene: Scene) -> str:
    """What is true of the pedestrian, in 60 to 150 words."""
    he, his = ("He", "his") if scene.gender == "male" else ("She", "her")
    where = _pick(
        scene.offset,
        (0.6, "in the middle of the road"),
        (1.0, "on the road, near its edge"),
        otherwise="on the sidewalk",
    )
    attention = (
        f"{he} is looking at the vehicle and has noticed it."
        if scene.looking
        else f"{he} is looking away, in the direction of travel, and has not noticed the vehicle."
    )
    moving = "walking slowly across" if scene.walking else "standing still"
    distance = _pick(scene.distance_m, (6, "very close to"), (14, "close to"), otherwise="far from")
    crossing = "A marked crosswalk leads" if scene.crosswalk else "There is no crosswalk that leads"
    return (
        f"The pedestrian is a {scene.gender} in {his} {scene.age}s, about {scene.height_cm} cm tall, wearing "
        f"clothes of two colours: {scene.top} above and {scene.trousers} below. {he} is {where}, on the {scene.side} "
        f"side in front of the vehicle and {distance} it, at a distance of about {scene.distance_m} metres. "
        f"{attention} {he} is {moving}. {crossing} over the road at this place. {_surroundings(scene)}"
    )


def vehicle_caption(scene: Scene) -> str:
    """What is true of the vehicle, in 60 to 150 words."""
    his = "his" if scene.gender == "male" else "her"
    speed = f"{scene.car_turn} at about {scene.speed_kmh} km/h" if scene.speed_kmh else "standing still at 0 km/h"
    seen = "in the driver's field of view" if scene.offset < 1.2 else "at the edge of the driver's field of view"
    distance = _pick(scene.distance_m, (6, "very near"), (14, "near"), otherwise="far away")
    crossing = "A crosswalk lies ahead of it." if scene.crosswalk else "No crosswalk lies ahead of it."
    return (
        f"The vehicle is a passenger car painted {scene.car}, {speed}. The pedestrian, a {scene.gender} in {his} "
        f"{scene.age}s in {scene.top} and {scene.trousers} clothes, is on the {scene.side} side ahead of it, "
        f"{distance}, about {scene.distance_m} metres from the bumper, and is {seen}. {crossing} The vehicle is "
        f"{'a danger' if scene.distance_m <= 14 else 'no danger yet'} to the pedestrian. {_surroundings(scene)}"
    )


def _pick(value: float, *upto: tuple[float, str], otherwise: str) -> str:
    """The words of the first limit that ``value`` does not exceed."""
    return next((words for limit, words in upto if value <= limit), otherwise)


def _surroundings(scene: Scene) -> str:
    if scene.terse:
        return f"The weather is {scene.weather}."
    time = "at night, with little light" if scene.night else "in daylight"
    road = "a one-lane road" if scene.lanes == 1 else f"a road with {scene.lanes} lanes"
    wet = "wet" if scene.weather == "rainy" else "dry"
    return (
        f"The event takes place on {road} in a town, with sidewalks on both sides and buildings behind. "
        f"The weather is {scene.weather} and the scene is {time}. The road surface is {wet}, level {scene.ground}."
    )
