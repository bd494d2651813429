"""Score files against files: predictions or a submission, against datasets or the organisers' annotations."""

from collections.abc import Sequence
from pathlib import Path

from budgetft.data.examples import Example, read_dataset
from budgetft.errors import UsageError
from budgetft.evaluate.aggregate import How
from budgetft.evaluate.judge import Texts, evaluate, reduce_predictions, truth_of_examples
from budgetft.evaluate.metrics import Scorer
from budgetft.evaluate.official import load_json, read_annotated_captions, read_answers, read_captions
from budgetft.evaluate.predictions import Prediction, read_predictions
from budgetft.evaluate.scoring import Evaluation


def evaluate_files(
    predictions: Sequence[Path],
    *,
    data: Sequence[Path] = (),
    truth: Sequence[Path] = (),
    how: How = "mid",
    scorer: Scorer | None = None,
) -> Evaluation:
    """The scores of ``predictions``: files that ``budgetft predict`` wrote, or submission files (``.json``).

    The truth is in ``truth`` (folders of caption annotations, ``.json`` files of answers), else in the answers of the
    datasets ``data``. Raises ``UsageError`` when there is no truth, or when nothing predicted belongs to it.
    """
    examples: list[Example] = [example for folder in data for example in read_dataset(folder)]
    wanted = _truth(truth) if truth else truth_of_examples(examples)
    if not (wanted.captions or wanted.answers or wanted.plain):
        raise UsageError("there is nothing to score against", hint="give --data DIR, or --truth with the true annotations")
    scorer = scorer or Scorer()
    found = _found(predictions, examples, how, scorer)
    known = (wanted.captions.keys() & found.captions.keys()) | (wanted.plain.keys() & found.plain.keys())
    if not known and not wanted.answers.keys() & found.answers.keys():
        names = ", ".join(str(path) for path in predictions)
        raise UsageError(
            f"nothing in {names} was predicted for this truth: no id, scenario, phase and actor is in both",
            hint="give the dataset that it was predicted for: --data DIR",
        )
    return evaluate(found, wanted, scorer)


def _truth(paths: Sequence[Path]) -> Texts:
    truth = Texts()
    for path in paths:
        if path.is_dir():
            truth.captions.update(read_annotated_captions(path))
        else:
            truth.answers.update(read_answers(path))
    return truth


def _found(paths: Sequence[Path], examples: Sequence[Example], how: How, scorer: Scorer) -> Texts:
    rows: list[Prediction] = []
    official = Texts()
    for path in paths:
        if path.suffix != ".json":
            rows += read_predictions(path)
        elif isinstance(load_json(path), dict):
            official.captions.update(read_captions(path))
        else:
            official.answers.update(read_answers(path))
    reduced = reduce_predictions(rows, examples, how=how, scorer=scorer)
    return Texts(
        captions=reduced.captions | official.captions,
        answers=reduced.answers | official.answers,
        plain=reduced.plain,
    )
