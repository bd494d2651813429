"""Pictures of a synthetic dataset's scenarios as ``data wts --frames crop`` would cut them, drawn at once, without a video
between.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from budgetft.data.media.video import VideoFacts
from budgetft.data.synthetic.captions import pedestrian_caption, position_of, vehicle_caption
from budgetft.data.synthetic.cast import cast_synthetic
from budgetft.data.synthetic.drawing import draw_backdrop, draw_moment, style_named
from budgetft.data.synthetic.scenes import Scene
from budgetft.data.synthetic.spec import Film, SyntheticSpec
from budgetft.data.wts.reformat import Clip, Format, FrameBox, Row, drafts_of

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage

SIZE = (320, 240)
MAX_SIDE = 112


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One moment in one film: the frame and its enlarged part, and what is true in it."""

    images: tuple["PilImage", ...]
    heading: str
    """What the dataset's prompt says of the images."""
    actor: str
    view: str
    scene: Scene
    caption: str


def draw(style: str, scenarios: int, seed: int) -> Iterator[Seen]:
    """Every phase of every film of a synthetic dataset that was never written, in the order of its scenarios; one actor a
    picture.
    """
    spec = SyntheticSpec(
        scenarios=scenarios, seed=seed, style=style, fractions=(1, 0, 0), seconds=2, fps=5, size=SIZE, external=False
    )
    for cast in cast_synthetic(Path("drawn"), spec):
        for films in cast.films.values():
            for film in films:
                yield from _moments(film)


def visible(seen: Seen) -> dict[str, str]:
    """The facts that can be seen in a picture, by name, in the words of the captions."""
    scene = seen.scene
    return {
        "car": scene.car,
        "top": scene.top,
        "trousers": scene.trousers,
        "side": scene.side,
        "where": position_of(scene),
        "moving": "walking" if scene.walking else "standing",
        "noticed": "yes" if scene.looking else "no",
        "crossing": "yes" if scene.crosswalk else "no",
        "weather": scene.weather,
        "time": "night" if scene.night else "day",
        "ground": scene.ground,
        "lanes": str(scene.lanes),
        "view": "overhead" if seen.view == "overhead_view" else "vehicle",
        "near": "near" if scene.distance_m <= 6 else "middle" if scene.distance_m <= 14 else "far",
    }


def _moments(film: Film) -> Iterator[Seen]:
    rng = random.Random(film.seed)
    style, view = style_named(film.style), film.camera.view
    backdrop = draw_backdrop(film.story.scene, film.camera, rng, style)
    for phase in film.story.phases:
        seconds = phase.middle + rng.uniform(-0.4, 0.4) * (phase.end - phase.start)
        scene = film.story.at(phase.middle)
        image, boxes = draw_moment(
            backdrop, film.story.at(seconds), film.camera, style, rng, anchor_m=film.anchor_m, stride=rng.random()
        )
        index = max(0, round((seconds - film.start) * film.fps))
        found = {actor: [FrameBox(index=index, box=box, digit=None)] for actor, box in boxes.items()}
        facts = VideoFacts(width=image.width, height=image.height, fps=film.fps, seconds=film.seconds)
        clip = Clip(path=film.path, view=view, facts=facts, boxes=found)
        actor = rng.choice(("pedestrian", "vehicle"))
        row = Row(
            id=film.path.stem,
            scenario=film.story.name,
            digit=str(phase.digit),
            actor=actor,
            window=(max(0.0, phase.start - film.start), min(phase.end - film.start, film.seconds)),
            ask="",
            answer="",
        )
        draft = drafts_of(row, [clip], Format(frames="crop"))[0]
        pictures = []
        for shot in draft.shots:
            part = image
            if shot.crop is not None:
                x, y, width, height = shot.crop
                part = image.crop((round(x), round(y), round(x + width), round(y + height)))
            part = part.copy()
            part.thumbnail((MAX_SIDE, MAX_SIDE))
            pictures.append(part)
        caption = (pedestrian_caption if actor == "pedestrian" else vehicle_caption)(scene)
        yield Seen(
            images=tuple(pictures), heading=draft.fields["prompt"].strip(), actor=actor, view=view, scene=scene, caption=caption
        )
