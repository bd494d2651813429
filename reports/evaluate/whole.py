"""Whole files beside the organisers' own scripts: scenarios, phases and answers that are missing or repeated.

Run from the repository root:  python -W ignore reports/evaluate/whole.py FOLDER
FOLDER is evaluation/ of github.com/woven-visionai/wts-dataset.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

folder = Path(sys.argv[1])
captions, questions = folder / "eval-metrics-AIC-Track2", folder / "eval-metrics-AIC-Track2_VQA"
sys.path[:0] = [str(captions), str(questions), "."]
import nltk  # noqa: E402

nltk.download = lambda *words, **options: False  # their script downloads when it is imported
import metrics_test  # noqa: E402
import traffic_qa_evaluation_script as vqa  # noqa: E402
import utils  # noqa: E402

from budgetft.evaluate.files import evaluate_files  # noqa: E402
from budgetft.evaluate.metrics import NoWordNet, Scorer  # noqa: E402

theirs = utils.meteor_score
utils.meteor_score = lambda references, hypothesis: theirs(references, hypothesis, wordnet=NoWordNet())
scorer = Scorer(NoWordNet())


def official_s1(predicted: dict[str, Any], truth: Path) -> float:
    """As the end of their ``metrics_test.py``."""
    with contextlib.redirect_stdout(io.StringIO()):
        pedestrian, vehicle, phases = metrics_test.compute_metrics_overall(predicted, metrics_test.read_gt(f"{truth}/"))
    means = [metrics_test.compute_mean_metrics(one, phases) for one in (pedestrian, vehicle)]
    both = {name: (means[0][name] + means[1][name]) / 2 for name in means[0]}
    return (100 * (both["bleu"] + both["meteor"] + both["rouge-l"]) + 10 * both["cider"]) / 4


def compare_captions(what: str, predicted: dict[str, Any], truth: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "subtask1_captioning.json"
        path.write_text(json.dumps(predicted))
        found = evaluate_files([path], truth=[truth], scorer=scorer)
    assert found.captions is not None
    expected = official_s1(predicted, truth)
    told = ", ".join(one.kind for one in found.notes)
    apart = abs(expected - found.captions.s1)
    print(f"{what}: theirs {expected:.6f}, ours {found.captions.s1:.6f}, apart {apart:.1e}; told: {told}")


def compare_answers(what: str, predicted: list[dict[str, str]], truth: list[dict[str, str]]) -> None:
    expected = vqa.evaluate(truth, predicted)
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / name for name in ("p.json", "t.json")]
        for path, rows in zip(paths, (predicted, truth), strict=True):
            path.write_text(json.dumps(rows))
        found = evaluate_files(paths[:1], truth=paths[1:], scorer=scorer)
    assert found.answers is not None
    told = ", ".join(one.kind for one in found.notes)
    print(f"{what}: theirs {100 * expected['accuracy']:.4f} %, ours {found.answers.accuracy:.4f} %; told: {told}")


gt = captions / "testdata" / "gt"
whole = json.loads((captions / "testdata" / "pred_different.json").read_text())
first, second = whole
compare_captions("captions as they are", whole, gt)
compare_captions("one of two scenarios without a prediction", {first: whole[first]}, gt)
compare_captions("the other one", {second: whole[second]}, gt)
compare_captions("a phase without a prediction", whole | {first: whole[first][1:]}, gt)
compare_captions("a scenario without a phase", whole | {first: []}, gt)
compare_captions("a phase twice in the prediction", whole | {first: [*whole[first], whole[first][0] | {"labels": ["1"]}]}, gt)
compare_captions("a scenario that nobody asked for", whole | {"other": whole[first]}, gt)

truth = json.loads((questions / "testdata" / "sample_ground_truth.json").read_text())
answers = json.loads((questions / "testdata" / "sample_user_output.json").read_text())
compare_answers("answers as they are", answers, truth)
compare_answers("without the first", answers[1:], truth)
compare_answers("the first twice, wrong at last", [*answers, answers[0] | {"correct": "x"}], truth)
compare_answers("in capitals", [one | {"correct": one["correct"].upper()} for one in answers], truth)
