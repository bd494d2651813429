"""The annotation files of a synthetic dataset, in the official schemas: captions, questions, boxes, the public test package."""

import json
import random
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budgetft.data.synthetic.captions import pedestrian_caption, vehicle_caption
from budgetft.data.synthetic.cast import NORMAL, PACKAGE, external_folder
from budgetft.data.synthetic.spec import Boxes, Cast, Film, SyntheticSpec
from budgetft.data.synthetic.story import Question, environment_questions, phase_questions
from budgetft.data.wts.tree import PHASES

TRUTH = "test_truth"
"""What the real test set keeps to itself, in the shapes of the two submission files."""
_QUESTIONS_A_PHASE = 3


def write_annotations(root: Path, casts: Sequence[Cast], boxes: Mapping[Path, Boxes], spec: SyntheticSpec) -> None:
    """Write every annotation of the synthetic data below ``root``."""
    test = [cast for cast in casts if cast.split == "test"]
    for cast in casts:
        _write_captions(root, cast)
        if cast.split != "test" and not cast.external:
            _write_questions(root, cast, spec)
        # About half of the real test scenarios lack boxes.
        if not cast.external and not (cast.split == "test" and cast.number % 2):
            _write_boxes(root, cast, boxes)
    if test:
        _write_test(root, test, spec)


def _write_captions(root: Path, cast: Cast) -> None:
    for view, films in cast.films.items():
        if not films:
            continue
        phases = [_segment(cast, films[0], phase.digit, captions=cast.split != "test") for phase in cast.story.phases]
        content: dict[str, Any] = {"event_phase": phases[::-1]}  # the official files list them 4 to 0
        if cast.external:
            _write(_external_captions(root, cast), content)
            continue
        if view == "overhead_view":
            content = {"id": cast.number, "overhead_videos": [film.path.name for film in films], **content}
        else:
            content = {"vehicle_view": films[0].path.name, **content}
        _write(_annotations(root, cast, "caption") / view / f"{cast.name}_caption.json", content)


def _external_captions(root: Path, cast: Cast) -> Path:
    folder = external_folder(root, cast.split) / "annotations"
    folder = folder / "caption/test/public_challenge" if cast.split == "test" else folder / cast.split
    return folder / f"{cast.name}_caption.json"


def _annotations(root: Path, cast: Cast, kind: str) -> Path:
    if cast.split == "test":
        base = root / PACKAGE / "annotations" / kind / "test/public_challenge"
    else:
        base = root / "annotations" / kind / cast.split
    return base / NORMAL / cast.name if cast.normal else base / cast.name


def _times(cast: Cast, film: Film, digit: int) -> dict[str, str]:
    phase = next(one for one in cast.story.phases if one.digit == digit)
    end = min(phase.end - film.start, film.seconds)
    return {"start_time": f"{max(0.0, phase.start - film.start):.3f}", "end_time": f"{end:.3f}"}


def _segment(cast: Cast, film: Film, digit: int, *, captions: bool) -> dict[str, Any]:
    texts = {}
    if captions:
        texts = _captions(cast, digit)
    return {"labels": [str(digit)], **texts, **_times(cast, film, digit)}


def _captions(cast: Cast, digit: int) -> dict[str, str]:
    phase = next(one for one in cast.story.phases if one.digit == digit)
    scene = cast.story.at(phase.middle)
    return {"caption_pedestrian": pedestrian_caption(scene), "caption_vehicle": vehicle_caption(scene)}


def _write_questions(root: Path, cast: Cast, spec: SyntheticSpec) -> None:
    rng = random.Random(f"{spec.seed}-questions-{cast.name}")
    folder = _annotations(root, cast, "vqa")
    first = next(film for films in cast.films.values() for film in films)
    for view, films in cast.films.items():
        if not films:
            continue
        phases = _phase_entries(cast, films[0], rng)
        key: dict[str, Any] = {"vehicle_view": films[0].path.name}
        if view == "overhead_view":
            key = {"id": cast.number, "overhead_videos": [film.path.name for film in films]}
        _write(folder / view / f"{cast.name}.json", [{**key, "event_phase": phases}])
    named = "overhead_videos" if cast.films.get("overhead_view") else "vehicle_view"
    names = [first.path.name] if named == "overhead_videos" else first.path.name
    asked = environment_questions(cast.story.scene, rng)
    _write(folder / "environment" / f"{cast.name}.json", [{"id": cast.number, named: names, "environment": asked}])


def _phase_entries(cast: Cast, film: Film, rng: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "labels": [PHASES[phase.digit]],  # words here, digits in the caption files
            **_times(cast, film, phase.digit),
            "conversations": phase_questions(cast.story.at(phase.middle), rng, _QUESTIONS_A_PHASE),
        }
        for phase in reversed(cast.story.phases)
    ]


def _write_boxes(root: Path, cast: Cast, boxes: Mapping[Path, Boxes]) -> None:
    base, split = root / "annotations", Path(cast.split)
    if cast.split == "test":
        base, split = root / "SubTask1-Caption" / f"{PACKAGE}_BBOX" / "annotations", Path("test/public")
    nested = split / NORMAL / cast.name if cast.normal else split / cast.name
    for view, films in cast.films.items():
        for film in films:
            for actor in ("pedestrian", "vehicle"):
                annotated, generated = _box_rows(cast, film, boxes[film.path], actor)
                for kind, rows in (("annotated", annotated), ("generated", generated)):
                    if rows:
                        path = base / f"bbox_{kind}" / actor / nested / view / f"{film.path.stem}_bbox.json"
                        _write(path, {"annotations": rows})


def _box_rows(cast: Cast, film: Film, boxes: Boxes, actor: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The box in the first frame of each phase, and in every fifth frame of each."""
    annotated, generated = [], []
    for phase in cast.story.phases:
        first = min(max(0, round((phase.start - film.start) * film.fps)), film.frames - 1)
        last = min(round((phase.end - film.start) * film.fps), film.frames - 1)
        for frame in range(first, last + 1, 5):
            box = boxes[frame].get(actor)
            if box is None:
                continue
            row = {"image_id": film.image_id(frame), "bbox": list(box), "phase_number": str(phase.digit)}
            if frame == first:
                annotated.append({**row, "auto-generated": False})
            generated.append({**row, "auto-generated": frame != first})
    return annotated, generated


def _write_test(root: Path, casts: Sequence[Cast], spec: SyntheticSpec) -> None:
    entries: list[dict[str, Any]] = []
    answers: list[dict[str, str]] = []
    rng = random.Random(f"{spec.seed}-test-questions")

    def hidden(questions: list[Question]) -> list[Question]:
        rows = []
        for one in questions:
            name = str(uuid.UUID(int=rng.getrandbits(128)))
            answers.append({"id": name, "correct": one["correct"]})
            rows.append({"id": name, **{key: value for key, value in one.items() if key != "correct"}})
        return rows

    for cast in casts:
        videos: list[str] = []
        for films in cast.films.values():
            if not films:
                continue
            videos = [film.path.name for film in films]
            phases = _phase_entries(cast, films[0], rng)
            for phase in phases:
                phase["conversations"] = hidden(phase["conversations"])
            entries.append({"videos": videos, "event_phase": phases})
        # The questions about the surroundings have no phase, only top-level conversations.
        entries.append({"videos": videos, "conversations": hidden(environment_questions(cast.story.scene, rng))})
    _write(root / "SubTask2-VQA" / "WTS_VQA_PUBLIC_TEST.json", entries)
    truth = {
        cast.name: [{"labels": [str(one.digit)], **_captions(cast, one.digit)} for one in reversed(cast.story.phases)]
        for cast in casts
    }
    _write(root / TRUTH / "subtask1_captioning.json", truth)
    _write(root / TRUTH / "subtask2_vqa.json", answers)
    lines = ["scenario,video"]
    for cast in casts:
        overhead = cast.films.get("overhead_view", ())
        if len(overhead) > 1:
            lines.append(f"{cast.name},{overhead[-1].path.name}")
    path = root / "view_used_as_main_reference_for_multiview_scenario.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
