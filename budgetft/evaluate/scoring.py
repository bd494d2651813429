"""From pairs of texts to the challenge's scores: S1 of captions, accuracy of answers, S2 of both."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from budgetft.evaluate.any_script import AnyScript, score_any_script
from budgetft.evaluate.metrics import ZERO, MeteorName, Scorer, Scores, bigram_difference, mean_scores
from budgetft.evaluate.notes import Note
from budgetft.evaluate.official import is_external
from budgetft.evaluate.scripts import Hidden, is_blank
from budgetft.value import Value

PLAIN = "all"
"""The group of captions that are of no actor."""


class Pair(Value):
    """One reference and what was predicted for it."""

    name: str
    group: str = PLAIN
    """What is averaged first: the actor."""
    scenario: str | None = None
    prediction: str | None
    """None: missing. It scores 0 and stays in the denominator."""
    reference: str


class ScenarioRow(Value):
    """The captions of one scenario."""

    scenario: str
    captions: int
    missing: int
    scores: Scores
    s1: float
    bigram_difference: float | None
    """Mean of the absolute differences."""


class CaptionReport(Value):
    """Scores of captions; ``scores`` is the mean over groups of the means over their captions."""

    meteor_name: MeteorName
    captions: int
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    """Predictions that no reference asks for; they do not count."""
    wordless: tuple[str, ...] = ()
    """Captions whose reference has no word that ROUGE-L sees: it knows Latin letters and digits alone."""
    hidden: Hidden
    """How much of the references ROUGE-L drops."""
    withheld: bool
    """Whether it drops so much that the challenge's figures are not shown: they may look good or bad by accident."""
    any_script: AnyScript
    scores: Scores
    s1: float
    groups: dict[str, Scores]
    internal_s1: float | None
    """Of the scenarios that are scored in 2026; None unless there are others too."""
    external_s1: float | None
    """Of BDD_PC_5K; None unless there are others too."""
    length_ratio: float | None
    """Tokens predicted over tokens of their references; None when all are missing."""
    bigram_difference: float | None
    """Mean of the absolute differences in bigrams: CIDEr keeps 61 % at 6, 14 % at 12, 1 % at 18."""
    bigram_bias: float | None
    """Mean of the differences: above 0 the predictions are too long."""
    scenarios: tuple[ScenarioRow, ...]


class AnswerReport(Value):
    """Answers to multiple-choice questions; accuracies are in percent of all questions."""

    questions: int
    correct: int
    wrong: int
    missing: int
    unknown: int
    """Answers to questions that are not asked; they do not count."""
    accuracy: float
    commonest_label_accuracy: float
    """What giving the commonest true letter to every question would have: guessing, not seeing."""


class Evaluation(Value):
    """What a set of predictions scores; ``s2`` needs both subtasks."""

    captions: CaptionReport | None = None
    answers: AnswerReport | None = None
    unlabelled: int = 0
    """Examples that were left out because they have no label."""
    notes: tuple[Note, ...] = ()
    """What to know before the scores are believed."""

    @property
    def s2(self) -> float | None:
        """(S1 + accuracy) / 2, 0 to 100; None where either is missing or withheld."""
        if self.captions is None or self.answers is None or self.captions.withheld:
            return None
        return (self.captions.s1 + self.answers.accuracy) / 2

    def labelled(self) -> dict[str, Any]:
        """As JSON, METEOR under the name of what it is, and scores that contain it marked when they are lower bounds.

        Figures of the challenge that are withheld are null.
        """
        data: dict[str, Any] = {"captions": None, "answers": None, "s1": None, "accuracy": None, "s2": self.s2}
        if self.captions is not None:
            dumped = self.captions.model_dump(exclude={"meteor_name"})
            if self.captions.withheld:
                dumped |= dict.fromkeys(("scores", "s1", "groups", "internal_s1", "external_s1"))
                dumped["scenarios"] = [row | {"scores": None, "s1": None} for row in dumped["scenarios"]]
            data["captions"] = _rename(dumped, {"meteor": self.captions.meteor_name})
            data["s1"] = dumped["s1"]
            data["lower_bound"] = self.captions.meteor_name != "meteor"
        if self.answers is not None:
            data["answers"] = self.answers.model_dump()
            data["accuracy"] = self.answers.accuracy
        data["unlabelled"] = self.unlabelled
        data["notes"] = [one.model_dump(mode="json") for one in self.notes]
        return data


def score_captions(pairs: Sequence[Pair], scorer: Scorer, *, unknown: Sequence[str] = ()) -> CaptionReport:
    """Score ``pairs`` as the official script does: a missing prediction scores 0 and counts.

    Each group (pedestrian, vehicle) is averaged over all its captions of all scenarios, then the groups.
    """
    scores = [ZERO if pair.prediction is None else scorer.score(pair.prediction, pair.reference) for pair in pairs]
    lengths = [_lengths(pair, scorer) for pair in pairs]
    groups = _group_means(pairs, scores)
    overall = mean_scores(list(groups.values()))
    hidden = Hidden.of([(pair.name, pair.prediction, pair.reference) for pair in pairs])
    internal, external = _split_s1(pairs, scores)
    present = [length for length in lengths if length is not None]
    wanted = sum(length[1] for length in present)
    return CaptionReport(
        meteor_name=scorer.meteor_name,
        captions=len(pairs),
        missing=tuple(pair.name for pair in pairs if pair.prediction is None),
        unknown=tuple(unknown),
        wordless=tuple(pair.name for pair in pairs if pair.reference.strip() and not scorer.rouge_words(pair.reference)),
        hidden=hidden,
        withheld=hidden.too_much(len(pairs)),
        any_script=score_any_script([(pair.prediction, pair.reference) for pair in pairs]),
        scores=overall,
        s1=overall.s1,
        groups=groups,
        internal_s1=internal,
        external_s1=external,
        length_ratio=sum(length[0] for length in present) / wanted if wanted else None,
        bigram_difference=_mean([abs(length[2]) for length in present]),
        bigram_bias=_mean([length[2] for length in present]),
        scenarios=_scenario_rows(pairs, scores, lengths),
    )


def _group_means(pairs: Sequence[Pair], scores: Sequence[Scores]) -> dict[str, Scores]:
    return {
        group: mean_scores([score for pair, score in zip(pairs, scores, strict=True) if pair.group == group])
        for group in dict.fromkeys(pair.group for pair in pairs)
    }


def _split_s1(pairs: Sequence[Pair], scores: Sequence[Scores]) -> tuple[float | None, float | None]:
    """S1 of the internal and of the external scenarios; None for both unless there are both."""
    sides: list[list[int]] = [[], []]
    for index, pair in enumerate(pairs):
        if pair.scenario is not None:
            sides[is_external(pair.scenario)].append(index)
    if not all(sides):
        return None, None
    means = [_group_means([pairs[i] for i in side], [scores[i] for i in side]) for side in sides]
    internal, external = (mean_scores(list(groups.values())).s1 for groups in means)
    return internal, external


def score_answers(predicted: Iterable[tuple[str, str]], truth: Mapping[str, str]) -> AnswerReport:
    """Accuracy of (question id, letter) over all questions: case ignored, missing is wrong, of duplicates the last counts.

    Nothing is right about a question whose true answer is empty.
    """
    answers = {name: letter.lower() for name, letter in predicted}
    correct = sum(answers.get(name) == letter.lower() and not is_blank(letter) for name, letter in truth.items())
    missing = sum(name not in answers for name in truth)
    commonest = max(Counter(letter.lower() for letter in truth.values() if not is_blank(letter)).values(), default=0)
    return AnswerReport(
        questions=len(truth),
        correct=correct,
        wrong=len(truth) - correct - missing,
        missing=missing,
        unknown=sum(name not in truth for name in answers),
        accuracy=100 * correct / len(truth) if truth else 0.0,
        commonest_label_accuracy=100 * commonest / len(truth) if truth else 0.0,
    )


def _lengths(pair: Pair, scorer: Scorer) -> tuple[int, int, int] | None:
    """Tokens predicted, tokens of the reference, and the difference in bigrams; None when missing."""
    if pair.prediction is None:
        return None
    found, wanted = scorer.words(pair.prediction), scorer.words(pair.reference)
    return len(found), len(wanted), bigram_difference(found, wanted)


def _scenario_rows(
    pairs: Sequence[Pair], scores: Sequence[Scores], lengths: Sequence[tuple[int, int, int] | None]
) -> tuple[ScenarioRow, ...]:
    members: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        if pair.scenario is not None:
            members.setdefault(pair.scenario, []).append(index)
    rows = []
    for scenario, indices in members.items():
        groups = dict.fromkeys(pairs[i].group for i in indices)
        mean = mean_scores([mean_scores([scores[i] for i in indices if pairs[i].group == group]) for group in groups])
        rows.append(
            ScenarioRow(
                scenario=scenario,
                captions=len(indices),
                missing=sum(pairs[i].prediction is None for i in indices),
                scores=mean,
                s1=mean.s1,
                bigram_difference=_mean([abs(length[2]) for i in indices if (length := lengths[i]) is not None]),
            )
        )
    return tuple(rows)


def _mean(numbers: Sequence[int]) -> float | None:
    return math.fsum(numbers) / len(numbers) if numbers else None


def _rename(data: Any, names: Mapping[str, str]) -> Any:
    if isinstance(data, dict):
        return {names.get(key, key): _rename(value, names) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_rename(value, names) for value in data]
    return data
