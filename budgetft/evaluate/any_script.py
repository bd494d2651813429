"""Scores that see the letters of every script, for captions that the challenge's metrics cannot judge."""

import math
from collections.abc import Sequence

from budgetft.evaluate.metrics import cider, ngrams, rouge_l_of_words
from budgetft.evaluate.scripts import any_words
from budgetft.value import Value

_LONGEST = 4
"""n-gram of BLEU."""


class AnyScript(Value):
    """Scores over words of any script: not the challenge's, never part of S1 or S2, and not to be compared with them."""

    any_bleu: float
    """BLEU-4 of all captions together (Papineni et al. 2002), not smoothed, 0 to 1."""
    any_rouge_l: float
    """Mean F-measure over words as they are, without stems, 0 to 1."""
    any_cider: float
    """Mean CIDEr, as the challenge computes it, 0 to 10."""


def score_any_script(pairs: Sequence[tuple[str | None, str]]) -> AnyScript:
    """Scores of (prediction, reference); a missing prediction scores 0."""
    words = [(any_words(found or ""), any_words(wanted)) for found, wanted in pairs]
    count = max(len(words), 1)
    return AnyScript(
        any_bleu=corpus_bleu(words),
        any_rouge_l=math.fsum(rouge_l_of_words(*both) for both in words) / count,
        any_cider=math.fsum(cider(*both) for both in words) / count,
    )


def corpus_bleu(words: Sequence[tuple[Sequence[str], Sequence[str]]]) -> float:
    """BLEU-4 over all (predicted, reference) words together; orders longer than every prediction are left out."""
    matched, given = [0] * _LONGEST, [0] * _LONGEST
    for found, wanted in words:
        for size in range(1, _LONGEST + 1):
            have, want = ngrams(found, size), ngrams(wanted, size)
            matched[size - 1] += (have & want).total()
            given[size - 1] += have.total()
    orders = [size for size in range(_LONGEST) if given[size]]
    if not orders or not all(matched[size] for size in orders):
        return 0.0
    length, wanted_length = (sum(len(both[side]) for both in words) for side in (0, 1))
    precision = math.exp(math.fsum(math.log(matched[size] / given[size]) for size in orders) / len(orders))
    return precision * min(1.0, math.exp(1 - wanted_length / length))
