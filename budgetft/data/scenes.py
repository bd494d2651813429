"""Street scenes made up from a seed: what is in them, and how they look. The truth comes first, the picture second."""

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from PIL.ImageDraw import ImageDraw

View = Literal["overhead_view", "vehicle_view"]
Side = Literal["left", "right"]

SIZES = ((1280, 720), (960, 540), (640, 480), (1024, 768), (720, 1280))
PHASES = ("prerecognition", "recognition", "judgement", "action", "avoidance")
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
    distance_m: int
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


def draw_picture(scene: Scene, view: View, size: tuple[int, int], rng: random.Random) -> "PilImage":
    """``scene`` as seen from a pole at the roadside or from the vehicle; ``size`` is (width, height) in pixels."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, SKIES[scene.weather])
    pen = ImageDraw.Draw(image)
    horizon = 0.18 if view == "overhead_view" else 0.42
    _draw_street(pen, scene, size, horizon, rng)
    if view == "overhead_view":
        _draw_car(pen, scene, size, horizon)
    _draw_pedestrian(pen, scene, size, horizon)
    if view == "vehicle_view":
        _draw_bonnet(pen, scene, size)
    return _weathered(image, scene, rng)


def _depth(scene: Scene, size: tuple[int, int], horizon: float) -> tuple[float, float]:
    """``(y, scale)`` of a point on the ground at the pedestrian's distance: 1 metre is ``scale`` pixels there."""
    near = 1.0 / (1.0 + scene.distance_m / 9.0)
    y = size[1] * (horizon + (0.95 - horizon) * near)
    return y, size[1] * 0.24 * near


def _road_edge(size: tuple[int, int], horizon: float, y: float) -> float:
    """Half of the road's width in pixels at the height ``y``."""
    part = (y / size[1] - horizon) / (1 - horizon)
    return size[0] * (0.04 + 0.42 * max(part, 0.0))


def _draw_street(pen: "ImageDraw", scene: Scene, size: tuple[int, int], horizon: float, rng: random.Random) -> None:
    width, height = size
    top, middle = height * horizon, width / 2
    for i in range(12):  # buildings
        left = i * width / 12
        roof = top - height * rng.uniform(0.04, horizon * 0.9)
        shade = rng.randrange(90, 170)
        pen.rectangle((left, roof, left + width / 12, top), fill=(shade, shade - 8, shade - 15))
    pen.rectangle((0, top, width, height), fill=scene.walk_colour)
    far, near = _road_edge(size, horizon, top), _road_edge(size, horizon, height)
    road = ((middle - far, top), (middle + far, top), (middle + near, height), (middle - near, height))
    pen.polygon(road, fill=GROUNDS[scene.ground])
    for lane in range(1, scene.lanes):
        share = 2 * lane / scene.lanes - 1
        for i in range(0, 20, 2):  # dashes that grow towards the camera
            a, b = (i / 20) ** 2, ((i + 1) / 20) ** 2
            points = [(middle + share * (far + (near - far) * t), top + (height - top) * t) for t in (a, b)]
            pen.line(points, fill=(230, 230, 220), width=max(1, int(b * height / 90)))
    if scene.crosswalk:
        y, scale = _depth(scene, size, horizon)
        edge = _road_edge(size, horizon, y)
        for i in range(-5, 5):
            left = middle + (i + 0.25) * edge / 5
            pen.rectangle((left, y - scale * 0.2, left + edge / 10, y + scale * 0.25), fill=(238, 238, 232))


def _draw_pedestrian(pen: "ImageDraw", scene: Scene, size: tuple[int, int], horizon: float) -> None:
    y, scale = _depth(scene, size, horizon)
    direction = -1 if scene.side == "left" else 1
    x = size[0] / 2 + direction * scene.offset * _road_edge(size, horizon, y)
    tall = scale * scene.height_cm / 100
    head, stride = tall * 0.075, tall * (0.12 if scene.walking else 0.04)
    legs, top = COLOURS[scene.trousers], COLOURS[scene.top]
    thick = max(2, int(tall * 0.07))
    for step in (-stride, stride):
        pen.line(((x, y - tall * 0.46), (x + step, y)), fill=legs, width=thick)
    pen.rounded_rectangle((x - tall * 0.11, y - tall * 0.84, x + tall * 0.11, y - tall * 0.42), tall * 0.04, fill=top)
    for step in (-stride, stride):
        pen.line(((x + math.copysign(tall * 0.1, step), y - tall * 0.8), (x + 2 * step, y - tall * 0.5)), top, thick)
    pen.ellipse((x - head, y - tall, x + head, y - tall * 0.85), fill=(214, 170, 140))
    if not scene.looking:  # seen from behind: hair covers the face
        pen.ellipse((x - head, y - tall, x + head, y - tall * 0.87), fill=(50, 38, 30))


def _draw_car(pen: "ImageDraw", scene: Scene, size: tuple[int, int], horizon: float) -> None:
    y, scale = _depth(scene, size, horizon)
    bottom = min(size[1] * 0.97, y + size[1] * 0.22)
    unit = scale * 1.15
    x = size[0] / 2 - 0.1 * size[0]
    body = COLOURS[scene.car]
    shade = (body[0] // 2, body[1] // 2, body[2] // 2)
    pen.rounded_rectangle((x - unit, bottom - unit * 0.62, x + unit, bottom - unit * 0.12), unit * 0.1, fill=body)
    roof = ((x - unit * 0.6, bottom - unit * 0.6), (x - unit * 0.4, bottom - unit * 1.05))
    pen.polygon((*roof, (x + unit * 0.4, bottom - unit * 1.05), (x + unit * 0.6, bottom - unit * 0.6)), fill=shade)
    for wheel in (-0.6, 0.6):
        box = (x + wheel * unit - unit * 0.18, bottom - unit * 0.3, x + wheel * unit + unit * 0.18, bottom)
        pen.ellipse(box, fill=(25, 25, 25))


def _draw_bonnet(pen: "ImageDraw", scene: Scene, size: tuple[int, int]) -> None:
    width, height = size
    pen.polygon(
        ((0, height), (width * 0.16, height * 0.9), (width * 0.84, height * 0.9), (width, height)),
        fill=COLOURS[scene.car],
    )


def _weathered(image: "PilImage", scene: Scene, rng: random.Random) -> "PilImage":
    from PIL import Image, ImageDraw

    if scene.weather == "rainy":
        pen = ImageDraw.Draw(image)
        for _ in range(250):
            x, y = rng.randrange(image.width), rng.randrange(image.height)
            pen.line((x, y, x - 3, y + 14), fill=(190, 198, 208))
    if scene.weather == "foggy":
        image = Image.blend(image, Image.new("RGB", image.size, SKIES["foggy"]), 0.4)
    if scene.night:
        image = Image.blend(image, Image.new("RGB", image.size, (8, 10, 26)), 0.6)
    return image
