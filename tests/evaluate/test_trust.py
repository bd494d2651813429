"""Every way that is known in which a score can look good by accident: refused, or told in the text and in the JSON."""

import json
from pathlib import Path

import pytest
from PIL import Image
from rounding import arithmetic

from budgetft.cli.evaluate import describe
from budgetft.data.examples import write_dataset
from budgetft.errors import UsageError
from budgetft.evaluate.files import evaluate_files
from budgetft.evaluate.judge import truth_of_examples
from budgetft.evaluate.metrics import NoWordNet, Scorer
from budgetft.evaluate.official import answer_letter
from budgetft.evaluate.predictions import read_predictions
from budgetft.evaluate.scoring import Pair, score_answers, score_captions

LONG = "The man in a grey jacket waits beside the white car."


@pytest.fixture
def data(tmp_path, make_example):
    """A function that writes a dataset of (id, answer) or of examples."""
    Image.new("RGB", (28, 28)).save(tmp_path / "a.png")

    def make(*rows, name="data"):
        examples = [make_example(*row) if isinstance(row, tuple) else row for row in rows]
        write_dataset(examples, tmp_path / name, images_root=tmp_path, answered=False)
        return tmp_path / name

    return make


@pytest.fixture
def rows(tmp_path):
    """A function that writes predictions of (id, text) or of rows."""

    def make(*found, name="p.jsonl"):
        lines = [dict(zip(("id", "text"), row, strict=True)) if isinstance(row, tuple) else row for row in found]
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return tmp_path / name

    return make


@pytest.fixture
def score(scorer):
    def run(path, data=None, **options):
        return evaluate_files([path] if isinstance(path, Path) else path, data=data or (), scorer=scorer, **options)

    return run


def kinds(result):
    """{kind of note: count}, the same in value and JSON, and each in the text."""
    told, text = result.labelled()["notes"], describe(result)
    assert [one["kind"] for one in told] == [one.kind for one in result.notes]
    assert all(f"note: {one.text}" in text for one in result.notes)
    return {one.kind: one.count for one in result.notes}


# Truth that is missing


def test_a_dataset_without_labels_is_refused_by_name(data, rows, score, make_example):
    caption = make_example("c", "", scenario="s", phase="0", actor="vehicle")
    path = data(caption, ("q", ""), ("p", " \n"))
    with pytest.raises(UsageError) as caught:
        score(rows(("c", ""), ("q", ""), ("p", " ")), [path], skip_unlabelled=True)
    assert f"the dataset {path} has no labels" in caught.value.message
    assert "all 3 answers are empty" in caught.value.message
    assert "--truth" in (caught.value.hint or "")


def test_some_examples_without_labels_are_refused_by_number_unless_they_are_to_be_left_out(data, rows, score):
    path = data(("one", "A man waits here."), ("two", ""), ("three", "..."), ("q", "a"), ("empty", "\u3164"))
    predictions = rows(("one", "A man waits here."), ("two", ""), ("three", "..."), ("q", "A"), ("empty", ""))
    with pytest.raises(UsageError, match=r"3 of 5 examples of the dataset .* have no label .*two, three, empty") as caught:
        score(predictions, [path])
    assert "--skip-unlabelled to score only the other 2" in (caught.value.hint or "")
    result = score(predictions, [path], skip_unlabelled=True)
    assert result.captions is not None
    assert result.answers is not None
    assert (result.captions.captions, result.answers.questions, result.unlabelled) == (1, 1, 3)
    assert result.labelled()["unlabelled"] == 3
    assert kinds(result)["unlabelled"] == 3
    assert "unknown" not in kinds(result)


def test_the_command_refuses_with_exit_code_2_and_scores_the_rest_on_request(data, rows, capsys):
    from budgetft.cli import main

    path, predictions = data(("one", "A man waits here."), ("two", "")), rows(("one", "A man waits here."), ("two", ""))
    command = ["evaluate", str(predictions), "--data", str(path)]
    assert main(command) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "1 of 2 examples" in told.err
    assert main([*command, "--skip-unlabelled"]) == 0
    assert "note: 1 examples have no label and are left out: two" in capsys.readouterr().out
    assert main([*command, "--skip-unlabelled", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unlabelled"] == 1


def test_one_of_two_datasets_without_labels_is_refused_too(data, rows, score):
    first, second = data(("one", "A man waits."), name="first"), data(("two", ""), name="second")
    predictions = rows(("one", "A man waits."), ("two", ""))
    with pytest.raises(UsageError, match=r"1 of 1 examples of the dataset .*second have no label"):
        score(predictions, [first, second])
    assert score(predictions, [first, second], skip_unlabelled=True).unlabelled == 1


def test_empty_truth_in_the_organisers_files_is_no_truth(tmp_path, rows, score):
    segment = {"labels": ["0"], "caption_pedestrian": "", "caption_vehicle": "A car turns left."}
    folder = tmp_path / "truth" / "s" / "overhead_view"
    folder.mkdir(parents=True)
    (folder / "s_caption.json").write_text(json.dumps({"event_phase": [segment]}))
    (tmp_path / "t.json").write_text('[{"id": "q1", "correct": ""}, {"id": "q2", "correct": "b"}]')
    (tmp_path / "p.json").write_text('[{"id": "q1", "correct": ""}, {"id": "q2", "correct": "b"}]')
    (tmp_path / "c.json").write_text(json.dumps({"s": [segment]}))
    for truth, prediction, names in (("truth", "c.json", "s phase 0 pedestrian"), ("t.json", "p.json", "q1")):
        with pytest.raises(UsageError, match=f"1 of 2 examples .*{names}"):
            score(tmp_path / prediction, truth=[tmp_path / truth])
        result = score(tmp_path / prediction, truth=[tmp_path / truth], skip_unlabelled=True)
        assert result.unlabelled == 1
    (tmp_path / "none.json").write_text('[{"id": "q1", "correct": " "}]')
    with pytest.raises(UsageError, match="has no labels"):
        score(tmp_path / "p.json", truth=[tmp_path / "none.json"], skip_unlabelled=True)


@pytest.mark.parametrize("text", ["", "  ", "\n", ".", "?!", "\u200b", "\u3164"])
def test_equal_texts_that_say_nothing_are_no_hit(text, scorer):
    scores = scorer.score(text, text)
    assert (scores.bleu, scores.meteor, scores.rouge_l, scores.cider, scores.s1) == (0, 0, 0, 0, 0)
    assert score_captions([Pair(name="x", prediction=text, reference=text)], scorer).any_script.any_bleu == 0
    assert score_answers([("q", text)], {"q": text}).correct == 0


def test_an_answer_without_a_letter_is_wrong_not_equal_to_nothing(data, rows, score):
    result = score(rows(("q1", "Nothing there."), ("q2", "b")), [data(("q1", "a"), ("q2", "b"))])
    assert result.answers is not None
    assert (result.answers.correct, result.answers.wrong) == (1, 1)
    assert kinds(result)["no single letter"] == 1


# Predictions that are told twice, of other data, or the truth itself


def test_one_id_with_two_texts_is_refused_and_with_one_text_counts_once(data, rows, score):
    path = data(("one", LONG), ("two", LONG))
    with pytest.raises(UsageError, match="two different texts are predicted for the id one"):
        score(rows(("one", "Wrong."), ("two", LONG), ("one", LONG)), [path])
    with pytest.raises(UsageError, match="two different texts"):
        score([rows(("one", "Wrong."), name="a.jsonl"), rows(("one", LONG), name="b.jsonl")], [path])
    assert kinds(score(rows(("one", LONG), ("two", LONG), ("one", LONG)), [path]))["repeated rows"] == 1


def test_entries_that_a_submission_repeats_are_told_and_the_last_counts_as_in_the_organisers_script(tmp_path, score):
    (tmp_path / "t.json").write_text('[{"id": "q", "correct": "a"}]')
    (tmp_path / "p.json").write_text('[{"id": "q", "correct": "b"}, {"id": "q", "correct": "a"}]')
    result = score(tmp_path / "p.json", truth=[tmp_path / "t.json"])
    assert result.answers is not None
    assert result.answers.accuracy == 100.0
    assert kinds(result)["repeated entries"] == 1


def test_scenarios_and_phases_that_a_submission_repeats_are_told(tmp_path, score, caption_truth):
    said = {"labels": ["0"], "caption_pedestrian": LONG, "caption_vehicle": LONG}
    row = json.dumps([said, said])
    (tmp_path / "c.json").write_text(f'{{"s": [], "s": {row}}}')
    assert kinds(score(tmp_path / "c.json", truth=[caption_truth({"s": "0"})]))["repeated entries"] == 2


def test_rows_and_a_submission_that_predict_the_same_are_refused(tmp_path, rows, score):
    (tmp_path / "t.json").write_text('[{"id": "q", "correct": "a"}]')
    (tmp_path / "p.json").write_text('[{"id": "q", "correct": "a"}]')
    with pytest.raises(UsageError, match="both predict the id q"):
        score([tmp_path / "p.json", rows(("q", "b"))], truth=[tmp_path / "t.json"])


def test_one_id_in_two_datasets_is_refused_when_the_examples_differ(data, rows, score):
    first, second = data(("1", LONG), name="first"), data(("1", "A dog."), name="second")
    with pytest.raises(UsageError, match="use the id 1 for different examples"):
        score(rows(("1", LONG)), [first, second])
    again = data(("1", LONG), name="again")
    result = score(rows(("1", LONG)), [first, again])
    assert result.captions is not None
    assert result.captions.captions == 1


def test_truth_that_contradicts_itself_is_refused(tmp_path, rows, score, make_example):
    (tmp_path / "t.json").write_text('[{"id": "q", "correct": "a"}, {"id": "q", "correct": "b"}]')
    with pytest.raises(UsageError, match="two different labels for the id q"):
        score(rows(("q", "b")), truth=[tmp_path / "t.json"])
    frames = [make_example(f"q|{rank}", letter, source_id="q", frame_rank=rank) for rank, letter in enumerate("ab")]
    with pytest.raises(UsageError, match="the id q has two different labels"):
        truth_of_examples(frames)


def test_several_labels_of_one_caption_are_told(data, rows, score, make_example):
    slot = {"scenario": "s", "phase": "0", "actor": "vehicle", "view": "overhead_view"}
    path = data(make_example("a", LONG, **slot), make_example("b", "A dog.", **slot))
    assert kinds(score(rows(("a", LONG), ("b", LONG)), [path]))["several labels"] == 1


def test_predictions_of_another_dataset_with_the_same_ids_are_refused(data, rows, score, make_example):
    path = data(*(make_example(str(n), LONG, scenario="s", phase="action", actor="vehicle") for n in (1, 2)))
    kept = [{"id": "1", "text": LONG}, {"id": "2", "text": LONG, "scenario": "s", "phase": "3", "actor": "vehicle"}]
    assert score(rows(*kept), [path]).captions is not None
    with pytest.raises(UsageError, match=r"1 predictions are of another dataset.*: 2 \(scenario\)"):
        score(rows(kept[0], kept[1] | {"scenario": "t"}), [path])
    with pytest.raises(UsageError, match=r"2 \(frame_rank\)"):
        score(rows(kept[0], kept[1] | {"frame_rank": 1}), [path])


def test_the_record_beside_predictions_tells_random_weights_and_other_data(data, rows, score, tmp_path):
    from budgetft.data.examples import read_dataset

    path, predictions = data(("1", LONG)), rows(("1", LONG))
    settings = {"weights": "random", "data_fingerprint": read_dataset(path).fingerprint}
    record = tmp_path / "p.run.json"
    record.write_text(json.dumps({"settings": settings}))
    found = kinds(score(predictions, [path]))
    assert found["random weights"] == 1
    assert "other data" not in found
    record.write_text(json.dumps({"settings": settings | {"data_fingerprint": "0" * 32, "weights": "org/model"}}))
    found = kinds(score(predictions, [path]))
    assert found["other data"] == 1
    assert "random weights" not in found
    for damaged in ("{", "[]", '{"settings": 3}', '{"settings": {"weights": [1], "data_fingerprint": "x"}}'):
        record.write_text(damaged)
        assert score(predictions, [path]).captions is not None


def test_the_truth_given_as_prediction_is_refused_and_a_copy_of_it_is_told(tmp_path, score, caption_truth):
    (tmp_path / "t.json").write_text('[{"id": "q", "correct": "a"}]')
    with pytest.raises(UsageError, match="is given as the truth and as the prediction"):
        score(tmp_path / "t.json", truth=[tmp_path / "sub" / ".." / "t.json", tmp_path / "t.json"])
    said = {"labels": ["0"], "caption_pedestrian": LONG, "caption_vehicle": LONG}
    (tmp_path / "c.json").write_text(json.dumps({"s": [said]}))
    assert kinds(score(tmp_path / "c.json", truth=[caption_truth({"s": "0"})]))["equal to the label"] == 2
    said["caption_vehicle"] = said["caption_pedestrian"] = LONG.replace("waits", "stands")
    (tmp_path / "c.json").write_text(json.dumps({"s": [said]}))
    assert "equal to the label" not in kinds(score(tmp_path / "c.json", truth=[caption_truth({"s": "0"})]))


def test_predictions_of_nothing_are_told_by_id_in_the_text(data, rows, score):
    path = data(("one", LONG), ("two", LONG))
    result = score(rows(("one", LONG), ("stray", "?"), ("alien", "a")), [path])
    assert kinds(result)["unknown"] == 2
    assert "belong to no label: they do not count: stray, alien" in describe(result)
    assert kinds(result)["not predicted"] == 1
    assert result.captions is not None
    assert result.captions.scores.rouge_l == 0.5


# What is in the texts


def test_what_a_prediction_says_of_itself_is_told(data, rows, score):
    labels = [(str(n), LONG.replace("man", f"man number {n}")) for n in range(8)]
    texts = [(name, "A dog sleeps here.") for name, _ in labels[:6]] + [("6", ""), ("7", "The man in a grey jacket wai")]
    found = kinds(score(rows(*texts), [data(*labels)]))
    assert found["one text"] == 6
    assert found["empty predictions"] == 1
    assert found["cut off"] == 1
    assert found["few captions"] == 8
    good = [(name, text.replace("grey", "gray")) for name, text in labels]
    assert set(kinds(score(rows(*good), [data(*labels, name="again")]))) == {"few captions"}


def test_short_labels_and_words_for_an_empty_cell_are_told(data, rows, score):
    path = data(("1", "red"), ("2", "NaN"), ("3", "None"), ("4", LONG))
    found = kinds(score(rows(("1", "red"), ("2", "nan"), ("3", "x"), ("4", LONG)), [path]))
    assert found["short labels"] == 3
    assert found["placeholder labels"] == 2


@pytest.mark.parametrize(
    "text",
    ["ABCD", "abcd", "A, B, C, D", "A B C D", "a/b", "(a)(b)", "a) or b)", "A and B", "(a) Left (b) Right", "A. Left B. Right",
     "The answer is A or B", "The answer is A, B", "The answer is A. The answer is B.", "ab"],
)  # fmt: skip
def test_an_answer_with_several_letters_answers_nothing(text):
    assert answer_letter(text) is None


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B. A man waits.", "b"), ("b. a man", "b"), ("C. Because A, B and D are wrong.", "c"), ("B (a car)", "b"),
     ("The answer is b. Option A is far", "b"), ("b b", "b"), ("B because option A is wrong", "b")],
)  # fmt: skip
def test_a_letter_beside_articles_and_reasons_is_still_read(text, letter):
    assert answer_letter(text) == letter


def test_listing_every_letter_scores_nothing_and_one_letter_for_all_is_told_beside_its_baseline(data, rows, score):
    letters = "aaabcd"
    path = data(*((f"q{n}", letter) for n, letter in enumerate(letters)))
    listing = score(rows(*((f"q{n}", "A, B, C, D") for n in range(6))), [path])
    assert listing.answers is not None
    assert listing.answers.accuracy == 0.0
    assert kinds(listing)["no single letter"] == 6
    same = score(rows(*((f"q{n}", "A") for n in range(6))), [path])
    assert same.answers is not None
    assert same.answers.accuracy == same.answers.commonest_label_accuracy == arithmetic(50.0)
    assert kinds(same)["one letter"] == 6
    assert "always giving the commonest label would have 50.00 %" in describe(same)


# What the challenge scores, and how


def test_scenarios_that_the_challenge_or_its_script_treats_otherwise_are_told(tmp_path, score, caption_truth):
    said = {"labels": ["0"], "caption_pedestrian": LONG, "caption_vehicle": LONG}
    (tmp_path / "c.json").write_text(json.dumps({"S1": [said], "video7": [said | {"caption_pedestrian": "A dog."}]}))
    truth = caption_truth({"S1": "0", "video7": "0", "jsonic": "00", "beside": "1"}, vehicle_only=("beside",))
    result = score(tmp_path / "c.json", truth=[truth])
    found = kinds(result)
    assert found["scenarios without predictions"] == 2
    assert found["external scenarios"] == 1
    assert found["scenario names"] == 1
    assert found["vehicle view only"] == 1
    assert found["repeated phases"] == 1
    assert result.captions is not None
    # Internal: one of three scenarios is right. External: one of two captions is, and BLEU is exactly 1 for it.
    assert result.captions.internal_s1 is not None
    assert result.captions.external_s1 is not None
    whole = Scorer(NoWordNet()).score(LONG, LONG).s1
    assert result.captions.internal_s1 == arithmetic(whole / 3, operations=100)
    other = Scorer(NoWordNet()).score("A dog.", LONG).s1
    assert result.captions.external_s1 == arithmetic((whole + other) / 2, operations=100)
    assert "of BDD_PC_5K" in describe(result)


def by_the_organisers_rules(predicted, truth, scorer):
    """S1 as ``metrics_test.py`` of the organisers computes it: sums over scenarios, divided by all phases of the truth."""
    sums = {"pedestrian": [0.0] * 4, "vehicle": [0.0] * 4}
    phases = 0
    for scenario, segments in truth.items():
        phases += len(segments)
        given = {one["labels"][0]: one for one in predicted.get(scenario, [])}
        for segment in segments:
            if segment["labels"][0] in given:
                for actor, total in sums.items():
                    one = scorer.score(given[segment["labels"][0]][f"caption_{actor}"], segment[f"caption_{actor}"])
                    for place, value in enumerate((one.bleu, one.meteor, one.rouge_l, one.cider)):
                        total[place] += value
    bleu, meteor, rouge_l, cider = (
        (a / phases + b / phases) / 2 for a, b in zip(sums["pedestrian"], sums["vehicle"], strict=True)
    )
    return (100 * bleu + 100 * meteor + 100 * rouge_l + 10 * cider) / 4


@pytest.mark.parametrize("absent", [(), ("S1",), ("S1", "S3"), ("S2 phase 1",)])
def test_scenarios_and_phases_without_predictions_count_as_in_the_organisers_script(absent, tmp_path, pairs, scorer):
    truth, predicted = {}, {}
    for row in pairs:
        for texts, field in ((truth, "reference"), (predicted, "prediction")):
            segments = texts.setdefault(row["scenario"].upper(), {})
            segments.setdefault(row["phase"], {"labels": [row["phase"]]})[f"caption_{row['actor']}"] = row[field]
    truth, predicted = ({name: list(one.values()) for name, one in texts.items()} for texts in (truth, predicted))
    left = {
        name: [one for one in segments if f"{name} phase {one['labels'][0]}" not in absent]
        for name, segments in predicted.items()
        if name not in absent
    }
    for name, segments in truth.items():
        folder = tmp_path / "truth" / name / "overhead_view"
        folder.mkdir(parents=True)
        (folder / f"{name}_caption.json").write_text(json.dumps({"event_phase": segments}))
    (tmp_path / "c.json").write_text(json.dumps(left))
    result = evaluate_files([tmp_path / "c.json"], truth=[tmp_path / "truth"], scorer=scorer)
    assert result.captions is not None
    assert result.captions.s1 == arithmetic(by_the_organisers_rules(left, truth, scorer), operations=1000)
    whole = sum(name in truth for name in absent)
    assert kinds(result).get("scenarios without predictions", 0) == whole
    assert (f"{whole} of 4 scenarios have no prediction at all" in describe(result)) == bool(whole)


def test_one_actor_alone_and_half_a_phase_are_told(data, rows, score, make_example):
    def example(actor, phase):
        return make_example(f"{actor}{phase}", LONG, scenario="s", phase=phase, actor=actor)

    half = data(example("vehicle", "0"), example("pedestrian", "0"))
    assert kinds(score(rows(("vehicle0", LONG)), [half]))["half phases"] == 1
    alone = data(*(example("vehicle", str(phase)) for phase in range(2)), name="alone")
    result = score(rows(("vehicle0", LONG)), [alone])
    assert kinds(result)["one actor"] == 1
    assert "no label is about the pedestrian" in describe(result)


def test_the_text_explains_its_short_names_and_how_wordnet_is_installed(data, rows, score, make_example):
    path = data(make_example("c", LONG, scenario="s", phase="0", actor="vehicle"), ("q", "a"))
    text = describe(score(rows(("c", LONG), ("q", "a")), [path]))
    for start in ("S1: the challenge's", "S2: the challenge's", "d: how many bigrams", "meteor_nowordnet: METEOR without"):
        assert any(line.startswith(start) for line in text.splitlines())
    assert "python -m nltk.downloader wordnet" in text


# Errors never show what was generated


def test_errors_about_predictions_name_lines_and_ids_never_texts(tmp_path):
    path = tmp_path / "p.jsonl"
    bad = ['{"id": "a", "text": ["rude"]}', '{"id": "b", "text": "rude \\ud83d"}', '{"id": 3, "text": "rude"}', '"rude"',
           '{"id": "c", "text": "rude", "more": "rude"}', '{"id": "d", "text": "rude"']  # fmt: skip
    path.write_text("\n".join(bad) + "\n")
    with pytest.raises(UsageError) as caught:
        read_predictions(path)
    assert "6 problems" in caught.value.message
    assert "rude" not in caught.value.message + (caught.value.hint or "")


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"id":"a","text":"one"}\n{"id":"b","text":"two"}')
    assert [row.id for row in read_predictions(tmp_path / "p.jsonl")] == ["a", "b"]


@pytest.fixture
def caption_truth(tmp_path):
    """A function that writes the organisers' annotations of {scenario: phases}, all captions being ``LONG``."""

    def make(scenarios, vehicle_only=()):
        for scenario, digits in scenarios.items():
            folder = tmp_path / "truth" / scenario / ("vehicle_view" if scenario in vehicle_only else "overhead_view")
            folder.mkdir(parents=True, exist_ok=True)
            segments = [{"labels": [digit], "caption_pedestrian": LONG, "caption_vehicle": LONG} for digit in digits]
            (folder / f"{scenario}_caption.json").write_text(json.dumps({"event_phase": segments}))
        return tmp_path / "truth"

    return make
