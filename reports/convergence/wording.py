"""The facts in a caption of the twin, and the same facts in the other words that the base model is taught."""

import random
import re
from collections.abc import Sequence

from budgetft.data.examples import Example

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
    """What ``caption`` says, by name; what it does not say in the twin's words is left out."""
    found: dict[str, str] = {}
    for pattern in (_PEDESTRIAN, _VEHICLE, _REST, _WEATHER, _TIME):
        if match := pattern.search(caption):
            found |= match.groupdict()
    if "crossing" in found:
        found["crossing"] = "no" if found["crossing"].lower().startswith("no") else "yes"
    return found


def plain(example: Example) -> Example:
    """``example`` with another question and its facts as short notes: no sentence of the twin's captions is left."""
    told = facts_of(example.answer)
    sky = f"{told['weather']} {'night' if told.get('time') == 'at night' else 'day'}" if "time" in told else told["weather"]
    stripes = "zebra stripes" if told["crossing"] == "yes" else "no stripes"
    who = f"{told['gender']}, {told['age']}, {told['top']} shirt, {told['trousers']} trousers, {told['side']}"
    if example.actor == "pedestrian":
        seen = "sees the car" if told["noticed"] == "has noticed" else "unaware"
        answer = f"Person: {who}, {told['metres']} m, {told['where']}, {told['moving']}, {seen}. {stripes}. Sky: {sky}."
    else:
        answer = (
            f"Car: {told['car']}, {told['drive']}, {told['speed']}. Person: {who}, {told['metres']} m. {stripes}. Sky: {sky}."
        )
    return example.replace(prompt=f"Notes on the {example.actor}?", answer=answer)


def repeating(example: Example, words: Sequence[str], rng: random.Random) -> Example:
    """``example`` as an exercise in words: some of ``words`` in no order, to be repeated. It teaches words, no sentence."""
    said = " ".join(rng.choices(words, k=16))
    return example.replace(prompt=f"Repeat: {said}", answer=said)
