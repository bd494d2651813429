"""Several predictions of one thing (one a frame, one a view) to one."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Literal, TypeVar

from budgetft.evaluate.metrics import Scorer, rouge_l_of_words
from budgetft.evaluate.predictions import Prediction

How = Literal["mid", "consensus"]
"""``mid``: that of the frame in the middle. ``consensus``: the one most like the others."""

K = TypeVar("K", bound=Hashable)


def aggregate(
    predictions: Iterable[Prediction], key: Callable[[Prediction], K], *, how: How, scorer: Scorer
) -> dict[K, Prediction]:
    """One prediction per ``key``, in the order in which the keys appear."""
    groups: dict[K, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(key(prediction), []).append(prediction)
    return {name: middle(group) if how == "mid" else consensus(group, scorer) for name, group in groups.items()}


def middle(group: Sequence[Prediction]) -> Prediction:
    """The prediction whose ``frame_rank`` is in the middle, the earlier of two; those without one come first, as they are."""
    ranked = sorted(group, key=lambda one: -1 if one.frame_rank is None else one.frame_rank)
    return ranked[(len(ranked) - 1) // 2]


def consensus(group: Sequence[Prediction], scorer: Scorer) -> Prediction:
    """The prediction with the highest mean ROUGE-L to the others: minimum Bayes risk with the candidates as the sample.

    Of equals the one nearest to the middle frame; so the result of two is that of :func:`middle`.
    """
    ranked = sorted(group, key=lambda one: -1 if one.frame_rank is None else one.frame_rank)
    words = [scorer.rouge_words(one.text) for one in ranked]
    likeness = [0.0] * len(ranked)
    for first in range(len(ranked)):
        for second in range(first):
            shared = rouge_l_of_words(words[first], words[second])
            likeness[first] += shared
            likeness[second] += shared
    centre = (len(ranked) - 1) // 2
    # Rounded: sums of the same numbers in another order must count as equal.
    best = min(range(len(ranked)), key=lambda i: (-round(likeness[i], 9), abs(i - centre), i))
    return ranked[best]


def majority(group: Sequence[Prediction], letter: Callable[[Prediction], str | None]) -> str | None:
    """The letter that most predictions give, of equals the one nearest to the middle frame; None when none gives any."""
    given = Counter(found for one in group if (found := letter(one)) is not None)
    if not given:
        return None
    most = max(given.values())
    tied = [one for one in group if (found := letter(one)) is not None and given[found] == most]
    return letter(middle(tied))
