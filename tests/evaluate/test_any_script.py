"""What the challenge's metrics cannot see is told and not scored by them; scores for any script are beside them."""

import json
import math

import pytest

pytest.importorskip("nltk", reason="nltk is not installed: it has the BLEU to compare with")
pytest.importorskip("rouge_score", reason="rouge_score is not installed: it has the tokenizer to compare with")

from nltk.translate.bleu_score import corpus_bleu as nltk_corpus_bleu
from rouge_score.tokenizers import DefaultTokenizer
from rounding import arithmetic

from budgetft.cli.evaluate import describe
from budgetft.evaluate.any_script import corpus_bleu, score_any_script
from budgetft.evaluate.judge import evaluate, reduce_predictions, truth_of_examples
from budgetft.evaluate.predictions import Prediction
from budgetft.evaluate.scoring import Pair, score_captions
from budgetft.evaluate.scripts import any_words, dropped

OPERATIONS = 2000
CASE = {"1": "一辆SUV停在路边", "2": "Собака 3 спит"}
UNRELATED = {"1": "两辆SUV撞在一起爆炸了", "2": "Машина 3 едет"}
NEAR = {name: f"{text}{end}" for (name, text), end in zip(CASE.items(), "。.", strict=True)}


def scored(labels, texts, make_example, scorer):
    examples = [make_example(name, text) for name, text in labels.items()]
    rows = [Prediction(id=name, text=text) for name, text in texts.items()]
    return evaluate(reduce_predictions(rows, examples, how="mid", scorer=scorer), truth_of_examples(examples), scorer)


def test_unrelated_captions_with_a_latin_word_get_no_score_of_the_challenge_and_are_counted(make_example, scorer):
    result = scored(CASE, UNRELATED, make_example, scorer)
    assert scorer.score(UNRELATED["1"], CASE["1"]).rouge_l == 1.0, "what the organisers' ROUGE-L makes of it"
    assert result.captions is not None
    # Letters: 6 of 9 are Chinese, 10 of 11 Russian.
    assert result.captions.hidden.share == arithmetic(16 / 20)
    assert result.captions.hidden.references == ("1", "2")
    assert result.captions.withheld
    data = json.loads(json.dumps(result.labelled()))
    assert data["s1"] is data["s2"] is data["captions"]["scores"] is data["captions"]["groups"] is None
    assert data["captions"]["any_script"]["any_bleu"] == 0
    # Words in common, in order: 辆, suv and 在 of 7 and of 10 words; 3, of three words each.
    assert data["captions"]["any_script"]["any_rouge_l"] == arithmetic((2 * 3 / 17 + 1 / 3) / 2)
    text = describe(result)
    assert "drops 80.0 % of all letters of the labels, from 2 of 2 labels; most letters of 2 of them: 1, 2" in text
    assert "S1 are withheld" in text
    assert "1.0000" not in text


def test_a_full_stop_more_does_not_cost_another_script_its_score(make_example, scorer):
    found = scored(CASE, NEAR, make_example, scorer).captions
    assert found is not None
    assert (found.any_script.any_bleu, found.any_script.any_rouge_l) == (1.0, 1.0)
    # The Chinese caption has 7 words, the Russian one 3, so no run of 4: 10 and 7.5.
    assert found.any_script.any_cider == arithmetic(8.75, operations=OPERATIONS)


@pytest.mark.parametrize(
    ("labels", "withheld"),
    [
        ({str(n): "A man waits at the kerb." for n in range(30)} | {"x": "红车"}, False),
        ({str(n): "A man waits at the kerb." for n in range(10)} | {"x": "红车"}, True),
        ({"fr": "Une fille élancée près de l'arrêt."}, False),
        ({"vi": "Người đàn ông đứng chờ ở lề đường."}, True),
        ({"en": "A man waits at the kerb, 5 m away."}, False),
        ({"emoji": "🚗🚗"}, True),
    ],
)
def test_the_challenges_figures_are_withheld_where_they_cannot_see_enough(labels, withheld, make_example, scorer):
    result = scored(labels, labels, make_example, scorer)
    assert result.captions is not None
    assert result.captions.withheld is withheld
    assert (result.labelled()["s1"] is None) is withheld
    assert ("any-ROUGE-L" in describe(result)) is ("en" not in labels)


def test_dropped_letters_are_those_that_the_rouge_package_drops():
    for text in ("A man, 5 m away.", "一辆SUV停在路边", "Собака 3 спит", "élancée", "İstanbul", "کتاب", "नमस्ते", "x²"):
        kept = sum(len(word) for word in DefaultTokenizer(use_stemmer=False).tokenize(text))
        lost, total = dropped(text)
        grown = len(text.lower()) - len(text)  # a dotted capital I becomes two characters
        assert total - lost == kept, text
        assert total <= len(text) + grown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's SUV-car, 5.", ["a", "man", "s", "suv", "car", "5"]),
        ("一辆SUV停", ["一", "辆", "suv", "停"]),
        ("Собака 3 спит.", ["собака", "3", "спит"]),
        ("カメラを見る", list("カメラを見る")),
        ("자동차가 멈춘다", ["자동차가", "멈춘다"]),
        ("กิน", ["กิ", "น"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("ＳＵＶ！ 🚗", ["suv", "🚗"]),
        ("…", []),
    ],
)
def test_words_of_any_script(text, words):
    assert any_words(text) == words


def test_bleu_of_all_captions_equals_that_of_nltk(pairs):
    words = [(any_words(row["prediction"]), any_words(row["reference"])) for row in pairs]
    words = [both for both in words if len(both[0]) >= 4]  # nltk counts one n-gram for a text that has none
    expected = nltk_corpus_bleu([[wanted] for _, wanted in words], [found for found, _ in words])
    assert corpus_bleu(words) == arithmetic(expected, operations=OPERATIONS)
    assert 0 < expected < 1


def test_scores_for_any_script_by_hand():
    found = score_any_script([("кот спит", "кот спит дома"), (None, "собака")])
    # ROUGE-L: 2 of 2 and 2 of 3 words, F = 4/5. BLEU: all 2 words and the pair match; 2 words for 4.
    assert found.any_rouge_l == arithmetic(0.8 / 2)
    assert found.any_bleu == arithmetic(math.exp(1 - 4 / 2))
    assert score_any_script([]).any_bleu == 0.0


def test_scores_for_any_script_change_nothing_of_the_challenges(scorer, pairs):
    rows = [Pair(name=str(n), prediction=row["prediction"], reference=row["reference"]) for n, row in enumerate(pairs)]
    report = score_captions(rows, scorer)
    assert report.s1 == report.scores.s1
    assert not report.withheld
    expected = [scorer.score(row["prediction"], row["reference"]).s1 for row in pairs]
    assert report.s1 == arithmetic(sum(expected) / len(expected), operations=OPERATIONS)
