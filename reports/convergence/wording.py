"""The facts in a caption of the synthetic data, and the other words in which the base model is taught them."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pictures import Seen, visible

_PEDESTRIAN = re.compile(
    r"The pedestrian is a (?P<gender>\w+) in \w+ (?P<age>\d+)s, about (?P<height>\d+) cm tall, wearing clothes of two"
    r" colours: (?P<top>\w+) above and (?P<trousers>\w+) below\. \w+ is (?P<where>[\w ,]+?), on the (?P<side>\w+) side .*"
    r"of about (?P<metres>\d+) metres\..* (?P<noticed>has noticed|has not noticed).* is (?P<moving>walking|standing)"
)
_VEHICLE = re.compile(
    r"The vehicle is a passenger car painted (?P<car>\w+), (?P<drive>.*?) at (?:about )?(?P<speed>\d+) km/h\. The"
    r" pedestrian, a (?P<gender>\w+) in \w+ (?P<age>\d+)s in (?P<top>\w+) and (?P<trousers>\w+) clothes, is on the"
    r" (?P<side>\w+) side .*about (?P<metres>\d+) metres from"
)
_REST = re.compile(r"(?P<crossing>A marked crosswalk|A crosswalk|no crosswalk|No crosswalk)")
_WEATHER = re.compile(r"The weather is (?P<weather>\w+)")
_TIME = re.compile(r"the scene is (?P<time>at night|in daylight)")


def facts_of(caption: str) -> dict[str, str]:
    """What ``caption`` says, by name; what it does not say in the synthetic data's words is left out."""
    found: dict[str, str] = {}
    for pattern in (_PEDESTRIAN, _VEHICLE, _REST, _WEATHER, _TIME):
        if match := pattern.search(caption):
            found |= match.groupdict()
    if "crossing" in found:
        found["crossing"] = "no" if found["crossing"].lower().startswith("no") else "yes"
    return found


NAMES = {
    "car": ("car", "vehicle colour"),
    "top": ("shirt", "upper clothes"),
    "trousers": ("trousers", "lower clothes"),
    "side": ("side", "left or right"),
    "where": ("place", "where"),
    "moving": ("motion", "legs"),
    "noticed": ("looks here", "sees the car"),
    "crossing": ("stripes", "zebra"),
    "weather": ("weather", "sky"),
    "time": ("time", "light"),
    "ground": ("ground", "surface"),
    "lanes": ("lanes", "lane count"),
    "view": ("camera", "view"),
    "near": ("distance", "how near"),
}
"""What each fact is called in questions; the first in notes."""
NOTES_ALONE = 0.4


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the base model is asked of a picture, and what it is to answer."""

    prompt: str
    answer: str


def asked(seen: Seen, names: Sequence[str], rng: random.Random | None = None, heading: str = "") -> Task:
    """The facts ``names``, asked for and told in their order; a fact has its first name without ``rng``."""
    facts = visible(seen)
    called = [rng.choice(NAMES[name]) if rng else NAMES[name][0] for name in names]
    told = [f"{each} {facts[name]}" for each, name in zip(called, names, strict=True)]
    return Task(prompt=f"{heading}{'? '.join(called)}?", answer=". ".join(told))


def noted(seen: Seen, heading: str = "") -> Task:
    """All facts, each under its first name."""
    return Task(prompt=f"{heading}Notes?", answer=asked(seen, list(NAMES)).answer)


def repeated(words: Sequence[str], rng: random.Random) -> Task:
    """An exercise in words: some of ``words`` in no order, to be repeated. It teaches words, no sentence."""
    said = " ".join(rng.choices(words, k=16))
    return Task(prompt=f"Repeat: {said}", answer=said)


def tasks_of(pictures: Sequence[Seen], words: Sequence[str], rng: random.Random, *, done: float) -> list[Task]:
    """A task for each picture: notes of all facts, always in one order, until ``done``, a share, is ``NOTES_ALONE``.

    After that also some facts in no order and words to repeat; and every other time all tasks follow what a dataset's
    prompt says of the images.
    """
    mixed = done >= NOTES_ALONE
    headed, tasks = mixed and rng.random() < 0.5, []
    for one in pictures:
        heading, kind = f"{one.heading}\n" if headed else "", rng.random()
        if mixed and kind < 0.15:
            tasks.append(repeated(words, rng))
        elif mixed and kind < 0.55:
            tasks.append(asked(one, rng.sample(sorted(NAMES), rng.choice((1, 2, 4))), rng, heading))
        else:
            tasks.append(noted(one, heading))
    return tasks
