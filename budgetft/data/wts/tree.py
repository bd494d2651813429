"""Where everything is in the WTS tree: the scenarios of a split, their videos by view, and their annotation files."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from budgetft.errors import UsageError

Split = Literal["train", "val", "test"]
OVERHEAD, VEHICLE, ENVIRONMENT = "overhead_view", "vehicle_view", "environment"
VIEWS = (OVERHEAD, VEHICLE)
ACTORS = ("pedestrian", "vehicle")
PHASES = ("prerecognition", "recognition", "judgement", "action", "avoidance")
PACKAGE = "WTS_DATASET_PUBLIC_TEST"
TEST_QUESTIONS = "WTS_VQA_PUBLIC_TEST.json"
MAIN_REFERENCE = "view_used_as_main_reference_for_multiview_scenario.csv"
EXTERNAL_VIDEO = re.compile(r"video\d+\.mp4")
_NORMAL = "normal_trimmed"
_EXTERNAL = Path("external/BDD_PC_5K")
_CAPTION = "_caption.json"


@dataclass(kw_only=True)
class Source:
    """One scenario: its files. BDD_PC_5K videos count as scenarios of one vehicle view, and are ``external``."""

    name: str
    external: bool = False
    videos: dict[str, list[Path]] = field(default_factory=dict)
    """By view, sorted by name."""
    captions: dict[str, Path] = field(default_factory=dict)
    """By view."""
    questions: dict[str, Path] = field(default_factory=dict)
    """By view, or ``environment``."""
    boxes: dict[tuple[str, str, str], list[Path]] = field(default_factory=dict)
    """By actor, view and stem of the video; annotated files before generated ones."""

    def view_of(self, video: str) -> str | None:
        """The view that has a video file called ``video``."""
        return next((view for view, paths in self.videos.items() if any(path.name == video for path in paths)), None)


@dataclass(frozen=True, kw_only=True)
class Tree:
    """A split of the data."""

    root: Path
    split: Split
    sources: tuple[Source, ...]
    test_questions: Path | None
    main_reference: Path | None
    problems: tuple[str, ...]
    """Found while looking, one line each."""

    def short(self, path: Path) -> str:
        """``path`` as it is named in messages: from the root on."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)


def find_tree(root: Path, split: Split, *, external: bool = True) -> Tree:
    """The scenarios of ``split`` below ``root``: a folder that holds ``videos`` and ``annotations``, or has them in
    ``data`` (SynWTS); for the test split one that holds ``WTS_DATASET_PUBLIC_TEST``, or that folder.

    Raises ``UsageError`` when there is nothing of the kind.
    """
    if not root.is_dir():
        raise UsageError(f"the WTS folder {root} does not exist")
    bases = _test_folders(root) if split == "test" else _folders(root, split)
    sources: dict[str, Source] = {}
    problems: list[str] = []
    for base in bases["videos"]:
        for name, folder in _scenarios(base, problems):
            _source(sources, name).videos = {view: _films(folder / view) for view in VIEWS if (folder / view).is_dir()}
    for kind in ("captions", "questions"):
        for base in bases[kind]:
            for name, folder in _scenarios(base, problems):
                getattr(_source(sources, name), kind).update(_files(folder, kind))
    for source in sources.values():
        _find_boxes(source, bases["annotated"], bases["generated"])
    if external:
        for base in bases["external"]:
            _find_external(base, split, sources, bases["external_boxes"])
    if not sources:
        raise UsageError(
            f"{root} holds no {split} data: no scenario in {bases['videos'][0]} or {bases['captions'][0]}",
            hint="name the folder that holds videos and annotations (for test: WTS_DATASET_PUBLIC_TEST)",
        )
    found = {name: next(iter(sorted(root.rglob(name))), None) for name in (TEST_QUESTIONS, MAIN_REFERENCE)}
    return Tree(
        root=root,
        split=split,
        sources=tuple(sources[name] for name in sorted(sources)),
        test_questions=found[TEST_QUESTIONS] if split == "test" else None,
        main_reference=found[MAIN_REFERENCE],
        problems=tuple(problems),
    )


def _folders(root: Path, split: str) -> dict[str, list[Path]]:
    base = root if (root / "videos").is_dir() or (root / "annotations").is_dir() else root / "data"
    notes = base / "annotations"
    return {
        "videos": [base / "videos" / split],
        "captions": [notes / "caption" / split],
        "questions": [notes / "vqa" / split],
        # In box folders the actor comes before the split.
        "annotated": [notes / "bbox_annotated" / "{actor}" / split],
        "generated": [notes / "bbox_generated" / "{actor}" / split],
        "external": [base / _EXTERNAL],
        "external_boxes": [base / _EXTERNAL / f"annotations/bbox_{kind}" / "{actor}" / split for kind in _KINDS],
    }


_KINDS = ("annotated", "generated")


def _test_folders(root: Path) -> dict[str, list[Path]]:
    package = root / PACKAGE if (root / PACKAGE).is_dir() else root
    around = root if package != root else root.parent
    boxes = [package, *sorted(around.glob(f"SubTask1-Caption/{PACKAGE}_BBOX")), *sorted(around.glob(f"{PACKAGE}_BBOX"))]
    public = Path("test/public")
    return {
        "videos": [package / "videos" / public],
        "captions": [package / "annotations/caption/test/public_challenge"],
        "questions": [],
        "annotated": [base / "annotations/bbox_annotated" / "{actor}" / public for base in boxes],
        "generated": [base / "annotations/bbox_generated" / "{actor}" / public for base in boxes],
        "external": [package / _EXTERNAL],
        "external_boxes": [
            base / _EXTERNAL / f"annotations/bbox_{kind}" / "{actor}" / public for kind in _KINDS for base in boxes
        ],
    }


def _source(sources: dict[str, Source], name: str, *, external: bool = False) -> Source:
    return sources.setdefault(name, Source(name=name, external=external))


def _scenarios(base: Path, problems: list[str]) -> Iterator[tuple[str, Path]]:
    """Scenario folders; those in ``normal_trimmed`` are scenarios too, and it is none."""
    if not base.is_dir():
        return
    seen: dict[str, Path] = {}
    folders = [path for path in sorted(base.iterdir()) if path.is_dir() and path.name != _NORMAL]
    if (base / _NORMAL).is_dir():
        folders += [path for path in sorted((base / _NORMAL).iterdir()) if path.is_dir()]
    for folder in folders:
        if folder.name in seen:
            problems.append(f"{folder}: a scenario of this name is also in {seen[folder.name]}")
            continue
        seen[folder.name] = folder
        yield folder.name, folder


def _films(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".mp4" and not path.name.startswith("."))


def _files(folder: Path, kind: str) -> dict[str, Path]:
    ending, names = (_CAPTION, VIEWS) if kind == "captions" else (".json", (*VIEWS, ENVIRONMENT))
    return {name: path for name in names if (path := next(iter(sorted((folder / name).glob(f"*{ending}"))), None)) is not None}


def _find_boxes(source: Source, annotated: list[Path], generated: list[Path]) -> None:
    for actor in ACTORS:
        for base in (*annotated, *generated):
            folder = Path(str(base).format(actor=actor))
            for home in (folder / source.name, folder / _NORMAL / source.name):
                for view in VIEWS:
                    for path in sorted((home / view).glob("*_bbox.json")) if (home / view).is_dir() else ():
                        key = (actor, view, path.name.removesuffix("_bbox.json"))
                        source.boxes.setdefault(key, []).append(path)


def _find_external(base: Path, split: str, sources: dict[str, Source], boxes: list[Path]) -> None:
    """BDD_PC_5K: one video and one caption file a scenario, in flat folders; the name is that of the files."""
    videos = base / "videos" / ("test/public" if split == "test" else split)
    for path in _films(videos) if videos.is_dir() else ():
        _source(sources, path.stem, external=True).videos = {VEHICLE: [path]}
    notes = base / "annotations"
    for path in sorted(notes.rglob("video*.json")) if notes.is_dir() else ():
        inside = path.relative_to(notes).parts
        if split not in inside or inside[0].startswith("bbox_"):
            continue
        # removesuffix: strip() takes a set of characters, and would eat the end of a name.
        if path.name.endswith(_CAPTION):
            _source(sources, path.name.removesuffix(_CAPTION), external=True).captions[VEHICLE] = path
        elif "vqa" in inside:
            _source(sources, path.stem, external=True).questions[VEHICLE] = path
    for template in boxes:
        for actor in ACTORS:
            folder = Path(str(template).format(actor=actor))
            for path in sorted(folder.glob("video*_bbox.json")) if folder.is_dir() else ():
                name = path.name.removesuffix("_bbox.json")
                if name in sources:
                    sources[name].boxes.setdefault((actor, VEHICLE, name), []).append(path)
