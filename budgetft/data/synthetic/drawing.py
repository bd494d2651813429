"""How a street scene looks: from a pole at the roadside or from the vehicle, in the colours of a style."""

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from budgetft.data.synthetic.scenes import COLOURS, GROUNDS, SKIES, Scene, View
from budgetft.errors import unknown_name

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from PIL.ImageDraw import ImageDraw

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""x, y, width and height in pixels."""


@dataclass(frozen=True, kw_only=True)
class Style:
    """What differs between two worlds with the same truth: colours of light and ground, and where cameras hang."""

    name: str
    tint: Colour = (0, 0, 0)
    tint_share: float = 0.0
    ground_shift: int = 0
    """Added to the grey of the road."""
    walk_colour: Colour | None = None
    horizon_shift: float = 0.0
    """Added to the height of the horizon of every camera, as a share of the picture."""


STYLES = {
    style.name: style
    for style in (
        Style(name="day"),
        Style(name="dusk", tint=(120, 60, 40), tint_share=0.3, ground_shift=-20, horizon_shift=0.05),
        Style(name="winter", tint=(215, 225, 240), tint_share=0.2, ground_shift=50, walk_colour=(232, 236, 242)),
        Style(name="desert", tint=(225, 180, 110), tint_share=0.22, walk_colour=(205, 170, 115), horizon_shift=-0.04),
    )
}


def style_named(name: str) -> Style:
    """The style called ``name``; an unknown one is a ``UsageError``."""
    if name not in STYLES:
        raise unknown_name("style", name, STYLES)
    return STYLES[name]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera and the size of its picture; lengths of the scene become pixels here."""

    view: View
    size: tuple[int, int]
    horizon: float
    """Height of the horizon as a share of the picture, from the top."""
    reach_m: float = 9.0
    """Distance at which things look half as large as at the camera."""
    pan: float = 0.0
    """Where the middle of the road is, from the middle of the picture, as a share of its width."""

    @property
    def middle(self) -> float:
        """The x of the middle of the road."""
        return self.size[0] * (0.5 + self.pan)

    def depth(self, metres: float) -> tuple[float, float]:
        """``(y, scale)`` of the ground ``metres`` from the camera: 1 metre is ``scale`` pixels there."""
        height = self.size[1]
        near = 1.0 / (1.0 + metres / self.reach_m)
        return height * (self.horizon + (0.95 - self.horizon) * near), height * 0.24 * near

    def road_edge(self, y: float) -> float:
        """Half of the road's width in pixels at the height ``y``."""
        part = (y / self.size[1] - self.horizon) / (1 - self.horizon)
        return self.size[0] * (0.04 + 0.42 * max(part, 0.0))


def draw_picture(scene: Scene, view: View, size: tuple[int, int], rng: random.Random) -> "PilImage":
    """``scene`` as a still; ``size`` is (width, height) in pixels."""
    from PIL import ImageDraw

    camera = Camera(view=view, size=size, horizon=0.18 if view == "overhead_view" else 0.42)
    image = draw_backdrop(scene, camera, rng)
    pen = ImageDraw.Draw(image)
    _draw_crosswalk(pen, scene, camera, scene.distance_m)
    if view == "overhead_view":
        y, scale = camera.depth(scene.distance_m)
        _draw_car(pen, scene, size[0] * 0.4, min(size[1] * 0.97, y + size[1] * 0.22), scale * 1.15)
    _draw_pedestrian(pen, scene, camera, scene.distance_m)
    if view == "vehicle_view":
        _draw_bonnet(pen, scene, size)
    return _weathered(image, scene, rng)


def draw_moment(
    backdrop: "PilImage", scene: Scene, camera: Camera, style: Style, rng: random.Random, *, anchor_m: float, stride: float
) -> tuple["PilImage", dict[str, Box]]:
    """One frame of a film over ``backdrop``, and the box of each actor that is in it, cut at the frame's edges.

    A fixed camera has the pedestrian at ``anchor_m`` and the car the scene's distance before; the vehicle's own camera
    has the pedestrian at the scene's distance. ``stride`` from 0 to 1 is where a step is.
    """
    from PIL import Image, ImageDraw

    image = backdrop.copy()
    pen = ImageDraw.Draw(image)
    boxes: dict[str, Box] = {}
    fixed = camera.view == "overhead_view"
    distance = anchor_m if fixed else scene.distance_m
    _draw_crosswalk(pen, scene, camera, distance)
    boxes["pedestrian"] = _draw_pedestrian(pen, scene, camera, distance, stride=stride)
    if fixed:  # after the pedestrian: the car is nearer to the camera
        y, scale = camera.depth(max(0.0, anchor_m - scene.distance_m))
        x = camera.middle - 0.25 * camera.road_edge(y)
        boxes["vehicle"] = _draw_car(pen, scene, x, y, scale * 0.8)
    else:
        _draw_bonnet(pen, scene, camera.size)
    image = _weathered(image, scene, rng, drops=60)
    if style.tint_share:
        image = Image.blend(image, Image.new("RGB", image.size, style.tint), style.tint_share)
    seen = {actor: cut for actor, box in boxes.items() if (cut := _inside(box, camera.size)) is not None}
    return image, seen


def draw_backdrop(scene: Scene, camera: Camera, rng: random.Random, style: Style = STYLES["day"]) -> "PilImage":
    """Sky, buildings, road and lanes: what does not move."""
    from PIL import Image, ImageDraw

    (width, height), middle = camera.size, camera.middle
    image = Image.new("RGB", camera.size, SKIES[scene.weather])
    pen = ImageDraw.Draw(image)
    top = height * camera.horizon
    for i in range(12):  # buildings
        left = i * width / 12
        roof = top - height * rng.uniform(0.04, camera.horizon * 0.9)
        shade = rng.randrange(90, 170)
        pen.rectangle((left, roof, left + width / 12, top), fill=(shade, shade - 8, shade - 15))
    pen.rectangle((0, top, width, height), fill=style.walk_colour or scene.walk_colour)
    far, near = camera.road_edge(top), camera.road_edge(height)
    road = ((middle - far, top), (middle + far, top), (middle + near, height), (middle - near, height))
    red, green, blue = (part + style.ground_shift for part in GROUNDS[scene.ground])
    pen.polygon(road, fill=(red, green, blue))
    for lane in range(1, scene.lanes):
        share = 2 * lane / scene.lanes - 1
        for i in range(0, 20, 2):  # dashes that grow towards the camera
            a, b = (i / 20) ** 2, ((i + 1) / 20) ** 2
            points = [(middle + share * (far + (near - far) * t), top + (height - top) * t) for t in (a, b)]
            pen.line(points, fill=(230, 230, 220), width=max(1, int(b * height / 90)))
    return image


def _draw_crosswalk(pen: "ImageDraw", scene: Scene, camera: Camera, metres: float) -> None:
    if not scene.crosswalk:
        return
    y, scale = camera.depth(metres)
    edge = camera.road_edge(y)
    for i in range(-5, 5):
        left = camera.middle + (i + 0.25) * edge / 5
        pen.rectangle((left, y - scale * 0.2, left + edge / 10, y + scale * 0.25), fill=(238, 238, 232))


def _draw_pedestrian(pen: "ImageDraw", scene: Scene, camera: Camera, metres: float, *, stride: float = 1.0) -> Box:
    y, scale = camera.depth(metres)
    direction = -1 if scene.side == "left" else 1
    x = camera.middle + direction * scene.offset * camera.road_edge(y)
    tall = scale * scene.height_cm / 100
    head, reach = tall * 0.075, tall * (0.12 * stride if scene.walking else 0.04)
    legs, top = COLOURS[scene.trousers], COLOURS[scene.top]
    thick = max(2, int(tall * 0.07))
    for step in (-reach, reach):
        pen.line(((x, y - tall * 0.46), (x + step, y)), fill=legs, width=thick)
    pen.rounded_rectangle((x - tall * 0.11, y - tall * 0.84, x + tall * 0.11, y - tall * 0.42), tall * 0.04, fill=top)
    for step in (-reach, reach):
        pen.line(((x + math.copysign(tall * 0.1, step), y - tall * 0.8), (x + 2 * step, y - tall * 0.5)), top, thick)
    pen.ellipse((x - head, y - tall, x + head, y - tall * 0.85), fill=(214, 170, 140))
    if not scene.looking:  # seen from behind: hair covers the face
        pen.ellipse((x - head, y - tall, x + head, y - tall * 0.87), fill=(50, 38, 30))
    half = max(tall * 0.13, 2 * reach)
    return x - half, y - tall, 2 * half, tall


def _draw_car(pen: "ImageDraw", scene: Scene, x: float, bottom: float, unit: float) -> Box:
    """A car around ``x`` with its wheels at ``bottom``; ``unit`` is half of its length in pixels."""
    body = COLOURS[scene.car]
    shade = (body[0] // 2, body[1] // 2, body[2] // 2)
    pen.rounded_rectangle((x - unit, bottom - unit * 0.62, x + unit, bottom - unit * 0.12), unit * 0.1, fill=body)
    roof = ((x - unit * 0.6, bottom - unit * 0.6), (x - unit * 0.4, bottom - unit * 1.05))
    pen.polygon((*roof, (x + unit * 0.4, bottom - unit * 1.05), (x + unit * 0.6, bottom - unit * 0.6)), fill=shade)
    for wheel in (-0.6, 0.6):
        box = (x + wheel * unit - unit * 0.18, bottom - unit * 0.3, x + wheel * unit + unit * 0.18, bottom)
        pen.ellipse(box, fill=(25, 25, 25))
    return x - unit, bottom - unit * 1.05, 2 * unit, unit * 1.05


def _draw_bonnet(pen: "ImageDraw", scene: Scene, size: tuple[int, int]) -> None:
    width, height = size
    pen.polygon(
        ((0, height), (width * 0.16, height * 0.9), (width * 0.84, height * 0.9), (width, height)),
        fill=COLOURS[scene.car],
    )


def _weathered(image: "PilImage", scene: Scene, rng: random.Random, *, drops: int = 250) -> "PilImage":
    from PIL import Image, ImageDraw

    if scene.weather == "rainy":
        pen = ImageDraw.Draw(image)
        for _ in range(drops):
            x, y = rng.randrange(image.width), rng.randrange(image.height)
            pen.line((x, y, x - 3, y + 14), fill=(190, 198, 208))
    if scene.weather == "foggy":
        image = Image.blend(image, Image.new("RGB", image.size, SKIES["foggy"]), 0.4)
    if scene.night:
        image = Image.blend(image, Image.new("RGB", image.size, (8, 10, 26)), 0.6)
    return image


def _inside(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of ``box`` in a frame of ``size``; None when less than 2 pixels of a side are left."""
    left, top = max(0.0, box[0]), max(0.0, box[1])
    right, bottom = min(float(size[0]), box[0] + box[2]), min(float(size[1]), box[1] + box[3])
    if right - left < 2 or bottom - top < 2:
        return None
    return round(left, 1), round(top, 1), round(right - left, 1), round(bottom - top, 1)
