"""From a synthetic dataset to scores and submission files: what is predicted frame by frame comes back as one caption and one
answer.
"""

import json

import pytest
from synthetic_sets import make_synthetic

from budgetft.data.examples import read_dataset
from budgetft.data.synthetic.spec import SyntheticSpec
from budgetft.data.wts.convert import Request, convert_wts
from budgetft.data.wts.reformat import Format
from budgetft.evaluate.files import evaluate_files
from budgetft.evaluate.metrics import NoWordNet, Scorer
from budgetft.evaluate.predictions import appending, predicted
from budgetft.evaluate.submission import read_test_set, write_submission

pytest.importorskip("nltk")
FRAMES = Format(policy="expand", per_row=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A synthetic dataset with a scenario in each split and BDD videos, and a dataset of each split."""
    root = tmp_path_factory.mktemp("scores")
    third = 1 / 3
    make_synthetic(root / "wts", SyntheticSpec(scenarios=3, seed=11, seconds=1.2, fractions=(third, third, 1 - 2 * third)))
    for split in ("train", "val", "test"):
        convert_wts(root / "wts", root / split, Request(split=split, form=FRAMES, cameras="all"))
    return root


def written(path, rows):
    with appending(path) as file:
        file.append(rows)
    return path


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_truth_of_every_frame_scores_as_the_truth(whole, tmp_path, split):
    examples = read_dataset(whole / split)
    path = written(tmp_path / "rows.jsonl", [predicted(one, one.answer) for one in examples])
    found = evaluate_files([path], data=[whole / split], scorer=Scorer(NoWordNet()))
    assert found.captions is not None
    assert found.answers is not None
    assert found.captions.s1 > 99.9
    assert found.captions.missing == found.captions.unknown == ()
    assert found.captions.captions == len({(one.scenario, one.phase, one.actor) for one in examples if one.actor})
    assert found.answers.accuracy == 100.0
    assert found.answers.questions == len({one.source_id for one in examples if not one.actor})


def test_one_wrong_frame_of_three_changes_neither_the_caption_nor_the_answer(whole, tmp_path):
    examples = read_dataset(whole / "val")
    other = {"a": "b", "b": "a", "c": "a", "d": "a"}
    rows = [
        predicted(one, one.answer if one.frame_rank else other.get(one.answer, "A dog barks at the moon.")) for one in examples
    ]
    found = evaluate_files([written(tmp_path / "r.jsonl", rows)], data=[whole / "val"], scorer=Scorer(NoWordNet()))
    assert found.captions is not None
    assert found.answers is not None
    assert found.captions.s1 > 99.9
    assert found.answers.accuracy == 100.0


def test_the_truth_of_a_test_set_becomes_the_official_files(whole, tmp_path):
    truth = whole / "wts" / "test_truth"
    captions = json.loads((truth / "subtask1_captioning.json").read_text())
    texts = {
        (name, one["labels"][0], actor): one[f"caption_{actor}"]
        for name, phases in captions.items()
        for one in phases
        for actor in ("pedestrian", "vehicle")
    }
    letters = {one["id"]: one["correct"] for one in json.loads((truth / "subtask2_vqa.json").read_text())}
    examples = read_dataset(whole / "test")
    said = [predicted(one, texts[one.scenario, one.phase, one.actor]) for one in examples if one.actor]
    chosen = [predicted(one, letters[one.source_id]) for one in examples if not one.actor]
    done = write_submission(
        read_test_set(whole / "wts"), tmp_path, captions=said, answers=chosen, scorer=Scorer(NoWordNet()), how="consensus"
    )
    assert (done.captions, done.answers, done.filled) == (len(texts), len(letters), 0)
    assert json.loads((tmp_path / "subtask1_captioning.json").read_text()) == captions
    assert json.loads((tmp_path / "subtask2_vqa.json").read_text()) == json.loads((truth / "subtask2_vqa.json").read_text())
    path = written(tmp_path / "rows.jsonl", [*said, *chosen])
    scored = evaluate_files([path], data=[whole / "test"], truth=[truth / "subtask2_vqa.json"], scorer=Scorer(NoWordNet()))
    assert scored.answers is not None
    assert scored.answers.accuracy == 100.0
