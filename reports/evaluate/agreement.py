"""Our metrics beside the organisers' own code, and METEOR with WordNet beside METEOR without.

Run from the repository root:  python -W ignore reports/evaluate/agreement.py FOLDER
FOLDER is evaluation/eval-metrics-AIC-Track2 of github.com/woven-visionai/wts-dataset.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

sys.path[:0] = [sys.argv[1], "."]
import nltk  # noqa: E402

nltk.download = lambda *words, **options: False  # their script downloads when it is imported
import utils  # noqa: E402

from budgetft.evaluate.metrics import NoWordNet, Scorer, installed_wordnet  # noqa: E402


def sample_captions() -> Iterator[list[str]]:
    """The captions of each scenario and actor in their sample annotations."""
    for path in sorted(Path(sys.argv[1]).glob("testdata/gt/*/overhead_view/*.json")):
        segments = json.loads(path.read_text())["event_phase"]
        for actor in ("pedestrian", "vehicle"):
            yield [segment[f"caption_{actor}"] for segment in segments]


invented = [(row["prediction"], row["reference"]) for row in json.loads(Path("tests/evaluate/pairs.json").read_text())]
crossed = [(a, b) for captions in sample_captions() for i, a in enumerate(captions) for j, b in enumerate(captions) if i != j]
every = [caption for captions in sample_captions() for caption in captions]
bare, full = Scorer(NoWordNet()), Scorer()
if installed_wordnet() is None:
    theirs = utils.meteor_score
    utils.meteor_score = lambda references, hypothesis: theirs(references, hypothesis, wordnet=NoWordNet())

pairs = invented + crossed + [(caption, caption) for caption in every]
worst = 0.0
for prediction, reference in pairs:
    ours, official = full.score(prediction, reference), utils.compute_metrics_single(prediction, reference)
    expected = (official["bleu"], official["meteor"], official["rouge-l"], official["cider"])
    worst = max(worst, *(abs(a - b) for a, b in zip((ours.bleu, ours.meteor, ours.rouge_l, ours.cider), expected, strict=True)))
print(f"{len(pairs)} pairs with {full.meteor_name}: the largest difference of any metric is {worst:.1e}")
if full.meteor_name == "meteor":
    for name, some in (("invented", invented), ("sample, phases crossed", crossed)):
        gaps = [full.score(*pair).meteor - bare.score(*pair).meteor for pair in some]
        print(f"{name}: meteor_nowordnet is lower by {mean(gaps):.4f} on average, {min(gaps):.4f} to {max(gaps):.4f}")
