"""Street scenes made up from a seed: what is true in them. How they look is in :mod:`budgetft.data.synthetic.drawing`."""

import random
from dataclasses import dataclass
from typing import Literal

from budgetft.data.wts.tree import PHASES

View = Literal["overhead_view", "vehicle_view"]
Side = Literal["left", "right"]

SIZES = ((1280, 720), (960, 540), (640, 480), (1024, 768), (720, 1280))
COLOURS = {
    "black": (35, 35, 40),
    "white": (235, 235, 235),
    "red": (190, 40, 40),
    "blue": (45, 80, 180),
    "green": (50, 130, 70),
    "yellow": (220, 190, 50),
    "grey": (130, 132, 138),
    "orange": (220, 120, 40),
}
SKIES = {"clear": (150, 195, 235), "cloudy": (175, 180, 188), "rainy": (135, 142, 152), "foggy": (205, 208, 210)}
GROUNDS = {"asphalt": (88, 90, 94), "concrete": (140, 138, 132)}
WALK_COLOURS = ((175, 170, 160), (150, 160, 140), (165, 150, 140))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is true at one moment of one scenario."""

    scenario: str
    phase: int
    weather: str
    ground: str
    night: bool
    crosswalk: bool
    lanes: int
    side: Side
    """Where the pedestrian is, seen from the vehicle."""
    offset: float
    """Of the pedestrian from the middle of the road: 0 in the middle, 1 at its edge, above 1 on the walk."""
    distance_m: float
    """From the vehicle to the pedestrian."""
    gender: str
    age: int
    height_cm: int
    top: str
    trousers: str
    looking: bool
    walking: bool
    car: str
    speed_kmh: int
    car_turn: str
    walk_colour: tuple[int, int, int]
    terse: bool
    """Its captions leave out the surroundings, so that lengths differ as in real data."""


def draw_scenario(rng: random.Random, number: int) -> Scene:
    """A made-up scenario."""
    phase = rng.randrange(len(PHASES))
    return Scene(
        scenario=f"sample-{number:04d}",
        phase=phase,
        weather=rng.choice(sorted(SKIES)),
        ground=rng.choice(sorted(GROUNDS)),
        night=rng.random() < 0.25,
        crosswalk=rng.random() < 0.6,
        lanes=rng.choice((1, 2, 2, 4)),
        side=rng.choice(("left", "right")),
        offset=round(rng.uniform(0.1, 1.35), 2),
        distance_m=max(3, 28 - 5 * phase + rng.randrange(-2, 3)),  # later phases are closer
        gender=rng.choice(("male", "female")),
        age=rng.choice((20, 30, 40, 50, 60, 70)),
        height_cm=rng.choice((155, 160, 165, 170, 175, 180)),
        top=rng.choice(sorted(COLOURS)),
        trousers=rng.choice(sorted(COLOURS)),
        looking=rng.random() < 0.5,
        walking=rng.random() < 0.7,
        car=rng.choice(sorted(COLOURS)),
        speed_kmh=rng.choice((0, 5, 10, 15, 20, 30)),
        car_turn=rng.choice(("going straight ahead", "turning left", "turning right")),
        walk_colour=rng.choice(WALK_COLOURS),
        terse=rng.random() < 0.3,
    )
