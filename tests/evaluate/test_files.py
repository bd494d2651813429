"""Predictions on the disk, the organisers' files, and the submission that is checked before it is written."""

import json

import pytest
from rounding import arithmetic

from budgetft.errors import UsageError
from budgetft.evaluate.files import evaluate_files
from budgetft.evaluate.official import read_annotated_captions, read_answers, read_captions
from budgetft.evaluate.predictions import Prediction, appending, predicted, read_predictions
from budgetft.evaluate.submission import read_test_set, write_submission

PACKAGE = "WTS_DATASET_PUBLIC_TEST"
CAPTIONS = "annotations/caption/test/public_challenge"


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data))


def phases(*digits, text=None):
    given = {} if text is None else {"caption_pedestrian": f"{text} walks.", "caption_vehicle": f"{text} drives."}
    return {"event_phase": [{"labels": [digit], "start_time": "1.0", "end_time": "2.0", **given} for digit in digits]}


def asked(name, letters="ab"):
    return {"id": name, "question": "Where?", **dict.fromkeys(letters, "there")}


@pytest.fixture
def test_root(tmp_path):
    """Two scenarios of the test (one of normal traffic), a BDD video, and three questions, one without a phase."""
    root = tmp_path / "test"
    for view in ("overhead_view", "vehicle_view"):
        write(root / PACKAGE / CAPTIONS / "S1_T1" / view / "S1_T1_caption.json", phases("4", "0"))
    write(root / PACKAGE / CAPTIONS / "normal_trimmed" / "jsonic" / "overhead_view" / "jsonic_caption.json", phases("1"))
    write(root / PACKAGE / "external/BDD_PC_5K" / CAPTIONS / "video7_caption.json", phases("2"))
    questions = [
        {"videos": ["S1_T1_Camera1_0.mp4"], "event_phase": [{"labels": ["action"], "conversations": [asked("q1", "abc")]}]},
        {"videos": ["S1_T1_Camera1_0.mp4"], "conversations": [asked("q2")]},
        {"videos": ["video7.mp4"], "conversations": [asked("q3")]},
    ]
    write(root / "SubTask2-VQA" / "WTS_VQA_PUBLIC_TEST.json", questions)
    return root


@pytest.fixture
def whole():
    """A prediction for everything that the test asks."""
    wanted = [("S1_T1", "4"), ("S1_T1", "0"), ("jsonic", "1"), ("video7", "2")]
    captions = [
        Prediction(id=f"{s}|{p}|{a}", text=f"The {a} of {s}.", scenario=s, phase=p, actor=a)
        for s, p in wanted
        for a in ("pedestrian", "vehicle")
    ]
    answers = [Prediction(id="q1", text="C."), Prediction(id="q2", text="b"), Prediction(id="q3|video7|0", text="(a)")]
    return captions, answers


def test_the_test_set_is_read_with_normal_traffic_bdd_and_questions_without_a_phase(test_root):
    test = read_test_set(test_root)
    assert test.phases == {"S1_T1": ("4", "0"), "jsonic": ("1",), "video7": ("2",)}
    assert test.external_scenarios == {"video7"}
    assert test.questions == {"q1": ("a", "b", "c"), "q2": ("a", "b"), "q3": ("a", "b")}
    assert test.external_questions == {"q3"}
    assert read_test_set(test_root / PACKAGE).phases == test.phases


def test_a_whole_set_of_predictions_becomes_both_official_files(test_root, whole, tmp_path, scorer):
    captions, answers = whole
    out = tmp_path / "out"
    done = write_submission(read_test_set(test_root), out, captions=captions, answers=answers, scorer=scorer)
    assert (done.captions, done.answers, done.filled) == (8, 3, 0)
    written = json.loads((out / "subtask1_captioning.json").read_text())
    assert written["S1_T1"][0] == {
        "labels": ["4"],
        "caption_pedestrian": "The pedestrian of S1_T1.",
        "caption_vehicle": "The vehicle of S1_T1.",
    }
    assert [segment["labels"] for segment in written["S1_T1"]] == [["4"], ["0"]]
    assert json.loads((out / "subtask2_vqa.json").read_text()) == [
        {"id": "q1", "correct": "c"},
        {"id": "q2", "correct": "b"},
        {"id": "q3", "correct": "a"},
    ]
    assert sorted(path.name for path in out.iterdir()) == ["subtask1_captioning.json", "subtask2_vqa.json"]


def test_everything_wrong_is_told_at_once_and_nothing_is_written(test_root, whole, tmp_path, scorer):
    captions, answers = whole
    stray = Prediction(id="x", text="A dog.", scenario="S9", phase="0", actor="vehicle")
    bad_captions = [*captions[2:], captions[2], stray]
    bad_answers = [Prediction(id="q1", text="d"), answers[1], answers[1], Prediction(id="q9", text="a")]
    with pytest.raises(UsageError) as caught:
        write_submission(read_test_set(test_root), tmp_path / "out", captions=bad_captions, answers=bad_answers, scorer=scorer)
    message = caught.value.message
    for line in (
        "captions: missing: 2: S1_T1 phase 4 pedestrian, S1_T1 phase 4 vehicle",
        "captions: unknown: 1: S9 phase 0 vehicle",
        "captions: repeated ids: 1: S1_T1|0|pedestrian (2 times)",
        "answers: missing: 1: q3",
        "answers: unknown: 1: q9",
        "answers: repeated ids: 1: q2 (2 times)",
        "answers: not one of the question's letters: 1: q1",
    ):
        assert line in message
    assert not (tmp_path / "out").exists()


def test_a_long_list_is_cut_and_counted(test_root, tmp_path, scorer):
    with pytest.raises(UsageError, match=r"captions: missing: 8: .* and 3 more"):
        write_submission(read_test_set(test_root), tmp_path / "out", captions=[], scorer=scorer)


def test_bdd_may_be_filled_in_and_is_counted_but_scored_scenarios_may_not(test_root, whole, tmp_path, scorer):
    captions, answers = whole
    done = write_submission(
        read_test_set(test_root), tmp_path / "out", captions=captions[:6], answers=answers[:2], scorer=scorer, fill="external"
    )
    assert (done.captions, done.answers, done.filled) == (8, 3, 3)
    with pytest.raises(UsageError, match="jsonic phase 1 vehicle"):
        write_submission(read_test_set(test_root), tmp_path / "no", captions=captions[:5], scorer=scorer, fill="external")


def test_something_that_is_no_test_set_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not the public test set"):
        read_test_set(tmp_path)


@pytest.fixture
def submit(test_root, tmp_path):
    """The command, as a user gives it."""
    from typer.testing import CliRunner

    from budgetft.cli import build_app

    def run(*words):
        command = ["submit", "--test", test_root, "--out", tmp_path / "out", *words]
        return CliRunner().invoke(build_app(), [str(word) for word in command])

    return run


def rows_of(path, rows):
    write(path, "".join(row.model_dump_json(exclude_none=True) + "\n" for row in rows))
    return path


def test_submit_takes_captions_and_answers_together_or_apart(submit, whole, tmp_path):
    captions, answers = whole
    mixed = rows_of(tmp_path / "all.jsonl", [answers[0], *captions, *answers[1:]])
    first, second = rows_of(tmp_path / "c.jsonl", captions), rows_of(tmp_path / "a.jsonl", answers)
    written = []
    for words in ([mixed], [first, second], ["--captions", first, "--vqa", second], ["--captions", mixed, "--vqa", mixed]):
        result = submit(*words)
        assert result.exit_code == 0, result.output
        assert "8 captions and 3 answers" in result.stdout
        written.append({path.name: path.read_text() for path in (tmp_path / "out").iterdir()})
    assert len(written[0]) == 2
    assert all(files == written[0] for files in written)


def test_submit_says_which_file_it_does_not_write(submit, whole, tmp_path):
    result = submit(rows_of(tmp_path / "c.jsonl", whole[0]))
    assert "no answers, so subtask2_vqa.json is not written" in result.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["subtask1_captioning.json"]
    result = submit(rows_of(tmp_path / "c.jsonl", whole[0]), "--vqa", tmp_path / "c.jsonl")
    assert isinstance(result.exception, UsageError)
    assert "given twice" in result.exception.message


def test_submit_says_how_a_mixed_file_is_given_and_never_what_was_generated(submit, whole, tmp_path):
    captions, answers = whole
    mixed = rows_of(tmp_path / "all.jsonl", [*captions, *answers])
    for option in ("--captions", "--vqa"):
        result = submit(option, mixed)
        assert isinstance(result.exception, UsageError)
        assert "without --captions and --vqa" in (result.exception.hint or "")
    rude = [one.replace(text="rude words") for one in answers]
    result = submit(rows_of(tmp_path / "rude.jsonl", [*captions, *rude]))
    assert isinstance(result.exception, UsageError)
    assert "answers: not one of the question's letters: 3: q1, q2, q3" in result.exception.message
    assert "rude" not in result.exception.message
    assert not (tmp_path / "out").exists()


def test_captions_of_punctuation_and_answers_of_every_letter_are_not_submitted(test_root, whole, tmp_path, scorer):
    captions, answers = whole
    blank = [captions[0].replace(text="..."), *captions[1:]]
    every = [answers[0].replace(text="A, B, C, D"), *answers[1:]]
    with pytest.raises(UsageError) as caught:
        write_submission(read_test_set(test_root), tmp_path / "out", captions=blank, answers=every, scorer=scorer)
    assert "captions: empty: 1: S1_T1 phase 4 pedestrian" in caught.value.message
    assert "not one of the question's letters: 1: q1" in caught.value.message


def test_a_submission_file_scores_as_the_predictions_it_was_made_of(test_root, whole, tmp_path, scorer):
    captions, answers = whole
    write_submission(read_test_set(test_root), tmp_path / "out", captions=captions, answers=answers, scorer=scorer)
    truth = tmp_path / "truth"
    for scenario, digits in {"S1_T1": ("4", "0", "2"), "jsonic": ("1",)}.items():
        write(truth / scenario / "overhead_view" / f"{scenario}_caption.json", phases(*digits, text="Somebody"))
    write(tmp_path / "answers.json", [{"id": "q1", "correct": "C"}, {"id": "q2", "correct": "a"}])
    write(tmp_path / "rows.jsonl", "".join(row.model_dump_json() + "\n" for row in [*captions, *answers]))
    submitted = [tmp_path / "out" / "subtask1_captioning.json", tmp_path / "out" / "subtask2_vqa.json"]
    results = [
        evaluate_files(paths, truth=[truth, tmp_path / "answers.json"], scorer=scorer)
        for paths in (submitted, [tmp_path / "rows.jsonl"])
    ]
    first, second = (result.captions for result in results)
    assert first is not None
    assert second is not None
    assert first.s1 == arithmetic(second.s1, operations=len(second.model_dump_json()))
    assert (first.captions, len(first.missing)) == (8, 2)
    assert results[0].answers is not None
    assert results[0].answers.accuracy == 50.0


def test_true_captions_are_read_once_per_scenario_and_names_keep_their_last_letters(tmp_path):
    write(tmp_path / "jsonic" / "overhead_view" / "jsonic_caption.json", phases("1", text="Over"))
    write(tmp_path / "jsonic" / "vehicle_view" / "jsonic_caption.json", phases("1", text="Beside"))
    write(tmp_path / "action" / "vehicle_view" / "action_caption.json", phases("0", text="Alone"))
    found = read_annotated_captions(tmp_path)
    assert {slot.scenario for slot in found} == {"action", "jsonic"}
    assert found["jsonic", "1", "vehicle"] == "Over drives."  # pyright: ignore[reportArgumentType]


def test_malformed_official_files_name_every_problem(tmp_path):
    write(tmp_path / "one_caption.json", "{")
    write(tmp_path / "two_caption.json", {"event_phase": [{"labels": ["9"], "caption_pedestrian": "x"}]})
    with pytest.raises(UsageError) as caught:
        read_annotated_captions(tmp_path)
    assert "one_caption.json" in caught.value.message
    assert "'9'" in caught.value.message
    assert "caption_vehicle: None is not a text" in caught.value.message
    write(tmp_path / "s.json", {"S1": [{"labels": ["0"]}], "S2": "no"})
    with pytest.raises(UsageError, match=r"(?s)S1: caption_pedestrian.*S2: labels"):
        read_captions(tmp_path / "s.json")
    write(tmp_path / "a.json", [{"id": "q"}, 3])
    with pytest.raises(UsageError, match="2 problems"):
        read_answers(tmp_path / "a.json")


def test_predictions_of_other_data_are_refused(tmp_path, scorer):
    write(tmp_path / "p.jsonl", '{"id":"x","text":"y"}\n')
    write(tmp_path / "t.json", [{"id": "q", "correct": "a"}])
    with pytest.raises(UsageError, match=r"nothing in .* was predicted for this truth"):
        evaluate_files([tmp_path / "p.jsonl"], truth=[tmp_path / "t.json"], scorer=scorer)


def test_a_torn_last_line_is_dropped_and_a_damaged_one_before_it_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    write(path, '{"id":"a","text":"one"}\n{"id":"b","te')
    assert [row.id for row in read_predictions(path)] == ["a"]
    with appending(path) as file:
        assert [row.id for row in file.rows] == ["a"]
        file.append([Prediction(id="b", text="two")])
    assert path.read_text() == '{"id":"a","text":"one"}\n{"id":"b","text":"two"}\n'
    write(path, '{"id":"a"}\nnot json\n[1]\n')
    with pytest.raises(UsageError, match=r"(?s)3 problems.*line 1: .*text.*line 2: not JSON.*line 3: a JSON list"):
        read_predictions(path)


def test_two_processes_may_not_append_to_one_file(tmp_path):
    with (
        appending(tmp_path / "p.jsonl"),
        pytest.raises(UsageError, match="being written by another process"),
        appending(tmp_path / "p.jsonl"),
    ):
        pass


def test_a_prediction_carries_what_its_example_says(make_example):
    example = make_example("e", scenario="s", phase="0", actor="vehicle", view="overhead_view", frame_rank=2)
    row = predicted(example, "text", 0.5)
    assert (row.scenario, row.phase, row.actor, row.view, row.frame_rank) == ("s", "0", "vehicle", "overhead_view", 2)
