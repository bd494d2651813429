"""Bring predictions and truth together, whatever files they come from, and score them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from budgetft.data.examples import Example
from budgetft.data.wts.notes import LETTERS, phase_digit
from budgetft.data.wts.tree import ACTORS
from budgetft.errors import UsageError
from budgetft.evaluate.aggregate import How, aggregate, majority
from budgetft.evaluate.metrics import Scorer
from budgetft.evaluate.notes import SHORT, Caption, Note, answer_notes, caption_notes, note
from budgetft.evaluate.official import Slot, answer_letter
from budgetft.evaluate.predictions import Prediction, predicted
from budgetft.evaluate.scoring import Evaluation, Pair, score_answers, score_captions


class Question(NamedTuple):
    """A multiple-choice question."""

    id: str


class Plain(NamedTuple):
    """A captioning example that is of no phase and no actor."""

    id: str


Key = Slot | Question | Plain


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts under what they are about; the truth, or predictions already reduced to one each."""

    captions: dict[Slot, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    """Letters by question id."""
    plain: dict[str, str] = field(default_factory=dict)


def key_of_example(example: Example) -> Key:
    """What ``example`` is about. A question is one whose answer is a letter, a to d; of a test set, one of no actor."""
    if example.answer.strip().lower() in LETTERS:
        return Question(_source(example))
    return _slot(example) or (Plain if example.answer.strip() else Question)(_source(example))


def key_of_prediction(prediction: Prediction) -> Key:
    """What ``prediction`` says it is about; without scenario, phase and actor it is taken for an answer."""
    return _slot(prediction) or Question(_source(prediction))


def truth_of_examples(examples: Iterable[Example]) -> Texts:
    """The answers of ``examples``, one for all frames and views of a thing; the vehicle's view has the last word.

    Raises ``UsageError`` when some captions are of phases and actors and others are not, and when a question has two
    answers.
    """
    truth = Texts()
    twice: dict[str, None] = {}
    for example in sorted(examples, key=lambda one: one.view == "vehicle_view"):
        match key_of_example(example):
            case Slot() as slot:
                truth.captions.setdefault(slot, example.answer)
            case Question(name):
                letter = example.answer.strip()
                if truth.answers.setdefault(name, letter).lower() != letter.lower():
                    twice[name] = None
            case Plain(name):
                if truth.plain.setdefault(name, example.answer) != example.answer:
                    twice[name] = None
    if twice:
        raise UsageError(
            f"{listed(list(twice))} {'has' if len(twice) == 1 else 'have'} two different labels",
            hint="keep one label for each question and each caption",
        )
    if truth.captions and truth.plain:
        name = next(iter(truth.plain))
        raise UsageError(
            f"{len(truth.plain)} captions are of no scenario, phase and actor (the first: {name!r}),"
            f" {len(truth.captions)} are; their scores cannot be averaged",
            hint="keep them in two datasets",
        )
    return truth


def listed(names: Sequence[str], shown: int = 5) -> str:
    """The number of ``names`` and the first of them."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} ids ({', '.join(names[:shown])}{more})" if len(names) > 1 else f"the id {names[0]}"


def reduce_predictions(
    predictions: Sequence[Prediction], examples: Iterable[Example] | None, *, how: How, scorer: Scorer
) -> Texts:
    """One text per thing. What a prediction is about is read from its example, else from the prediction itself.

    Of predictions with equal ids the last counts. Those of no example are kept under their own id: they are unknown.
    """
    latest = {one.id: one for one in predictions}
    keys: dict[str, Key] = {name: key_of_prediction(one) for name, one in latest.items()}
    for example in examples or ():
        if example.id in latest:
            keys[example.id] = key_of_example(example)
            latest[example.id] = predicted(example, latest[example.id].text)
    captions = {name: one for name, one in latest.items() if not isinstance(keys[name], Question)}
    texts = Texts()
    for key, chosen in aggregate(captions.values(), lambda one: keys[one.id], how=how, scorer=scorer).items():
        if isinstance(key, Slot):
            texts.captions[key] = chosen.text
        else:
            texts.plain[key.id] = chosen.text
    questions: dict[str, list[Prediction]] = {}
    for name, one in latest.items():
        if isinstance(key := keys[name], Question):
            questions.setdefault(key.id, []).append(one)
    for name, group in questions.items():
        # An answer that names no letter is wrong, not missing.
        texts.answers[name] = majority(group, lambda one: answer_letter(one.text)) or ""
    return texts


def evaluate(found: Texts, truth: Texts, scorer: Scorer, *, unlabelled: int = 0, notes: Sequence[Note] = ()) -> Evaluation:
    """Score ``found`` against ``truth``: captions, answers, or both; ``notes`` come before those of the texts."""
    captions: dict[Slot, str] | dict[str, str] = truth.captions or truth.plain
    given: dict[Slot, str] | dict[str, str] = found.captions if truth.captions else found.plain
    pairs = [_caption(key, given.get(key), text) for key, text in captions.items()]  # pyright: ignore[reportArgumentType]
    unknown = [str(key) for key in given if key not in captions]
    report = score_captions([_pair(one) for one in pairs], scorer, unknown=unknown) if pairs else None
    about = caption_notes(pairs, scorer) if pairs else []
    if report is not None and report.withheld:
        about = [one for one in about if one.kind != SHORT]  # it is about figures that are not shown
    return Evaluation(
        captions=report,
        answers=score_answers(found.answers.items(), truth.answers) if truth.answers else None,
        unlabelled=unlabelled,
        notes=(
            *notes,
            *note("unknown", _strays(found, truth), "{n} predictions belong to no label: they do not count"),
            *about,
            *(answer_notes(found.answers, truth.answers) if truth.answers else ()),
        ),
    )


def _strays(found: Texts, truth: Texts) -> list[object]:
    return [
        *(slot for slot in found.captions if slot not in truth.captions),
        *(name for name in found.plain if name not in truth.plain),
        *(name for name in found.answers if name not in truth.answers),
    ]


def _caption(key: Slot | str, prediction: str | None, reference: str) -> Caption:
    scenario, phase, actor = key if isinstance(key, Slot) else (None, None, None)
    return Caption(name=str(key), scenario=scenario, phase=phase, actor=actor, prediction=prediction, reference=reference)


def _pair(one: Caption) -> Pair:
    if one.actor is None:
        return Pair(name=one.name, prediction=one.prediction, reference=one.reference)
    return Pair(name=one.name, group=one.actor, scenario=one.scenario, prediction=one.prediction, reference=one.reference)


def _slot(one: Example | Prediction) -> Slot | None:
    digit = None if one.phase is None else phase_digit(one.phase)
    return Slot(one.scenario, digit, one.actor) if one.scenario and digit and one.actor in ACTORS else None


def _source(one: Example | Prediction) -> str:
    """The id of what was expanded into frames; its own id where it was not."""
    expanded = one.frame_rank is not None and one.source_id != one.scenario
    return (one.source_id if expanded else None) or one.id
