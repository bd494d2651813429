"""From the annotation files of a split to rows: which caption or question, in which videos, at which times."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from budgetft.data.media.video import PAST_END_SECONDS, VideoFacts
from budgetft.data.wts.notes import (
    CaptionNote,
    Notes,
    QuestionNote,
    QuestionsNote,
    read_boxes,
    read_captions,
    read_questions,
    read_test_questions,
)
from budgetft.data.wts.reformat import Clip, FrameBox, Row
from budgetft.data.wts.tree import ENVIRONMENT, EXTERNAL_VIDEO, OVERHEAD, VEHICLE, VIEWS, Source, Tree

_OUTSIDE = 0.02
"""A box may stick out of the frame by this share of a side: annotators are not exact. It is cut."""


@dataclass(kw_only=True)
class Found:
    """The rows of a split with their clips, and everything that is wrong."""

    rows: list[tuple[Row, list[Clip]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    absent_views: int = 0
    """Scenarios without a view that was asked for; not a problem."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to convert."""

    views: tuple[str, ...] = VIEWS
    all_cameras: bool = False
    """Every overhead camera, not only the main one of each scenario."""
    captions: bool = True
    questions: bool = True
    external: bool = True
    """Also test questions about BDD_PC_5K, which name its videos, whether or not these are here."""


def find_rows(tree: Tree, choice: Choice, facts: Mapping[Path, VideoFacts]) -> Found:
    """The rows of ``tree``; ``facts`` has the videos that could be opened, and what lies in others is left out."""
    found = Found(problems=list(tree.problems))
    reference = _main_reference(tree)
    captions: dict[str, dict[str, CaptionNote]] = {}
    clips: dict[str, dict[str, list[Clip]]] = {}
    for source in tree.sources:
        clips[source.name] = {view: _clips(source, view, tree, facts, found.problems) for view in source.videos}
        captions[source.name] = {}
        for view, path in source.captions.items():
            notes = Notes()
            note = read_captions(path, notes, captions=tree.split != "test")
            captions[source.name][view] = _checked(note, source, view, clips[source.name], notes)
            found.problems += [f"{tree.short(path)}: {problem}" for problem in notes.problems]
    for source in tree.sources:
        one = _Scenario(source=source, clips=clips[source.name], captions=captions[source.name], main=reference)
        found.absent_views += sum(1 for view in choice.views if not source.external and not source.videos.get(view))
        if choice.captions:
            found.rows += one.caption_rows(choice)
        if choice.questions:
            for kind, path in source.questions.items():
                notes = Notes()
                found.rows += one.question_rows(kind, read_questions(path, notes), choice, notes)
                found.problems += [f"{tree.short(path)}: {problem}" for problem in notes.problems]
    if choice.questions and tree.test_questions is not None:
        notes = Notes()
        entries = read_test_questions(tree.test_questions, notes)
        scenarios = {
            source.name: _Scenario(source=source, clips=clips[source.name], captions={}, main=reference)
            for source in tree.sources
        }
        found.rows += _test_rows(entries, scenarios, choice, notes)
        found.problems += [f"{tree.short(tree.test_questions)}: {problem}" for problem in notes.problems]
    return found


@dataclass(frozen=True, kw_only=True)
class _Scenario:
    source: Source
    clips: dict[str, list[Clip]]
    captions: dict[str, CaptionNote]
    main: dict[str, list[str]]

    def chosen(self, view: str, choice: Choice, names: Iterable[str] = ()) -> list[Clip]:
        """The clips of ``view`` to take frames from: those in ``names`` where there are any, of these the main one."""
        wanted = set(names)
        clips = self.clips.get(view, [])
        clips = [clip for clip in clips if clip.path.name in wanted] or clips
        if choice.all_cameras or len(clips) < 2:
            return clips
        reference = self.main.get(self.source.name, [])
        named = [clip for clip in clips if clip.path.name in reference or clip.path.stem in reference]
        return [named[0] if named else max(clips, key=_median_box)]  # of equals, the first camera

    def caption_rows(self, choice: Choice) -> Iterator[tuple[Row, list[Clip]]]:
        views = [view for view in choice.views if self.captions.get(view) and self.clips.get(view)]
        if not views:  # rather another view than none: a test set asks for every scenario
            views = [view for view in VIEWS if self.captions.get(view) and self.clips.get(view)][:1]
        for view in views:
            note = self.captions[view]
            clips = self.chosen(view, choice, note.videos)
            for phase in note.phases:
                for actor in phase.captions or ("pedestrian", "vehicle"):
                    row = Row(
                        id=f"{self.source.name}|{phase.digit}|{actor}|{view}",
                        scenario=self.source.name,
                        digit=phase.digit,
                        actor=actor,
                        window=(phase.start, phase.end),
                        ask=f"Describe the {actor}: position, attention, behaviour and surroundings.",
                        answer=phase.captions.get(actor, ""),
                    )
                    yield row, clips

    def question_rows(
        self, kind: str, entries: list[QuestionsNote], choice: Choice, notes: Notes
    ) -> list[tuple[Row, list[Clip]]]:
        """Rows of a question file of train or val; the environment is shown by one view, the overhead one first."""
        view, window = kind, None
        if kind == ENVIRONMENT:
            able = [one for one in (*(view for view in VIEWS if view in choice.views), *VIEWS) if self.clips.get(one)]
            view = able[0] if able else OVERHEAD
            phases = self.captions[view].phases if view in self.captions else ()
            if phases:
                window = phases[0].start, max(phase.end for phase in phases)
        elif view not in choice.views and self.source.videos.keys() & set(choice.views):
            return []
        rows = []
        for number, entry in enumerate(entries):
            _check_names(entry.videos, self.source, view if kind != ENVIRONMENT else None, f"[{number}]", notes)
            clips = self.chosen(view, choice, entry.videos)
            for place, one in enumerate(entry.questions):
                if not clips or not _fits(one, clips, notes):
                    continue
                name = f"{self.source.name}|{one.digit or kind}|{view}|question-{number}-{place}"
                rows.append((_question_row(name, self.source.name, one, window), clips))
        return rows


def _question_row(name: str, scenario: str, one: QuestionNote, window: tuple[float, float] | None) -> Row:
    options = "\n".join(f"{letter}. {text}" for letter, text in one.options.items())
    return Row(
        id=name,
        scenario=scenario,
        digit=one.digit,
        actor=None,
        window=one.times or window,
        ask=f"{one.text}\n{options}\nAnswer with the letter of the right option.",
        answer=one.correct or "",
    )


def _test_rows(
    entries: list[QuestionsNote], scenarios: dict[str, _Scenario], choice: Choice, notes: Notes
) -> Iterator[tuple[Row, list[Clip]]]:
    """Questions name their videos only; which scenario and view these are of is looked up."""
    homes = {
        path.name: (scenario, view)
        for scenario in scenarios.values()
        for view, paths in scenario.source.videos.items()
        for path in paths
    }
    for number, entry in enumerate(entries):
        if not choice.external and entry.videos and all(EXTERNAL_VIDEO.fullmatch(name) for name in entry.videos):
            continue
        known = [name for name in entry.videos if name in homes]
        for name in entry.videos:
            if name not in homes:
                notes.add(f"[{number}].videos", f"{name!r} is not a video of this split")
        if not entry.videos:
            notes.add(f"[{number}].videos", "missing")
        if not known:
            continue
        scenario, view = homes[known[0]]
        clips = scenario.chosen(view, choice, known)
        for one in entry.questions:
            if clips and _fits(one, clips, notes):
                yield _question_row(one.id or "", scenario.source.name, one, None), clips


def _fits(one: QuestionNote, clips: list[Clip], notes: Notes) -> bool:
    late = [clip for clip in clips if one.times is not None and one.times[1] > clip.facts.seconds + PAST_END_SECONDS]
    if late and one.times is not None:
        notes.add(f"{one.where}: end_time", _late(one.times[1], late[0]))
    return not late


def _late(end: float, clip: Clip) -> str:
    return f"{end:g} s is past the end of {clip.path.name} ({clip.facts.seconds:.3f} s)"


def _checked(note: CaptionNote, source: Source, view: str, clips: dict[str, list[Clip]], notes: Notes) -> CaptionNote:
    """``note`` without the phases that end after every one of its videos."""
    if not source.videos.get(view):
        where = "videos" if view == VEHICLE and source.external else f"videos/{view}"
        notes.add("file", f"there is no video of {source.name} in {where}")
        return note
    _check_names(note.videos, source, view, "", notes)
    named = [clip for clip in clips.get(view, ()) if clip.path.name in note.videos] or clips.get(view, [])
    kept = []
    for phase in note.phases:
        late = [clip for clip in named if phase.end > clip.facts.seconds + PAST_END_SECONDS]
        if late:
            notes.add(f"{phase.where}.end_time", _late(phase.end, late[0]))
        else:
            kept.append(phase)
    return CaptionNote(videos=note.videos, phases=tuple(kept))


def _check_names(names: Iterable[str], source: Source, view: str | None, where: str, notes: Notes) -> None:
    views = [view] if view is not None else list(source.videos)
    present = {path.name for one in views for path in source.videos.get(one, ())}
    for name in names:
        if name not in present:
            notes.add(f"{where}videos", f"{name!r} is not among the videos of {source.name}, {view or 'any view'}")


def _clips(source: Source, view: str, tree: Tree, facts: Mapping[Path, VideoFacts], problems: list[str]) -> list[Clip]:
    clips = []
    for path in source.videos[view]:
        if path not in facts:
            continue
        boxes: dict[str, list[FrameBox]] = {}
        for actor in ("pedestrian", "vehicle"):
            for file in source.boxes.get((actor, view, path.stem), ()):
                notes = Notes()
                boxes.setdefault(actor, []).extend(_frame_boxes(file, facts[path], notes))
                problems += [f"{tree.short(file)}: {problem}" for problem in notes.problems]
        clips.append(Clip(path=path, view=view, facts=facts[path], boxes=boxes))
    return clips


def _frame_boxes(path: Path, facts: VideoFacts, notes: Notes) -> Iterator[FrameBox]:
    """The boxes in ``path`` by decoded frame, cut at the frame's edges; those outside are problems."""
    end = (facts.seconds + PAST_END_SECONDS) * facts.fps
    for one in read_boxes(path, notes):
        x, y, width, height = one.box
        right, bottom = x + width, y + height
        wide, high = _OUTSIDE * facts.width, _OUTSIDE * facts.height
        if x < -wide or y < -high or right > facts.width + wide or bottom > facts.height + high:
            notes.add(f"{one.where}.bbox", f"{list(one.box)} is not inside the frame of {facts.width}x{facts.height}")
        elif facts.frame_of(one.image_id) > end:
            notes.add(f"{one.where}.image_id", f"{one.image_id} is past the end ({facts.seconds:.3f} s at {facts.fps:g} fps)")
        else:
            x, y = max(x, 0.0), max(y, 0.0)
            box = (x, y, max(1.0, min(right, facts.width) - x), max(1.0, min(bottom, facts.height) - y))
            yield FrameBox(index=facts.frame_of(one.image_id), box=box, digit=one.digit)


def _median_box(clip: Clip) -> float:
    """Of the pedestrian's boxes in ``clip``, the median area in shares of the frame."""
    areas = [one.box[2] * one.box[3] for one in clip.boxes.get("pedestrian", ())]
    return median(areas) / (clip.facts.width * clip.facts.height) if areas else 0.0


def _main_reference(tree: Tree) -> dict[str, list[str]]:
    """The official main cameras by scenario, from a table of a scenario and one to four video names a line."""
    if tree.main_reference is None:
        return {}
    try:
        with tree.main_reference.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}  # a help in choosing, not something that examples are made from
    return {row[0].strip(): [name.strip() for name in row[1:] if name.strip()] for row in rows if row}
