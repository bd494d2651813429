"""What to know before a score is believed: every way that is known in which one can look good, or bad, by accident."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from budgetft.data.wts.notes import LETTERS
from budgetft.data.wts.tree import ACTORS
from budgetft.evaluate.metrics import Scorer
from budgetft.evaluate.official import is_external, official_name
from budgetft.evaluate.scripts import any_words, is_blank
from budgetft.value import Value

SHORT = "short labels"
FEW = 30
"""Fewer examples than this, and a difference of several points may be chance."""
_LISTED = 20
_SHORT, _LONG = 4, 8
"""Words: BLEU-4 and CIDEr count runs of four; nobody writes eight words of a label by chance."""
_SAME = 0.5
_SAME_LETTER = 0.8
_ENOUGH = 5
_ENDS = ".!?…。！？।؟"
_CLOSING = "\"'”’)]»」』 \n\t"
_EMPTY_CELLS = frozenset(("nan", "null", "none", "n/a", "na", "<na>", "nil", "undefined"))


class Note(Value):
    """A finding about the data or the predictions, with how many it is about."""

    kind: str
    count: int
    text: str
    ids: tuple[str, ...] = ()
    """The first of them; never what was predicted."""


def note(kind: str, names: Iterable[object], text: str) -> list[Note]:
    """The note of ``names``, ``{n}`` in its text being their number; none of no names."""
    ids = [str(name) for name in names]
    if not ids:
        return []
    return [Note(kind=kind, count=len(ids), text=text.replace("{n}", str(len(ids))), ids=tuple(ids[:_LISTED]))]


class Caption(Value):
    """A label and what was predicted for it."""

    name: str
    scenario: str | None
    phase: str | None
    actor: str | None
    prediction: str | None
    reference: str


def caption_notes(captions: Sequence[Caption], scorer: Scorer) -> list[Note]:
    """What to know about the scores of ``captions``."""
    return [*_scenario_notes(captions), *_label_notes(captions, scorer), *_prediction_notes(captions)]


def _scenario_notes(captions: Sequence[Caption]) -> list[Note]:
    """How the set differs from what the challenge scores, or its scoring from the organisers' script."""
    predicted: dict[str, bool] = {}
    phases: dict[tuple[str, str | None], list[bool]] = {}
    for one in captions:
        if one.scenario is not None:
            given = one.prediction is not None
            predicted[one.scenario] = predicted.get(one.scenario, False) or given
            phases.setdefault((one.scenario, one.phase), []).append(given)
    total = len(predicted)
    halves = [f"{scenario} phase {phase}" for (scenario, phase), given in phases.items() if any(given) and not all(given)]
    actors = {one.actor for one in captions if one.actor}
    external = [name for name in predicted if is_external(name)]
    renamed = [name for name in predicted if official_name(name) != name]
    found = note(
        "scenarios without predictions",
        [name for name, given in predicted.items() if not given],
        f"{{n}} of {total} scenarios have no prediction at all: each of their captions scores 0 and counts, as in the"
        " organisers' script",
    )
    found += note(
        "half phases",
        halves,
        "{n} phases have a prediction for one of pedestrian and vehicle only: the other scores 0; the organisers' script stops"
        " with an error there",
    )
    if len(actors) == 1:
        missing = next(actor for actor in ACTORS if actor not in actors)
        found += note(
            "one actor", missing.split(), f"no label is about the {missing}: the challenge's S1 is the mean over both actors"
        )
    found += note(
        "external scenarios",
        external,
        f"{{n}} of {total} scenarios are of BDD_PC_5K (video1, video2, ...), which the 2026 challenge does not score",
    )
    found += note(
        "scenario names",
        renamed,
        "{n} scenarios have a name that the organisers' script shortens: they are scored here, and count as missing there",
    )
    if len(captions) < FEW:
        scenarios = f" of {total} scenario{'s' * (total > 1)}" if total else ""
        text = f"only {len(captions)} captions{scenarios}: a difference of several points may be chance"
        found.append(Note(kind="few captions", count=len(captions), text=text))
    elif total == 1:
        found += note("one scenario", predicted, "all captions are of one scenario: the score says little about others")
    return found


def _label_notes(captions: Sequence[Caption], scorer: Scorer) -> list[Note]:
    short = [one.name for one in captions if len(scorer.words(one.reference)) < _SHORT]
    cells = [one.name for one in captions if one.reference.strip().lower() in _EMPTY_CELLS]
    return [
        *note(
            SHORT,
            short,
            f"{{n}} labels have fewer than {_SHORT} words: BLEU-4 and CIDEr compare runs of 4 words and mean little there,"
            " and one equal word already gives BLEU-4 0.35 and METEOR 0.50",
        ),
        *note("placeholder labels", cells, "{n} labels are a word that stands for an empty cell (nan, null, none, n/a, ...)"),
    ]


def _prediction_notes(captions: Sequence[Caption]) -> list[Note]:
    given = [(one, one.prediction) for one in captions if one.prediction is not None]
    blank = [one.name for one, text in given if is_blank(text)]
    cut = [
        one.name
        for one, text in given
        if not is_blank(text) and _ends(one.reference) and not _ends(text) and len(any_words(text)) >= _SHORT
    ]
    long = [(one, text) for one, text in given if len(any_words(one.reference)) >= _LONG]
    equal = [one.name for one, text in long if text.strip() == one.reference.strip()]
    texts = Counter(text.strip() for _, text in given)
    common, times = texts.most_common(1)[0] if texts else ("", 0)
    labels = {one.reference.strip() for one, text in given if text.strip() == common}
    same = [one.name for one, text in given if text.strip() == common]
    repeated = times >= _ENOUGH and times > _SAME * len(given) and len(labels) > 1
    return [
        *note("empty predictions", blank, "{n} predicted captions are empty"),
        *note(
            "cut off",
            cut,
            "{n} predicted captions do not end a sentence although their label does: were they cut off at --max-new-tokens?"
            " CIDEr favours texts of the label's length, so its value is partly that of the limit",
        ),
        *note(
            "equal to the label",
            equal if len(equal) > _SAME * len(long) else (),
            f"{{n}} of {len(long)} captions of {_LONG} words or more are the label word for word: are they really predictions?",
        ),
        *note(
            "one text",
            same if repeated else (),
            f"{{n}} of {len(given)} predicted captions are one and the same text: its score says nothing about the images",
        ),
    ]


def _ends(text: str) -> bool:
    return text.rstrip(_CLOSING).endswith(tuple(_ENDS))


def answer_notes(found: Mapping[str, str], truth: Mapping[str, str]) -> list[Note]:
    """What to know about the accuracy of the answers ``found``."""
    given = {name: found[name].strip().lower() for name in truth if name in found}
    common, times = Counter(given.values()).most_common(1)[0] if given else ("", 0)
    one_letter = len(given) >= _ENOUGH and times > _SAME_LETTER * len(given)
    few = f"only {len(truth)} questions: a difference of several points may be chance"
    return [
        *note(
            "no single letter",
            [name for name, letter in given.items() if letter not in LETTERS],
            "{n} answers name no letter or several (such as A, B, C, D): they count as wrong",
        ),
        *note(
            "one letter",
            [name for name, letter in given.items() if letter == common] if one_letter and common else (),
            f"{{n}} of {len(given)} answers are the same letter",
        ),
        *([Note(kind="few questions", count=len(truth), text=few)] if len(truth) < FEW else ()),
    ]
