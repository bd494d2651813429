"""The two files that the challenge takes, checked against the test set before either is written."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from budgetft.data.problems import problem_report
from budgetft.data.wts.notes import LETTERS
from budgetft.data.wts.tree import ACTORS
from budgetft.errors import UsageError
from budgetft.evaluate.aggregate import How, aggregate, majority
from budgetft.evaluate.judge import key_of_prediction
from budgetft.evaluate.metrics import Scorer
from budgetft.evaluate.official import Slot, answer_letter, is_external, load_json, read_labels
from budgetft.evaluate.predictions import Prediction
from budgetft.evaluate.scripts import is_blank
from budgetft.plan import write_text_atomically
from budgetft.value import Value

CAPTIONS_FILE, ANSWERS_FILE = "subtask1_captioning.json", "subtask2_vqa.json"
Fill = Literal["none", "external", "all"]
"""What may be filled in where nothing usable was predicted: nothing, items of BDD_PC_5K, everything."""
_PACKAGE = "WTS_DATASET_PUBLIC_TEST"
_CAPTIONS = Path("annotations/caption/test/public_challenge")
_EXTERNAL = Path("external/BDD_PC_5K")
_QUESTIONS = "WTS_VQA_PUBLIC_TEST.json"
_SHOWN = 5
_NO_SLOT = "captions without scenario, phase and actor"
_NO_QUESTION = "answers that are captions of a scenario, phase and actor"


class TestSet(Value):
    """What a submission must hold. External is BDD_PC_5K: asked for, but not scored in 2026."""

    __test__ = False  # not a test class, whatever pytest makes of its name

    phases: dict[str, tuple[str, ...]]
    """Digits, in the order of the file, by scenario folder or BDD video stem."""
    external_scenarios: frozenset[str]
    questions: dict[str, tuple[str, ...]]
    """The letters to choose from, by question id."""
    external_questions: frozenset[str]


class Submitted(Value):
    """What was written."""

    files: tuple[str, ...]
    captions: int
    answers: int
    filled: int
    """Captions and answers that were not predicted but filled in."""
    absent: dict[str, str] = Field(default_factory=dict)
    """What was not given at all, ``captions`` or ``answers``, and the file that is therefore not written."""


def read_test_set(root: Path) -> TestSet:
    """The public test set below ``root``: the folder that holds ``WTS_DATASET_PUBLIC_TEST``, or that folder.

    Raises one ``UsageError`` for everything that is not in the official shape.
    """
    package = root / _PACKAGE if (root / _PACKAGE).is_dir() else root
    internal, external = package / _CAPTIONS, package / _EXTERNAL / _CAPTIONS
    files = sorted(root.rglob(_QUESTIONS))
    if not internal.is_dir() and not external.is_dir() and not files:
        raise UsageError(
            f"{root} is not the public test set: it has neither {_PACKAGE}/{_CAPTIONS} nor {_QUESTIONS}",
            hint="give --test the folder that holds WTS_DATASET_PUBLIC_TEST and SubTask2-VQA",
        )
    inside = read_labels(internal) if internal.is_dir() else {}
    outside = read_labels(external) if external.is_dir() else {}
    questions, external_questions = _read_questions(files[0]) if files else ({}, frozenset[str]())
    return TestSet(
        phases=inside | outside,
        external_scenarios=frozenset(outside),
        questions=questions,
        external_questions=external_questions,
    )


def _read_questions(path: Path) -> tuple[dict[str, tuple[str, ...]], frozenset[str]]:
    """The letters by question id, and the ids about BDD videos. Questions lie under phases or at the top of an entry."""
    data = load_json(path)
    if not isinstance(data, list):
        raise UsageError(f"{path} holds a JSON {type(data).__name__}, not a list of entries")
    questions: dict[str, tuple[str, ...]] = {}
    external: set[str] = set()
    problems: list[str] = []
    for number, entry in enumerate(data, start=1):
        if not isinstance(entry, dict):
            problems.append(f"entry {number}: not an object")
            continue
        wrong = [key for key in ("videos", "event_phase", "conversations") if not isinstance(entry.get(key) or [], list)]
        phases = [] if wrong else [part for part in entry.get("event_phase") or [] if isinstance(part, dict)]
        wrong += ["event_phase"] * any(not isinstance(part.get("conversations") or [], list) for part in phases)
        if wrong:
            problems.append(f"entry {number}: {', '.join(wrong)}: not a list")
            continue
        videos = [str(video) for video in entry.get("videos") or ()]
        outside = bool(videos) and all(is_external(Path(video).stem) for video in videos)
        asked = [one for part in (entry, *phases) for one in part.get("conversations") or ()]
        if not asked:
            problems.append(f"entry {number}: no conversations")
        for one in asked:
            name = one.get("id") if isinstance(one, dict) else None
            if not isinstance(name, str):
                problems.append(f"entry {number}: a question without an id")
                continue
            questions[name] = tuple(letter for letter in LETTERS if letter in one)
            if outside:
                external.add(name)
    if problems:
        raise problem_report(str(path), problems)
    return questions, frozenset(external)


def split_predictions(rows: Sequence[Prediction]) -> tuple[list[Prediction] | None, list[Prediction] | None]:
    """(captions, answers) of predictions of both, told apart as ``budgetft evaluate`` does; None for what there is none of."""
    captions = [one for one in rows if isinstance(key_of_prediction(one), Slot)]
    answers = [one for one in rows if not isinstance(key_of_prediction(one), Slot)]
    return captions or None, answers or None


def write_submission(
    test: TestSet,
    out: Path,
    *,
    scorer: Scorer,
    captions: Sequence[Prediction] | None = None,
    answers: Sequence[Prediction] | None = None,
    how: How = "mid",
    fill: Fill = "none",
) -> Submitted:
    """Write the file of each kind of prediction that is given into the folder ``out``.

    Everything is checked first: with one ``UsageError`` for all that is missing, unknown, repeated, empty or no option,
    nothing is written.
    """
    problems: dict[str, list[str]] = {}
    files: dict[str, Any] = {}
    filled = [0]
    if captions is not None:
        files[CAPTIONS_FILE] = _caption_file(captions, test, _Gap(fill, problems, filled), how, scorer)
    if answers is not None:
        files[ANSWERS_FILE] = _answer_file(answers, test, _Gap(fill, problems, filled))
    if not files:
        raise UsageError("there is nothing to submit", hint="give the files that budgetft predict wrote")
    if problems:
        raise _refusal(out, problems, fill)
    for name, content in files.items():
        write_text_atomically(out / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    written = files.get(CAPTIONS_FILE, {}).values()
    return Submitted(
        files=tuple(str(out / name) for name in files),
        captions=len(ACTORS) * sum(len(segments) for segments in written),
        answers=len(files.get(ANSWERS_FILE, ())),
        filled=filled[0],
        absent={
            name: file
            for name, file, given in (("captions", CAPTIONS_FILE, captions), ("answers", ANSWERS_FILE, answers))
            if given is None
        },
    )


@dataclass(frozen=True)
class _Gap:
    """What to do where nothing usable was predicted: fill it in where that is allowed, else note a problem."""

    fill: Fill
    problems: dict[str, list[str]]
    filled: list[int] = field(default_factory=lambda: [0])

    def note(self, kind: str, name: str) -> None:
        self.problems.setdefault(kind, []).append(name)

    def close(self, kind: str, name: str, filler: str, *, external: bool) -> str:
        if self.fill == "all" or (self.fill == "external" and external):
            self.filled[0] += 1
        else:
            self.note(kind, name)
        return filler


def _caption_file(
    predictions: Sequence[Prediction], test: TestSet, gap: _Gap, how: How, scorer: Scorer
) -> dict[str, list[dict[str, Any]]]:
    _note_repeated("captions", (one.id for one in predictions), gap)
    keys = {one.id: key_of_prediction(one) for one in predictions}
    slots = [one for one in predictions if isinstance(keys[one.id], Slot)]
    for one in predictions:
        if not isinstance(keys[one.id], Slot):
            gap.note(_NO_SLOT, one.id)
    chosen = aggregate(slots, lambda one: keys[one.id], how=how, scorer=scorer)
    wanted = [Slot(name, phase, actor) for name, phases in test.phases.items() for phase in phases for actor in ACTORS]
    for key in chosen.keys() - set(wanted):
        gap.note("captions: unknown", str(key))
    texts: dict[Slot, str] = {}
    for slot in wanted:
        external = slot.scenario in test.external_scenarios
        text = chosen[slot].text.strip() if slot in chosen else None
        if text is None or is_blank(text):
            text = gap.close(f"captions: {'missing' if text is None else 'empty'}", str(slot), "", external=external)
        texts[slot] = text
    return {
        name: [{"labels": [p], **{f"caption_{actor}": texts[Slot(name, p, actor)] for actor in ACTORS}} for p in phases]
        for name, phases in test.phases.items()
    }


def _answer_file(predictions: Sequence[Prediction], test: TestSet, gap: _Gap) -> list[dict[str, str]]:
    _note_repeated("answers", (one.id for one in predictions), gap)
    groups: dict[str, list[Prediction]] = {}
    for one in predictions:
        groups.setdefault(_question_id(one, test.questions), []).append(one)
    for name in groups.keys() - test.questions.keys():
        is_caption = isinstance(key_of_prediction(groups[name][0]), Slot)
        gap.note(_NO_QUESTION if is_caption else "answers: unknown", name)
    rows = []
    for name, letters in test.questions.items():
        external, filler = name in test.external_questions, (letters or LETTERS)[0]
        group = groups.get(name)
        letter = majority(group, _option_of(letters)) if group else None
        if group is None:
            letter = gap.close("answers: missing", name, filler, external=external)
        elif letter is None:
            letter = gap.close("answers: not one of the question's letters", name, filler, external=external)
        rows.append({"id": name, "correct": letter})
    return rows


def _option_of(letters: tuple[str, ...]) -> Callable[[Prediction], str | None]:
    def read(one: Prediction) -> str | None:
        letter = answer_letter(one.text)
        return letter if letter in letters else None

    return read


def _question_id(one: Prediction, known: Mapping[str, Any]) -> str:
    """The test's id of the question: the prediction's own, its source's, or a part of its own between bars."""
    candidates = (one.id, one.source_id or "", *one.id.split("|"))
    return next((name for name in candidates if name in known), one.id)


def _note_repeated(kind: str, ids: Iterable[Hashable], gap: _Gap) -> None:
    for name, count in Counter(ids).items():
        if count > 1:
            gap.note(f"{kind}: repeated ids", f"{name} ({count} times)")


def _refusal(out: Path, problems: dict[str, list[str]], fill: Fill) -> UsageError:
    lines = []
    for kind, names in problems.items():
        first = sorted(names)[:_SHOWN]
        more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
        lines.append(f"{kind}: {len(names)}: {', '.join(first)}{more}")
    hint = "predict what is missing with budgetft predict (a rerun goes on where it stopped)"
    if problems.keys() & {_NO_SLOT, _NO_QUESTION}:
        hint = "give the file without --captions and --vqa: captions and answers are then told apart; " + hint
    if fill == "none":
        hint += "; --fill external fills in BDD_PC_5K, which is asked for but not scored in 2026"
    total = sum(len(names) for names in problems.values())
    count = "1 problem" if total == 1 else f"{total} problems"
    return UsageError(f"nothing written to {out}: {count}\n  " + "\n  ".join(lines), hint=hint)
