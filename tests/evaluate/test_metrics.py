"""The metrics and S1 against a computation of their own, straight from the formulas, and at their ends."""

import math
import random
import socket

import pytest
from rounding import UNITS, arithmetic

pytest.importorskip("nltk", reason="nltk is not installed: it has the official METEOR and BLEU")
pytest.importorskip("rouge_score", reason="rouge_score is not installed: it has the official ROUGE-L")

from nltk.tokenize import TreebankWordTokenizer
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer

from budgetft.evaluate.metrics import NoWordNet, Scorer, cider, rouge_l_of_words
from budgetft.evaluate.scoring import Pair, score_captions

WORDS = 2000
"""More additions and multiplications than any score of these short texts takes."""


def naive_scores(prediction, reference):
    """(BLEU, METEOR, ROUGE-L, CIDEr); CIDEr as vectors over all n-grams of either text."""
    found, wanted = (TreebankWordTokenizer().tokenize(text) for text in (prediction, reference))
    bleu = sentence_bleu([wanted], found or [""], smoothing_function=SmoothingFunction().method3)
    meteor = meteor_score([wanted], found or [""], wordnet=NoWordNet())
    rouge = RougeScorer(["rougeL"], use_stemmer=True).score(reference, prediction)["rougeL"].fmeasure
    similarity = 0.0
    for n in (1, 2, 3, 4):
        grams_f = [" ".join(found[i : i + n]) for i in range(len(found) - n + 1)]
        grams_w = [" ".join(wanted[i : i + n]) for i in range(len(wanted) - n + 1)]
        space = sorted(set(grams_f) | set(grams_w))
        f, w = [grams_f.count(g) for g in space], [grams_w.count(g) for g in space]
        length_f, length_w = math.sqrt(sum(x * x for x in f)), math.sqrt(sum(x * x for x in w))
        if length_f > 0 and length_w > 0:
            similarity += sum(min(x, y) * y for x, y in zip(f, w, strict=True)) / (length_f * length_w) / 4
    d = max(0, len(found) - 1) - max(0, len(wanted) - 1)
    return bleu, meteor, rouge, 10 * similarity * math.e ** (-d * d / 72)


def naive_s1(rows):
    """S1 of (actor, scores): mean over captions of an actor, then over the two actors, then over the metrics."""
    means = []
    for actor in ("pedestrian", "vehicle"):
        own = [scores for name, scores in rows if name == actor]
        means.append([sum(column) / len(own) for column in zip(*own, strict=True)])
    b, m, r, c = ((first + second) / 2 for first, second in zip(*means, strict=True))
    return (100 * b + 100 * m + 100 * r + 10 * c) / 4


def as_pairs(rows):
    return [
        Pair(
            name=f"{row['scenario']} {row['phase']} {row['actor']}",
            group=row["actor"],
            scenario=row["scenario"],
            prediction=row["prediction"],
            reference=row["reference"],
        )
        for row in rows
    ]


def test_every_metric_of_the_shipped_pairs_equals_an_independent_computation(scorer, pairs):
    for row in pairs:
        ours = scorer.score(row["prediction"], row["reference"])
        expected = naive_scores(row["prediction"], row["reference"])
        assert (ours.bleu, ours.meteor, ours.rouge_l, ours.cider) == arithmetic(expected, operations=WORDS, scale=10.0), row


def test_s1_of_the_shipped_pairs_equals_an_independent_computation(scorer, pairs):
    report = score_captions(as_pairs(pairs), scorer)
    rows = [(row["actor"], naive_scores(row["prediction"], row["reference"])) for row in pairs]
    assert report.s1 == arithmetic(naive_s1(rows), operations=WORDS)
    assert 10 < report.s1 < 90


def test_missing_captions_score_zero_and_stay_in_the_denominator(scorer, pairs):
    some = [pair.replace(prediction=None) if number % 3 == 0 else pair for number, pair in enumerate(as_pairs(pairs))]
    report = score_captions(some, scorer)
    zero = (0.0, 0.0, 0.0, 0.0)
    rows = [(pair.group, zero if pair.prediction is None else naive_scores(pair.prediction, pair.reference)) for pair in some]
    assert report.s1 == arithmetic(naive_s1(rows), operations=WORDS)
    assert len(report.missing) == 7


def test_identical_captions_reach_the_top_of_every_metric(scorer, pairs):
    same = [pair.replace(prediction=pair.reference) for pair in as_pairs(pairs)]
    report = score_captions(same, scorer)
    assert report.scores.bleu == arithmetic(1.0, operations=WORDS)
    assert report.scores.rouge_l == arithmetic(1.0, operations=WORDS)
    assert report.scores.cider == arithmetic(10.0, operations=WORDS)
    # One chunk of n words that match costs METEOR half of 1 / n cubed (Lavie and Agarwal 2007, gamma 0.5 and beta 3).
    cost = 0.5 / min(len(pair["reference"].split()) for pair in pairs) ** 3
    assert 1 - cost <= report.scores.meteor < 1
    assert 100 - 25 * cost <= report.s1 < 100
    assert (report.length_ratio, report.bigram_difference) == (1.0, 0.0)


def test_a_text_with_nothing_in_common_and_an_empty_one_score_near_zero(scorer):
    apart = scorer.score("zebra giraffe elephant", "The man waits at the light.")
    assert (apart.bleu, apart.meteor, apart.rouge_l, apart.cider) == (0, 0, 0, 0)
    empty = scorer.score("", "The man waits at the light.")
    assert (empty.bleu, empty.meteor, empty.rouge_l, empty.cider) == (0, 0, 0, 0)


@pytest.mark.parametrize(("difference", "kept"), [(6, 0.61), (12, 0.14), (18, 0.01)])
def test_cider_falls_with_the_difference_in_length_alone(difference, kept):
    words = [f"w{i}" for i in range(60)]
    longer = [*words, *words[:difference]]
    # The same words more often: what is left of 10 is the cosine of the counts of n-grams, and the penalty.
    expected = naive_scores(" ".join(longer), " ".join(words))[3]
    assert cider(longer, words) == arithmetic(expected, operations=WORDS)
    assert cider(longer, words) <= 10 * kept
    assert cider(words, words) == arithmetic(10.0, operations=WORDS)


def test_case_counts_for_bleu_and_cider_but_not_for_meteor_and_rouge(scorer):
    scores = scorer.score("THE MAN WALKS SLOWLY HOME.", "the man walks slowly home.")
    assert scores.rouge_l == 1.0
    assert scores.meteor > 0.99
    assert scores.cider < 1.0
    assert scores.bleu < 0.2


def test_a_synonym_counts_only_where_wordnet_is_given_and_the_name_says_so():
    class Lemma:
        def __init__(self, name):
            self.name = lambda: name

    class Synset:
        lemmas = staticmethod(lambda: [Lemma("car"), Lemma("auto")])

    class Little:
        def synsets(self, word):
            return [Synset()] if word in ("car", "auto") else []

    full, bare = Scorer(Little()), Scorer(NoWordNet())
    assert (full.meteor_name, bare.meteor_name) == ("meteor", "meteor_nowordnet")
    texts = ("the auto stops here", "the car stops here")
    assert full.score(*texts).meteor > bare.score(*texts).meteor
    assert full.score(*texts).bleu == bare.score(*texts).bleu


def test_the_fast_rouge_equals_the_package_on_random_texts(scorer):
    draw = random.Random(4)
    words = ["car", "cars", "stops", "stopping", "man", "the", "red", "light", "slowly"]
    package = RougeScorer(["rougeL"], use_stemmer=True)
    for _ in range(200):
        first, second = (" ".join(draw.choices(words, k=draw.randrange(0, 80))) for _ in range(2))
        fast = rouge_l_of_words(scorer.rouge_words(first), scorer.rouge_words(second))
        assert fast == pytest.approx(package.score(second, first)["rougeL"].fmeasure, rel=2 * WORDS * UNITS["fp64"])


def test_scoring_opens_no_connection(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert Scorer().score("The man isn't here.", "The man is here.").bleu > 0
