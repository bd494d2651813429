"""The WTS data (or its synthetic data) as a dataset of examples: read everything, say everything that is wrong, take the
frames.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from budgetft.data.examples import Example, check_target, write_dataset
from budgetft.data.media.shots import Harvest, Shot, take_shots
from budgetft.data.media.video import VideoFacts, load_av, probe
from budgetft.data.problems import problem_report, write_left_out
from budgetft.data.wts.reformat import Draft, Format, drafts_of
from budgetft.data.wts.rows import Choice, Found, find_rows
from budgetft.data.wts.tree import OVERHEAD, VEHICLE, VIEWS, Split, Tree, find_tree
from budgetft.errors import UsageError
from budgetft.value import Value

_VIEWS = {"overhead": (OVERHEAD,), "vehicle": (VEHICLE,), "both": VIEWS}
_SKIP_HINT = "mend the files, or leave these out with --skip-bad"


class Request(Value):
    """What to convert, and to what."""

    split: Split
    form: Format = Field(default_factory=Format)
    view: Literal["overhead", "vehicle", "both"] = "both"
    """A scenario that has only another view is shown by that."""
    cameras: Literal["main", "all"] = "main"
    """Of the overhead cameras: the official main one, else the one with the largest pedestrian, else the first."""
    tasks: Literal["captions", "questions", "both"] = "both"
    external: bool = True
    """Also BDD_PC_5K."""
    max_side: int | None = Field(default=None, ge=64)
    """Pictures are shrunk to at most this many pixels a side."""
    holdout: float | None = Field(default=None, gt=0.0, lt=1.0)
    """This share of the scenarios goes to a second dataset."""
    seed: int = Field(default=0, ge=0)
    """Of the choice of these scenarios."""
    skip_bad: bool = False


@dataclass(kw_only=True)
class Report:
    """What was done."""

    examples: dict[str, int] = field(default_factory=dict)
    """By dataset folder."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    scenarios: int = 0
    videos: int = 0
    videos_kept: int = 0
    """Whose pictures an earlier, interrupted run had made."""
    frames_decoded: int = 0
    decode_seconds: float = 0.0
    """Decoding, compressing and writing pictures."""
    absent_views: int = 0
    skipped: list[str] = field(default_factory=list)
    """What was bad and left out, one line each."""


def convert_wts(
    root: Path,
    out: Path,
    request: Request,
    *,
    overwrite: bool = False,
    workers: int | None = None,
    on_start: Callable[[int], None] = lambda videos: None,
    on_video: Callable[[], None] = lambda: None,
) -> Report:
    """Write the dataset ``out`` of the split of ``root``; with ``holdout`` also ``<out>-holdout``, of other scenarios.

    Pictures are kept in a hidden folder beside ``out`` until the dataset is whole: after an interrupt, or a refusal, a rerun
    goes on from them. Raises one ``UsageError`` for everything that is bad, before a frame is decoded; then one for all
    videos that break off. With ``skip_bad`` both are left out and told in the report.
    """
    load_av()
    targets = [out] if request.holdout is None else [out, out.with_name(f"{out.name}-holdout")]
    for target in targets:
        check_target(target, overwrite)
    tree = find_tree(root, request.split, external=request.external)
    facts, unreadable = _probe_all(tree, workers)
    found = find_rows(tree, _choice(request), facts)
    skipped = _refuse_or_skip(str(root), [*unreadable, *found.problems], request)
    drafts = [draft for row, clips in found.rows for draft in drafts_of(row, clips, request.form)]
    if not drafts:
        raise UsageError(f"{root}: nothing to convert in the {request.split} split with these choices")
    work = out.parent / f".{out.name}.frames"
    started = time.perf_counter()
    harvest = _take(drafts, work, request, workers, on_start, on_video)
    seconds = time.perf_counter() - started
    skipped += _refuse_or_skip(str(root), [_named(tree, path, why) for path, why in harvest.bad.items()], request)
    report = Report(
        scenarios=len({draft.fields["scenario"] for draft in drafts}),
        videos=harvest.videos,
        videos_kept=harvest.kept,
        frames_decoded=harvest.frames,
        decode_seconds=round(seconds, 3),
        absent_views=found.absent_views,
        skipped=skipped,
    )
    for target, part in zip(targets, _parts(drafts, found, request), strict=True):
        written = write_dataset(
            _examples(part, harvest),
            target,
            images_root=work / "frames",
            overwrite=overwrite,
            answered=request.split != "test",
            own_images=True,
        )
        report.examples[str(target)] = len(written)
        report.fingerprints[str(target)] = written.fingerprint
        write_left_out(target, skipped)
    shutil.rmtree(work, ignore_errors=True)
    return report


def split_scenarios(names: Iterable[str], share: float, seed: int) -> tuple[set[str], set[str]]:
    """``names`` in two: those to learn from, and ``share`` of them (one at least) to hold out.

    Raises ``UsageError`` when there are fewer than two.
    """
    ordered = sorted(set(names))
    if len(ordered) < 2:
        raise UsageError(f"cannot hold out scenarios: there is only {len(ordered)}")
    random.Random(seed).shuffle(ordered)
    count = min(max(1, round(len(ordered) * share)), len(ordered) - 1)
    return set(ordered[count:]), set(ordered[:count])


def _choice(request: Request) -> Choice:
    return Choice(
        views=_VIEWS[request.view],
        all_cameras=request.cameras == "all",
        captions=request.tasks != "questions",
        questions=request.tasks != "captions",
        external=request.external,
    )


def _parts(drafts: list[Draft], found: Found, request: Request) -> list[list[Draft]]:
    """The drafts of each dataset: whole scenarios, whatever a row was expanded into."""
    if request.holdout is None:
        return [drafts]
    learned, _ = split_scenarios((row.scenario for row, clips in found.rows if clips), request.holdout, request.seed)
    return [[draft for draft in drafts if (draft.fields["scenario"] in learned) is first] for first in (True, False)]


def _probe_all(tree: Tree, workers: int | None) -> tuple[dict[Path, VideoFacts], list[str]]:
    videos = [path for source in tree.sources for paths in source.videos.values() for path in paths]

    def facts_of(path: Path) -> VideoFacts | UsageError:
        try:
            return probe(path)
        except UsageError as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        answers = list(pool.map(facts_of, videos))
    facts = {path: answer for path, answer in zip(videos, answers, strict=True) if isinstance(answer, VideoFacts)}
    bad = [
        _named(tree, path, answer.message)
        for path, answer in zip(videos, answers, strict=True)
        if isinstance(answer, UsageError)
    ]
    return facts, bad


def _named(tree: Tree, path: Path, why: str) -> str:
    """A line about a video that starts with its name, as those about other files do."""
    return f"{tree.short(path)}: {why.replace(str(path), path.name)}"


def _refuse_or_skip(root: str, problems: Sequence[str], request: Request) -> list[str]:
    if problems and not request.skip_bad:
        raise problem_report(root, problems, hint=_SKIP_HINT)
    return list(problems)


def _take(
    drafts: list[Draft],
    work: Path,
    request: Request,
    workers: int | None,
    on_start: Callable[[int], None],
    on_video: Callable[[], None],
) -> Harvest:
    by_video: dict[Path, dict[str, Shot]] = {}
    for draft in drafts:
        for shot in draft.shots:
            by_video.setdefault(shot.video, {})[shot.key] = shot
    on_start(len(by_video))
    wanted = {video: list(shots.values()) for video, shots in by_video.items()}
    return take_shots(wanted, work, workers=workers, max_side=request.max_side, on_video=on_video)


def _examples(drafts: list[Draft], harvest: Harvest) -> list[Example]:
    """The examples whose pictures were taken; of those that lost some of their row, the others weigh more."""
    whole = [draft for draft in drafts if all((shot.video, shot.key) in harvest.taken for shot in draft.shots)]
    rows: dict[str, int] = {}
    for draft in whole:
        rows[draft.fields["source_id"]] = rows.get(draft.fields["source_id"], 0) + 1
    examples = []
    for draft in whole:
        taken = [harvest.taken[shot.video, shot.key] for shot in draft.shots]
        fields = {
            **draft.fields,
            "weight": 1.0 / rows[draft.fields["source_id"]],
            "images": tuple(one.file for one in taken),
            "time_seconds": taken[0].seconds,
        }
        examples.append(Example.make(**fields))
    return examples
