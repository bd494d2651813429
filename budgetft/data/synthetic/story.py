"""What happens in a made-up event: a vehicle nears a pedestrian, in phases, and what is true at every moment."""

import random
from dataclasses import dataclass, replace
from typing import Any

from budgetft.data.synthetic.captions import position_of
from budgetft.data.synthetic.scenes import COLOURS, GROUNDS, SKIES, Scene, draw_scenario

Question = dict[str, Any]
"""``question``, two to four of the options ``a`` to ``d``, and ``correct``, as the official files have them."""

_NEAREST_M = 3.0


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase of the event; seconds from the start of the story."""

    digit: int
    start: float
    end: float

    @property
    def middle(self) -> float:
        """The moment whose truth its captions tell."""
        return (self.start + self.end) / 2


@dataclass(frozen=True, kw_only=True)
class Story:
    """One event of ``seconds`` length."""

    name: str
    seconds: float
    phases: tuple[Phase, ...]
    """In order; two may overlap a little, as in the real data."""
    scene: Scene
    """What never changes, and the state at the start."""
    last_distance_m: float
    last_offset: float
    notices_in: int
    """The phase in which the pedestrian looks at the vehicle; 5 for never."""
    walks_from: int
    stops_in: int
    """The phase in which the vehicle has come to a stop; 5 for never."""

    def at(self, seconds: float) -> Scene:
        """What is true ``seconds`` after the start."""
        part = min(max(seconds / self.seconds, 0.0), 1.0)
        phase = next((one.digit for one in reversed(self.phases) if one.start <= seconds), self.phases[0].digit)
        speed = self.scene.speed_kmh
        if phase >= self.stops_in:
            speed = 0
        elif phase == self.stops_in - 1 and speed:
            speed = max(5, speed // 2)  # it brakes
        return replace(
            self.scene,
            phase=phase,
            distance_m=round(self.scene.distance_m + (self.last_distance_m - self.scene.distance_m) * part, 2),
            offset=round(self.scene.offset + (self.last_offset - self.scene.offset) * part, 3),
            looking=phase >= self.notices_in,
            walking=phase >= self.walks_from,
            speed_kmh=speed,
        )


def tell_story(rng: random.Random, name: str, seconds: float) -> Story:
    """A made-up event. Most have five phases, some fewer; in some a phase starts before the last one ends."""
    scene = draw_scenario(rng, 0)
    shape = rng.random()
    digits = list(range(5))
    if shape < 0.15:
        digits = digits[:-1]
    elif shape < 0.25:
        digits = digits[1:]
    overlap = 0.12 if rng.random() < 0.3 else 0.0
    walks_from = rng.choice((0, 1, 2, 5))
    offset = round(rng.uniform(0.9, 1.35), 2)
    return Story(
        name=name,
        seconds=seconds,
        phases=_phases(rng, digits, seconds, overlap),
        scene=replace(
            scene,
            scenario=name,
            offset=offset,
            distance_m=float(rng.randrange(20, 28)),
            speed_kmh=rng.choice((5, 10, 15, 20, 30)),
        ),
        last_distance_m=rng.uniform(_NEAREST_M, 9.0),
        last_offset=offset if walks_from == 5 else rng.uniform(0.0, 0.8),
        notices_in=rng.choice((1, 2, 3, 5)),
        walks_from=walks_from,
        stops_in=rng.choice((3, 4, 4, 5)),
    )


def _phases(rng: random.Random, digits: list[int], seconds: float, overlap: float) -> tuple[Phase, ...]:
    lengths = [rng.uniform(0.6, 1.4) for _ in digits]
    first, span = 0.06 * seconds, 0.88 * seconds
    phases, start = [], first
    for digit, length in zip(digits, lengths, strict=True):
        end = start + span * length / sum(lengths)
        early = 0.0
        if phases and digit == digits[len(digits) // 2]:
            early = min(overlap, (start - phases[-1].start) / 2)
        phases.append(Phase(digit=digit, start=round(start - early, 3), end=round(end, 3)))
        start = end
    return tuple(phases)


def environment_questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Questions about what does not change."""
    lanes = {1: "One lane", 2: "Two lanes", 4: "Four lanes"}
    skies, grounds = ([name.capitalize() for name in sorted(known)] for known in (SKIES, GROUNDS))
    skies, grounds = ([name.capitalize() for name in sorted(known)] for known in (SKIES, GROUNDS))
    return [
        _ask(rng, "What is the weather like?", scene.weather.capitalize(), skies),
        _ask(rng, "Is it day or night?", "Night" if scene.night else "Day", ["Day", "Night"]),
        _ask(rng, "What is the road surface made of?", scene.ground.capitalize(), grounds),
        _ask(rng, "How many lanes does the road have?", lanes[scene.lanes], list(lanes.values())),
        _ask(rng, "Is there a crosswalk where the pedestrian is?", "Yes" if scene.crosswalk else "No", ["Yes", "No"]),
        _ask(rng, "What colour are the pedestrian's upper clothes?", scene.top.capitalize(), _colours()),
        _ask(rng, "What colour are the pedestrian's lower clothes?", scene.trousers.capitalize(), _colours()),
        _ask(rng, "What colour is the vehicle?", scene.car.capitalize(), _colours()),
    ]


def phase_questions(scene: Scene, rng: random.Random, count: int) -> list[Question]:
    """``count`` questions about one moment."""
    places = ["on the sidewalk", "on the road, near its edge", "in the middle of the road"]
    speeds = sorted({"0 km/h", "5 km/h", "15 km/h", "30 km/h", f"{scene.speed_kmh} km/h"})
    near = "Very close" if scene.distance_m <= 6 else "Close" if scene.distance_m <= 14 else "Far"
    moves = "Walking across" if scene.walking else "Standing still"
    asked = [
        _ask(rng, "On which side of the vehicle is the pedestrian?", scene.side.capitalize(), ["Left", "Right"]),
        _ask(rng, "Where is the pedestrian?", position_of(scene).capitalize(), [place.capitalize() for place in places]),
        _ask(rng, "Has the pedestrian noticed the vehicle?", "Yes" if scene.looking else "No", ["Yes", "No"]),
        _ask(rng, "What is the pedestrian doing?", moves, ["Walking across", "Standing still"]),
        _ask(rng, "How far is the vehicle from the pedestrian?", near, ["Very close", "Close", "Far"]),
        _ask(rng, "What is the speed of the vehicle?", f"{scene.speed_kmh} km/h", speeds),
    ]
    return rng.sample(asked, min(count, len(asked)))


def _colours() -> list[str]:
    return [colour.capitalize() for colour in sorted(COLOURS)]


def _ask(rng: random.Random, question: str, truth: str, known: list[str]) -> Question:
    wrong = [option for option in known if option != truth]
    options = [truth, *rng.sample(wrong, min(len(wrong), rng.choice((1, 2, 3, 3))))]
    rng.shuffle(options)
    letters = "abcd"[: len(options)]
    return {"question": question, **dict(zip(letters, options, strict=True)), "correct": letters[options.index(truth)]}
