"""Which scenarios a synthetic dataset has, which cameras look at them, and what their files are called."""

import random
from pathlib import Path

from budgetft.data.synthetic.drawing import Camera, style_named
from budgetft.data.synthetic.scenes import View
from budgetft.data.synthetic.spec import SPLITS, Cast, Film, Split, SyntheticSpec, split_of
from budgetft.data.synthetic.story import Story, tell_story

PACKAGE = "WTS_DATASET_PUBLIC_TEST"
EXTERNAL = Path("external/BDD_PC_5K")
NORMAL = "normal_trimmed"
_SIZES = ((320, 180), (320, 180), (640, 360))
_FPS = (10, 15, 30)


def cast_synthetic(root: Path, spec: SyntheticSpec) -> list[Cast]:
    """Every scenario of the synthetic data of ``spec``, with the paths of its films below ``root``."""
    splits = split_of(spec)
    casts = []
    for number, split in enumerate(splits):
        share = None
        if spec.videos is not None:
            share = spec.videos // spec.scenarios + (number < spec.videos % spec.scenarios)
        casts.append(_scenario(root, spec, number, number - splits.index(split), split, share))
    if spec.external:
        for split in SPLITS:
            count = splits.count(split)
            casts += [_external(root, spec, split, number) for number in range((count + 3) // 4)]
    return casts


def folder_of(cast: Cast, root: Path) -> Path:
    """Where the videos of a scenario's views are."""
    base = root / PACKAGE / "videos/test/public" if cast.split == "test" else root / "videos" / cast.split
    return base / NORMAL / cast.name if cast.normal else base / cast.name


def external_folder(root: Path, split: Split) -> Path:
    """The folder of BDD_PC_5K that belongs to ``split``."""
    return root / PACKAGE / EXTERNAL if split == "test" else root / EXTERNAL


def _scenario(root: Path, spec: SyntheticSpec, number: int, place: int, split: Split, videos: int | None) -> Cast:
    rng = random.Random(f"{spec.seed}-scenario-{number}")
    normal = place % 4 == 2
    name = f"20230707_{number}_SY{number % 40}_T{1 + number % 3}"
    if normal:
        name = f"20231013_{100000 + number}_normal_192.0.2.{10 + number % 9}_1_event_{number % 5}"
    seconds = spec.seconds * (1.0 if spec.videos is not None else rng.uniform(0.8, 1.2))
    story = tell_story(rng, name, seconds)
    shell = Cast(name=name, split=split, number=place, story=story, films={}, normal=normal, external=False)
    folder = folder_of(shell, root)
    fps = spec.fps or (60 if place % 6 == 1 else rng.choice(_FPS))
    size = spec.size or rng.choice(_SIZES)
    # A normal scenario has one view; of the others some have no vehicle view.
    has_vehicle = place % 8 != 4 and not normal if videos is None else videos > 1
    overhead = (rng.choice((1, 2, 3)) if not normal else 1) if videos is None else videos - has_vehicle
    films = {
        "overhead_view": tuple(
            _film(folder, _overhead_name(name, place, camera, normal), "overhead_view", story, spec, fps, size, camera)
            for camera in range(overhead)
        )
    }
    if has_vehicle:
        films["vehicle_view"] = (_film(folder, f"{name}_vehicle_view.mp4", "vehicle_view", story, spec, fps, size, 0),)
    return Cast(name=name, split=split, number=place, story=story, films=films, normal=normal, external=False)


def _external(root: Path, spec: SyntheticSpec, split: Split, number: int) -> Cast:
    name = f"video{1000 * (1 + SPLITS.index(split)) + number}"
    rng = random.Random(f"{spec.seed}-{name}")
    story = tell_story(rng, name, spec.seconds)
    size = spec.size or _SIZES[0]
    parts = ("videos/test/public",) if split == "test" else ("videos", split)
    folder = external_folder(root, split).joinpath(*parts)
    film = _film(folder, f"{name}.mp4", "vehicle_view", story, spec, spec.fps or 10, size, 0, nested=False)
    return Cast(
        name=name, split=split, number=number, story=story, films={"vehicle_view": (film,)}, normal=False, external=True
    )


def _overhead_name(scenario: str, place: int, camera: int, normal: bool) -> str:
    if normal and camera == 0:
        return f"{scenario}.mp4"
    if place % 3 == 0:
        return f"{scenario}_Camera{1 + camera}_{camera}.mp4"
    return f"{scenario}_192.0.2.{20 + camera}_{1 + camera}.mp4"


def _film(
    folder: Path, name: str, view: View, story: Story, spec: SyntheticSpec, fps: int, size: tuple[int, int], camera: int,
    *, nested: bool = True,
) -> Film:  # fmt: skip
    seed = f"{spec.seed}-{spec.style}-{name}"
    rng = random.Random(seed)
    shift = style_named(spec.style).horizon_shift
    if view == "overhead_view":
        lens = Camera(
            view=view,
            size=size,
            horizon=round(0.16 + 0.04 * (camera % 3) + shift, 3),
            reach_m=30.0,
            pan=round(rng.uniform(-0.08, 0.08), 3),
        )
        start, seconds = 0.0, story.seconds
    else:  # the vehicle's own recording starts later and ends earlier: its times differ
        lens = Camera(view=view, size=size, horizon=0.42 + shift)
        start = round(0.04 * story.seconds, 3)
        seconds = story.seconds * 0.93 if nested else story.seconds - start
    return Film(
        path=folder / view / name if nested else folder / name,
        camera=lens,
        story=story,
        fps=fps,
        start=start,
        seconds=seconds,
        anchor_m=30.0 if camera % 2 == 0 else 24.0,
        style=spec.style,
        seed=seed,
    )
