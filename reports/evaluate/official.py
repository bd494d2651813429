"""Our metrics beside the organisers' own code, pair by pair and of whole files; and METEOR with WordNet beside METEOR without.

    python -W ignore reports/evaluate/official.py pairs EVALUATION      # printed: agreement.txt; a minute, no GPU; measured
    python -W ignore reports/evaluate/official.py files EVALUATION      # printed: whole.txt; seconds

EVALUATION is the folder evaluation of github.com/woven-visionai/wts-dataset. Files have scenarios, phases and answers that are
missing or repeated.
"""

import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import ROOT
from harness.arguments import flag, parser

from budgetft.evaluate.files import evaluate_files
from budgetft.evaluate.metrics import NoWordNet, Scorer, installed_wordnet

options = flag(flag(parser(__doc__), "what", choices=("pairs", "files")), "evaluation", type=Path)


def official(folder: Path, *names: str) -> list[Any]:
    """Modules of theirs, which would download when they are imported."""
    import nltk

    nltk.download = lambda *words, **options: False
    sys.path[:0] = [str(folder / "eval-metrics-AIC-Track2"), str(folder / "eval-metrics-AIC-Track2_VQA")]
    return [import_module(name) for name in names]


def without_wordnet(utils: Any) -> None:
    theirs = utils.meteor_score
    utils.meteor_score = lambda references, hypothesis: theirs(references, hypothesis, wordnet=NoWordNet())


def sample_captions(folder: Path) -> Iterator[list[str]]:
    """The captions of each scenario and actor in their sample annotations."""
    for path in sorted(folder.glob("eval-metrics-AIC-Track2/testdata/gt/*/overhead_view/*.json")):
        segments = json.loads(path.read_text())["event_phase"]
        for actor in ("pedestrian", "vehicle"):
            yield [segment[f"caption_{actor}"] for segment in segments]


def compare_pairs(folder: Path) -> None:
    (utils,) = official(folder, "utils")
    invented = [(row["prediction"], row["reference"]) for row in json.loads((ROOT / "tests/evaluate/pairs.json").read_text())]
    samples = list(sample_captions(folder))
    crossed = [(a, b) for captions in samples for i, a in enumerate(captions) for j, b in enumerate(captions) if i != j]
    bare, full, worst = Scorer(NoWordNet()), Scorer(), 0.0
    if installed_wordnet() is None:
        without_wordnet(utils)
    pairs = invented + crossed + [(caption, caption) for captions in samples for caption in captions]
    for prediction, reference in pairs:
        ours, theirs = full.score(prediction, reference), utils.compute_metrics_single(prediction, reference)
        expected = [theirs[name] for name in ("bleu", "meteor", "rouge-l", "cider")]
        found = (ours.bleu, ours.meteor, ours.rouge_l, ours.cider)
        worst = max(worst, *(abs(a - b) for a, b in zip(found, expected, strict=True)))
    print(f"{len(pairs)} pairs with {full.meteor_name}: the largest difference of any metric is {worst:.1e}")
    if full.meteor_name == "meteor":
        for name, some in (("invented", invented), ("sample, phases crossed", crossed)):
            gaps = [full.score(*pair).meteor - bare.score(*pair).meteor for pair in some]
            print(f"{name}: meteor_nowordnet is lower by {mean(gaps):.4f} on average, {min(gaps):.4f} to {max(gaps):.4f}")


def evaluated(predicted: Any, truth: Any) -> tuple[Any, str]:
    """What `evaluate` says of two files with these contents (or of a truth that is there), and which notes it makes."""
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / name for name in ("subtask1_captioning.json", "truth.json")]
        for path, content in zip(paths, (predicted, truth), strict=True):
            path.write_text("" if isinstance(content, Path) else json.dumps(content))
        where = [truth] if isinstance(truth, Path) else paths[1:]
        found = evaluate_files(paths[:1], truth=where, scorer=Scorer(NoWordNet()))
    return found, ", ".join(one.kind for one in found.notes)


def compare_files(folder: Path) -> None:
    utils, metrics_test, vqa = official(folder, "utils", "metrics_test", "traffic_qa_evaluation_script")
    without_wordnet(utils)
    data = folder / "eval-metrics-AIC-Track2" / "testdata"

    def official_s1(predicted: dict[str, Any]) -> float:
        """As the end of their ``metrics_test.py``."""
        with contextlib.redirect_stdout(io.StringIO()):
            *both, phases = metrics_test.compute_metrics_overall(predicted, metrics_test.read_gt(f"{data / 'gt'}/"))
        means = [metrics_test.compute_mean_metrics(one, phases) for one in both]
        of = {name: (means[0][name] + means[1][name]) / 2 for name in means[0]}
        return (100 * (of["bleu"] + of["meteor"] + of["rouge-l"]) + 10 * of["cider"]) / 4

    whole = json.loads((data / "pred_different.json").read_text())
    first, second = whole
    for what, predicted in {
        "captions as they are": whole,
        "one of two scenarios without a prediction": {first: whole[first]},
        "the other one": {second: whole[second]},
        "a phase without a prediction": whole | {first: whole[first][1:]},
        "a scenario without a phase": whole | {first: []},
        "a phase twice in the prediction": whole | {first: [*whole[first], whole[first][0] | {"labels": ["1"]}]},
        "a scenario that nobody asked for": whole | {"other": whole[first]},
    }.items():
        (found, told), expected = evaluated(predicted, data / "gt"), official_s1(predicted)
        apart = abs(expected - found.captions.s1)
        print(f"{what}: theirs {expected:.6f}, ours {found.captions.s1:.6f}, apart {apart:.1e}; told: {told}")
    data = folder / "eval-metrics-AIC-Track2_VQA" / "testdata"
    truth, answers = (json.loads((data / f"sample_{name}.json").read_text()) for name in ("ground_truth", "user_output"))
    for what, predicted in {
        "answers as they are": answers,
        "without the first": answers[1:],
        "the first twice, wrong at last": [*answers, answers[0] | {"correct": "x"}],
        "in capitals": [one | {"correct": one["correct"].upper()} for one in answers],
    }.items():
        (found, told), expected = evaluated(predicted, truth), vqa.evaluate(truth, predicted)
        print(f"{what}: theirs {100 * expected['accuracy']:.4f} %, ours {found.answers.accuracy:.4f} %; told: {told}")


def main() -> None:
    asked = options.parse_args()
    if not (asked.evaluation / "eval-metrics-AIC-Track2").is_dir():
        options.error(f"{asked.evaluation} has no folder eval-metrics-AIC-Track2: clone woven-visionai/wts-dataset")
    (compare_pairs if asked.what == "pairs" else compare_files)(asked.evaluation)


if __name__ == "__main__":
    main()
