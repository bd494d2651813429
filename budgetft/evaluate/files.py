"""Score files against files: predictions or a submission, against datasets or the organisers' annotations."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budgetft.data.examples import Example, Examples, read_dataset
from budgetft.errors import UsageError
from budgetft.evaluate.aggregate import How
from budgetft.evaluate.judge import Texts, evaluate, listed, reduce_predictions, truth_of_examples
from budgetft.evaluate.metrics import Scorer
from budgetft.evaluate.notes import Note, note
from budgetft.evaluate.official import (
    load_json,
    read_annotated_captions,
    read_answers,
    read_captions,
    repeated_captions,
    repeated_phases,
    vehicle_view_only,
)
from budgetft.evaluate.origin import check_origin, record_notes
from budgetft.evaluate.predictions import Prediction, read_predictions
from budgetft.evaluate.scoring import Evaluation
from budgetft.evaluate.scripts import is_blank

_SKIP = "--skip-unlabelled"


def evaluate_files(
    predictions: Sequence[Path],
    *,
    data: Sequence[Path] = (),
    truth: Sequence[Path] = (),
    how: How = "mid",
    scorer: Scorer | None = None,
    skip_unlabelled: bool = False,
) -> Evaluation:
    """The scores of ``predictions``: files that ``budgetft predict`` wrote, or submission files (``.json``).

    The truth is in ``truth`` (folders of caption annotations, ``.json`` files of answers), else in the answers of the
    datasets ``data``. Raises ``UsageError`` when there is no truth, when a part of it is missing (unless
    ``skip_unlabelled``), when anything is told twice and differently, or when nothing predicted belongs to it.
    """
    _refuse_truth_as_prediction(predictions, truth)
    folders = [read_dataset(folder) for folder in data]
    examples = _examples(folders)
    labels = _annotated(truth) if truth else _of_datasets(folders, examples)
    if not labels.total:
        raise UsageError("there is nothing to score against", hint="give --data DIR, or --truth with the true annotations")
    labels.refuse_unlabelled(skip_unlabelled)
    given = _given(predictions)
    given.rows = check_origin(given.rows, examples, left_out=labels.left_out)
    scorer = scorer or Scorer()
    found = given.reduced(examples, how, scorer)
    _refuse_strangers(found, labels.texts, predictions)
    notes = [
        *note("unlabelled", labels.unlabelled, "{n} examples have no label and are left out"),
        *labels.notes,
        *given.notes,
        *record_notes(predictions, folders),
        *_coverage(given, [] if truth else examples, labels.left_out),
    ]
    return evaluate(found, labels.texts, scorer, unlabelled=len(labels.unlabelled), notes=notes)


@dataclass(kw_only=True)
class _Labels:
    """The truth, and what has none."""

    texts: Texts
    where: dict[str, list[int]]
    """[examples without a label, all], by dataset or file."""
    unlabelled: list[str] = field(default_factory=list)
    left_out: frozenset[str] = frozenset()
    """Ids of examples of a dataset without a label."""
    notes: list[Note] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(total for _, total in self.where.values())

    def refuse_unlabelled(self, skip: bool) -> None:
        """Raise ``UsageError`` for truth that is missing; with ``skip`` only where all is."""
        lacking = {name: counts for name, counts in self.where.items() if counts[0]}
        if not lacking:
            return
        if len(self.unlabelled) == self.total:
            names = " and ".join(lacking)
            raise UsageError(
                f"{names} {'has' if len(lacking) == 1 else 'have'} no labels: all {self.total} answers are empty, so no score"
                " can be given",
                hint="score a labelled split (--data DIR), or give the true annotations (--truth); for a test set without"
                " labels write the challenge's files: budgetft submit",
            )
        if not skip:
            told = "; ".join(f"{count} of {total} examples of {name}" for name, (count, total) in lacking.items())
            raise UsageError(
                f"{told} have no label (an empty answer): {listed(self.unlabelled)}",
                hint=f"label them, or add {_SKIP} to score only the other {self.total - len(self.unlabelled)}",
            )


def _examples(folders: Sequence[Examples]) -> list[Example]:
    """The examples of all datasets, equal ones once; raises ``UsageError`` when one id stands for different ones."""
    known: dict[str, Example] = {}
    twice: list[str] = []
    for folder in folders:
        for example in folder:
            before = known.setdefault(example.id, example)
            if before is not example and _content(before) != _content(example):
                twice.append(example.id)
    if twice:
        raise UsageError(
            f"the datasets use {listed(twice)} for different examples: which one was predicted is not known",
            hint="score each dataset alone, with its own predictions",
        )
    return list(known.values())


def _content(example: Example) -> Example:
    """``example`` without its folder: image files are named by their content."""
    return example.replace(images=tuple(Path(image).name for image in example.images))


def _of_datasets(folders: Sequence[Examples], examples: Sequence[Example]) -> _Labels:
    missing = [example.id for example in examples if is_blank(example.answer)]
    absent = frozenset(missing)
    labelled = [example for example in examples if example.id not in absent]
    where: dict[str, list[int]] = {}
    left = {example.id for example in examples}
    for folder in folders:
        ids = [name for name in (example.id for example in folder) if name in left]
        left -= set(ids)
        where[f"the dataset {folder.folder}"] = [sum(name in absent for name in ids), len(ids)]
    return _Labels(
        texts=truth_of_examples(labelled), where=where, unlabelled=missing, left_out=absent, notes=_differing(labelled)
    )


def _differing(examples: Sequence[Example]) -> list[Note]:
    captions: dict[tuple[str | None, str | None, str | None], set[str]] = {}
    for example in examples:
        if example.scenario and example.phase and example.actor and example.view != "vehicle_view":
            captions.setdefault((example.scenario, example.phase, example.actor), set()).add(example.answer)
    names = [" ".join(str(part) for part in slot) for slot, texts in captions.items() if len(texts) > 1]
    return note("several labels", names, "{n} captions have several different labels: the first one counts")


def _annotated(paths: Sequence[Path]) -> _Labels:
    texts = Texts()
    labels = _Labels(texts=texts, where={})
    twice: list[str] = []
    for path in paths:
        if path.is_dir():
            rows: list[tuple[Any, str]] = list(read_annotated_captions(path).items())
            known: dict[Any, str] = texts.captions
            labels.notes += _annotation_notes(path)
        else:
            rows, known = list(read_answers(path)), texts.answers
        blank = {name for name, text in rows if is_blank(text)}
        labels.where[str(path)] = [len(blank), len({name for name, _ in rows})]
        labels.unlabelled += [str(name) for name in blank]
        for name, text in rows:
            if name not in blank and not _same(known.setdefault(name, text), text, captions=path.is_dir()):
                twice.append(str(name))
    if twice:
        raise UsageError(
            f"the truth has two different labels for {listed(list(dict.fromkeys(twice)))}",
            hint="keep one label for each question and each caption",
        )
    labels.unlabelled.sort()
    return labels


def _same(first: str, second: str, *, captions: bool) -> bool:
    return first == second if captions else first.lower() == second.lower()


def _annotation_notes(folder: Path) -> list[Note]:
    return [
        *note(
            "vehicle view only",
            vehicle_view_only(folder),
            "{n} scenarios have captions of the vehicle's view alone: they are scored here; the organisers' script leaves them"
            " out",
        ),
        *note(
            "repeated phases",
            repeated_phases(folder),
            "{n} scenarios tell a phase twice: its last captions count, once; the organisers' script counts it twice where a"
            " scenario has no prediction",
        ),
    ]


@dataclass(kw_only=True)
class _Given:
    """What the files of predictions hold."""

    rows: list[Prediction]
    official: Texts
    notes: list[Note]

    def reduced(self, examples: Sequence[Example], how: How, scorer: Scorer) -> Texts:
        """One text per thing; raises ``UsageError`` where the files disagree."""
        found = reduce_predictions(self.rows, examples, how=how, scorer=scorer)
        both: list[object] = [
            *(slot for slot in found.captions.keys() & self.official.captions.keys()),
            *(name for name in found.answers.keys() & self.official.answers.keys()),
        ]
        if both:
            raise UsageError(
                f"rows and a submission file both predict {listed(sorted(map(str, both)))}",
                hint="score one of the files at a time",
            )
        return Texts(
            captions=found.captions | self.official.captions,
            answers=found.answers | self.official.answers,
            plain=found.plain,
        )


def _given(paths: Sequence[Path]) -> _Given:
    rows: list[Prediction] = []
    official = Texts()
    notes: list[Note] = []
    twice: list[str] = []
    for path in paths:
        if path.suffix != ".json":
            rows += read_predictions(path)
            continue
        again: list[str] = []
        if isinstance(load_json(path), dict):
            captions = read_captions(path)
            twice += [str(slot) for slot, text in captions.items() if official.captions.setdefault(slot, text) != text]
            again = repeated_captions(path)
        else:
            answers = read_answers(path)
            again = [name for name, count in Counter(name for name, _ in answers).items() if count > 1]
            twice += [name for name, text in dict(answers).items() if official.answers.setdefault(name, text) != text]
        text = f"{{n}} entries stand more than once in {path.name}: the last one counts, as in the organisers' script"
        notes += note("repeated entries", again, text)
    rows, equal = _once(rows, twice)
    if twice:
        raise UsageError(
            f"two different texts are predicted for {listed(list(dict.fromkeys(twice)))}",
            hint="keep one row of each id, and score one run's predictions at a time",
        )
    notes += note("repeated rows", equal, "{n} predictions stand more than once, with the same text: each counts once")
    return _Given(rows=rows, official=official, notes=notes)


def _once(rows: Sequence[Prediction], twice: list[str]) -> tuple[list[Prediction], list[str]]:
    """The rows of each id once, and the ids that were repeated; those with different texts are added to ``twice``."""
    known: dict[str, Prediction] = {}
    equal: dict[str, None] = {}
    for row in rows:
        before = known.setdefault(row.id, row)
        if before is row:
            continue
        if before.replace(seconds=None) == row.replace(seconds=None):
            equal[row.id] = None
        else:
            twice.append(row.id)
    return list(known.values()), list(equal)


def _coverage(given: _Given, examples: Sequence[Example], left_out: frozenset[str]) -> list[Note]:
    """Examples of the datasets without a row; a submission file has one text for all frames."""
    if not given.rows or not examples:
        return []
    predicted = {row.id for row in given.rows}
    labelled = [example.id for example in examples if example.id not in left_out]
    missing = [name for name in labelled if name not in predicted]
    return note("not predicted", missing, f"{{n}} of {len(labelled)} examples have no prediction")


def _refuse_truth_as_prediction(predictions: Sequence[Path], truth: Sequence[Path]) -> None:
    for path in predictions:
        for other in truth:
            if path.exists() and other.exists() and path.samefile(other):
                raise UsageError(f"{path} is given as the truth and as the prediction: it would score 100 against itself")


def _refuse_strangers(found: Texts, wanted: Texts, predictions: Sequence[Path]) -> None:
    known = (wanted.captions.keys() & found.captions.keys()) | (wanted.plain.keys() & found.plain.keys())
    if known or wanted.answers.keys() & found.answers.keys():
        return
    names = ", ".join(str(path) for path in predictions)
    raise UsageError(
        f"nothing in {names} was predicted for this truth: no id, scenario, phase and actor is in both",
        hint="give the dataset that it was predicted for: --data DIR",
    )
