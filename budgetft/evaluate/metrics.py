"""The four caption metrics of the AI City Challenge 2026 Track 2, one prediction against one reference.

They are those of the organisers' script (github.com/woven-visionai/wts-dataset at 9991585,
evaluation/eval-metrics-AIC-Track2), not those of the COCO package of the same names: never compare the two.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from budgetft.errors import BudgetftError
from budgetft.evaluate.scripts import is_blank
from budgetft.installed import install_line
from budgetft.value import Value

MeteorName = Literal["meteor", "meteor_nowordnet"]
CIDER_SIGMA = 6.0
CIDER_LARGEST = 4
"""Longest n-gram."""
_BLEU_WEIGHTS = (0.25, 0.25, 0.25, 0.25)
_CACHED_WORDS = 100_000


class Scores(Value):
    """BLEU-4, METEOR and ROUGE-L from 0 to 1, CIDEr from 0 to 10."""

    bleu: float
    meteor: float
    """Called by :attr:`Scorer.meteor_name` wherever it is shown: without WordNet it is another, lower number."""
    rouge_l: float
    cider: float

    @property
    def s1(self) -> float:
        """The score of subtask 1, 0 to 100: (100 B + 100 M + 100 R + 10 C) / 4."""
        return (100 * self.bleu + 100 * self.meteor + 100 * self.rouge_l + 10 * self.cider) / 4


ZERO = Scores(bleu=0.0, meteor=0.0, rouge_l=0.0, cider=0.0)


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """The mean of each metric; all zero for no scores."""
    count = max(len(scores), 1)
    return Scores(**{name: math.fsum(getattr(one, name) for one in scores) / count for name in Scores.model_fields})


class WordNet(Protocol):
    """What METEOR asks of WordNet."""

    def synsets(self, word: str) -> Sequence[Any]:
        """The sets of synonyms that ``word`` is in."""
        ...


class NoWordNet:
    """Knows no synonym: METEOR then matches equal words and equal Porter stems only."""

    def synsets(self, word: str) -> Sequence[Any]:
        return ()


def installed_wordnet() -> WordNet | None:
    """NLTK's WordNet where its corpus is on this machine, else None; nothing is downloaded."""
    from nltk.corpus import wordnet

    reader: Any = wordnet
    try:
        reader.synsets("car")
    except (LookupError, OSError):  # absent, or not whole
        return None
    return reader


def check_packages() -> None:
    """Raise ``BudgetftError`` when a package that scoring needs is missing, without loading any."""
    missing = next((name for name in ("nltk", "rouge_score") if find_spec(name) is None), None)
    if missing is not None:
        raise _missing(missing)


def _missing(package: str | None) -> BudgetftError:
    return BudgetftError(f"scoring needs the package {package}", hint=install_line())


class Scorer:
    """Scores pairs of texts; keeps the stems and synonyms of the words it has seen.

    ``wordnet`` None means the installed one. Without it METEOR is called ``meteor_nowordnet``: a lower bound of the
    official value (not a strict one: a synonym out of order adds a chunk, and a chunk costs).
    Raises ``BudgetftError`` when the packages nltk and rouge-score are missing.
    """

    def __init__(self, wordnet: WordNet | None = None) -> None:
        try:
            from nltk.stem import PorterStemmer
            from nltk.tokenize import TreebankWordTokenizer
            from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
            from nltk.translate.meteor_score import meteor_score
            from rouge_score.rouge_scorer import RougeScorer
            from rouge_score.tokenizers import DefaultTokenizer
        except ImportError as error:  # one of theirs may be missing too
            raise _missing(error.name) from None
        known = wordnet or installed_wordnet()
        self.meteor_name: MeteorName = (
            "meteor" if known is not None and not isinstance(known, NoWordNet) else "meteor_nowordnet"
        )
        self._wordnet: Any = _CachedWordNet(known or NoWordNet())
        self._stemmer: Any = _CachedStemmer(PorterStemmer())
        self._tokenizer = TreebankWordTokenizer()
        self._bleu, self._smoothing = sentence_bleu, SmoothingFunction().method3
        self._meteor = meteor_score
        rouge_words: Any = DefaultTokenizer(use_stemmer=True)
        rouge_words._stemmer = _CachedStemmer(rouge_words._stemmer)  # the stems are the same, only sooner
        self._rouge = RougeScorer(["rougeL"], use_stemmer=True, tokenizer=rouge_words)
        self._rouge_words = rouge_words

    def words(self, text: str) -> list[str]:
        """Treebank tokens, their case kept."""
        return self._tokenizer.tokenize(text)

    def rouge_words(self, text: str) -> list[str]:
        """The stems that ROUGE-L compares."""
        return self._rouge_words.tokenize(text)

    def score(self, prediction: str, reference: str) -> Scores:
        """``prediction`` against ``reference``, as the official script does.

        All 0 where the reference is blank: there is nothing to be right about. (The official script gives two empty texts
        BLEU .35 and METEOR .50, because it takes "" for a word.)
        """
        if is_blank(reference):
            return ZERO
        found, wanted = self.words(prediction), self.words(reference)
        # The official script joins the tokens and splits them again, which makes one empty token of no tokens.
        found_1 = found or [""]
        bleu: Any = self._bleu([wanted], found_1, weights=_BLEU_WEIGHTS, smoothing_function=self._smoothing)
        meteor = self._meteor([wanted], found_1, stemmer=self._stemmer, wordnet=self._wordnet)
        rouge = self._rouge.score(reference, prediction)["rougeL"].fmeasure
        return Scores(bleu=float(bleu), meteor=float(meteor), rouge_l=float(rouge), cider=cider(found, wanted))


def bigram_difference(found: Sequence[str], wanted: Sequence[str]) -> int:
    """How many bigrams ``found`` has more than ``wanted``: what CIDEr takes for the difference in length."""
    return max(len(found) - 1, 0) - max(len(wanted) - 1, 0)


def cider(found: Sequence[str], wanted: Sequence[str]) -> float:
    """CIDEr-D of one tokenized prediction against one tokenized reference, 0 to 10.

    The official script calls the corpus metric on one pair at a time. With one document its scorer sets log N to 1 and
    every log df is 0, so that all weights are plain counts: the mean over n = 1..4 of the clipped cosine
    ``sum(min(f, w) * w) / (|f| * |w|)``, times ``exp(-d ** 2 / (2 * sigma ** 2))``, d the difference in bigrams.
    An n for which one side has no n-gram counts as 0.
    """
    total = 0.0
    for size in range(1, CIDER_LARGEST + 1):
        have, want = ngrams(found, size), ngrams(wanted, size)
        norm = math.sqrt(sum(count**2 for count in have.values())) * math.sqrt(sum(count**2 for count in want.values()))
        if norm:
            total += sum(min(count, want[gram]) * want[gram] for gram, count in have.items() if gram in want) / norm
    penalty = math.exp(-(bigram_difference(found, wanted) ** 2) / (2 * CIDER_SIGMA**2))
    return 10 * penalty * total / CIDER_LARGEST


def ngrams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    """How often each run of ``size`` words is in ``words``."""
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def rouge_l_of_words(found: Sequence[str], wanted: Sequence[str]) -> float:
    """The ROUGE-L F-measure, 0 to 1, of texts as :meth:`Scorer.rouge_words` gives them.

    The same number as the metric's, hundreds of times sooner: what comparing every candidate with every other needs.
    """
    if not found or not wanted:
        return 0.0
    common = _common_subsequence(found, wanted)
    return 2 * common / (len(found) + len(wanted))


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, a column of the table in one integer (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    full = (1 << len(first)) - 1
    column = full
    for word in second:
        matched = column & places.get(word, 0)
        column = (column + matched) | (column - matched)
    return len(first) - (column & full).bit_count()


class _CachedStemmer:
    def __init__(self, stemmer: Any) -> None:
        self.stem = lru_cache(_CACHED_WORDS)(stemmer.stem)


class _CachedWordNet:
    def __init__(self, wordnet: WordNet) -> None:
        self.synsets = lru_cache(_CACHED_WORDS)(wordnet.synsets)
