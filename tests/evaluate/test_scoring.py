"""Accuracy, S2, reducing many predictions to one, and how truth and predictions find each other."""

import pytest
from rounding import arithmetic

from budgetft.cli.evaluate import describe
from budgetft.data.wts.notes import phase_digit
from budgetft.errors import UsageError
from budgetft.evaluate.aggregate import consensus, majority, middle
from budgetft.evaluate.judge import evaluate, reduce_predictions, truth_of_examples
from budgetft.evaluate.official import Slot, answer_letter
from budgetft.evaluate.predictions import Prediction
from budgetft.evaluate.scoring import score_answers


def told(name, text, **fields):
    return Prediction(id=name, text=text, **fields)


def test_accuracy_ignores_case_counts_missing_as_wrong_and_takes_the_last_of_repeated_ids():
    truth = {"q1": "a", "q2": "b", "q3": "c", "q4": "d"}
    report = score_answers([("q1", "A"), ("q2", "a"), ("q2", "B"), ("q3", "d"), ("other", "a")], truth)
    assert (report.correct, report.wrong, report.missing, report.unknown) == (2, 1, 1, 1)
    assert report.accuracy == 50.0


def test_s2_is_the_mean_of_s1_and_accuracy(make_example, scorer):
    examples = [
        make_example("c", "A man waits for the bus.", scenario="s", phase="0", actor="pedestrian"),
        make_example("q1", "a"),
        make_example("q2", "B"),
    ]
    rows = [told("c", "A man waits for the bus."), told("q1", "(a) Left"), told("q2", "a")]
    found = reduce_predictions(rows, examples, how="mid", scorer=scorer)
    result = evaluate(found, truth_of_examples(examples), scorer)
    assert result.answers is not None
    assert result.captions is not None
    assert result.answers.accuracy == 50.0
    assert result.s2 == arithmetic((result.captions.s1 + 50.0) / 2)


def test_json_names_meteor_for_what_it_is(make_example, scorer):
    example = make_example("one", "A man waits.")
    found = reduce_predictions([told("one", "A man waits.")], [example], how="mid", scorer=scorer)
    data = evaluate(found, truth_of_examples([example]), scorer).labelled()
    assert "meteor_nowordnet" in data["captions"]["scores"]
    assert "'meteor'" not in str(data)
    assert data["lower_bound"] is True
    assert data["s2"] is None


def test_plain_captions_pair_by_id_and_a_missing_one_counts(make_example, scorer):
    examples = [make_example("one", "A man waits at the kerb."), make_example("two", "A car turns left.")]
    found = reduce_predictions([told("one", "A man waits at the kerb."), told("x", "?")], examples, how="mid", scorer=scorer)
    report = evaluate(found, truth_of_examples(examples), scorer).captions
    assert report is not None
    assert report.missing == ("two",)
    assert report.scores.bleu == arithmetic(0.5, operations=40)
    assert report.scenarios == ()


def test_captions_in_another_script_are_told_rather_than_scored_0_in_silence(make_example, scorer):
    texts = {"chinese": "一个红色的圆", "english": "a red circle", "number": "42"}
    examples = [make_example(name, text) for name, text in texts.items()]
    found = reduce_predictions([told(name, text) for name, text in texts.items()], examples, how="mid", scorer=scorer)
    result = evaluate(found, truth_of_examples(examples), scorer)
    assert result.captions is not None
    assert result.captions.wordless == ("chinese",)
    assert "1 labels have no Latin letter or digit at all: chinese" in describe(result)
    assert "Latin" not in describe(evaluate(found, truth_of_examples(examples[1:]), scorer))


def test_frames_and_views_of_one_caption_count_once(make_example, scorer):
    def frame(view, rank, text):
        name = f"s|{view}|{rank}"
        return make_example(name, text, scenario="s", phase="action", actor="vehicle", view=view, frame_rank=rank)

    examples = [frame("vehicle_view", 0, "Wrong."), *(frame("overhead_view", rank, "The car stops.") for rank in range(3))]
    rows = [told(one.id, "The car stops." if one.frame_rank == 1 else "A dog.") for one in examples[1:]]
    truth = truth_of_examples(examples)
    assert truth.captions == {Slot("s", "3", "vehicle"): "The car stops."}
    report = evaluate(reduce_predictions(rows, examples, how="mid", scorer=scorer), truth, scorer).captions
    assert report is not None
    assert (report.captions, report.scores.cider) == (1, arithmetic(10.0, operations=100))
    assert report.scenarios[0].scenario == "s"


def test_a_whole_phase_without_predictions_costs_its_share(make_example, scorer):
    def example(phase):
        return make_example(f"s{phase}", "The car stops here now.", scenario="s", phase=phase, actor="vehicle")

    examples = [example("0"), example("1"), example("4")]
    rows = [told("s0", "The car stops here now.")]
    report = evaluate(
        reduce_predictions(rows, examples, how="mid", scorer=scorer), truth_of_examples(examples), scorer
    ).captions
    assert report is not None
    assert report.scores.rouge_l == arithmetic(1 / 3)
    assert report.scenarios[0].missing == 2


def test_captions_of_phases_and_plain_ones_are_not_averaged(make_example):
    mixed = [make_example("one"), make_example("two", scenario="s", phase="0", actor="vehicle")]
    with pytest.raises(UsageError, match="1 captions are of no scenario, phase and actor"):
        truth_of_examples(mixed)


def test_mid_takes_the_frame_in_the_middle_whatever_the_order():
    group = [told(str(rank), f"frame {rank}", frame_rank=rank) for rank in (4, 0, 3, 1, 2)]
    assert middle(group).text == "frame 2"
    assert middle(group[:2]).text == "frame 0"
    assert middle([told("a", "alone")]).text == "alone"


def test_consensus_takes_the_text_most_like_the_others(scorer):
    texts = ["A red car stops at the line.", "A red car stops at a line.", "A dog sleeps.", "The red car stops at the line."]
    group = [told(str(rank), text, frame_rank=rank) for rank, text in enumerate(texts)]
    assert consensus(group, scorer).text == "A red car stops at the line."
    assert consensus(group[2:3], scorer).text == "A dog sleeps."


def test_consensus_of_two_is_the_middle_frame(scorer):
    group = [told("b", "A dog sleeps.", frame_rank=1), told("a", "A red car.", frame_rank=0)]
    assert consensus(group, scorer) == middle(group)


def test_the_majority_of_frames_answers_and_the_middle_breaks_ties():
    group = [told(str(rank), text, frame_rank=rank) for rank, text in enumerate(["a", "b", "b", "what?", "a"])]
    assert majority(group[:4], lambda one: answer_letter(one.text)) == "b"
    assert majority(group, lambda one: answer_letter(one.text)) == "b"
    assert majority(group[3:4], lambda one: answer_letter(one.text)) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("b", "b"), ("B.", "b"), ("(c) Left", "c"), ("d: Far", "d"), ("b Left", "b"), ("The answer is a.", "a"),
        ("Answer: **C**", "c"), ("A man waits.", None), ("", None), ("The car.", None), ("e", None), ("a) Near", "a"),
    ],
)  # fmt: skip
def test_a_letter_is_read_off_a_generated_answer(text, letter):
    assert answer_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "digit"),
    [("0", "0"), ("pre-recognition", "0"), ("Recognition", "1"), ("judgment", "2"), ("judgement", "2"), ("action", "3"),
     ("avoidance", "4"), ("5", None), ("turning", None)],
)  # fmt: skip
def test_phases_go_by_digit_or_word(text, digit):
    assert phase_digit(text) == digit
