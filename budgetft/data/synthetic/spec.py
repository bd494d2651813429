"""What a synthetic dataset is made of: its spec, the films to render and the scenarios that they are of."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, field_validator

from budgetft.data.synthetic.drawing import STYLES, Box, Camera
from budgetft.data.synthetic.story import Story
from budgetft.data.wts.tree import Split
from budgetft.value import Value

SPLITS: tuple[Split, ...] = ("train", "val", "test")


class SyntheticSpec(Value):
    """Everything that a synthetic dataset depends on: equal specs give equal bytes (on equal versions of Pillow and FFmpeg)."""

    scenarios: int = Field(ge=1)
    seed: int = 0
    style: str = "day"
    fractions: tuple[float, float, float] = (0.6, 0.2, 0.2)
    """Of the scenarios, to train, val and test."""
    videos: int | None = None
    """In all, BDD's left out; None for two to four a scenario."""
    seconds: float = Field(default=4.0, ge=1.0, le=600.0)
    fps: int | None = Field(default=None, ge=1, le=120)
    """None for 10, 15, 30, and 60 in every sixth scenario."""
    size: tuple[int, int] | None = None
    """Width and height in pixels, even; None for 320x180 and some 640x360."""
    external: bool = True
    """Also make videos in the place of BDD_PC_5K."""

    @field_validator("style")
    @classmethod
    def _known_style(cls, style: str) -> str:
        if style not in STYLES:
            raise ValueError(f"must be one of {', '.join(STYLES)}")
        return style

    @field_validator("fractions")
    @classmethod
    def _fractions_of_one(cls, fractions: tuple[float, float, float]) -> tuple[float, float, float]:
        if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
            raise ValueError("must be three shares, train, val and test, that add up to 1")
        return fractions

    @field_validator("size")
    @classmethod
    def _even_size(cls, size: tuple[int, int] | None) -> tuple[int, int] | None:
        if size is not None and (min(size) < 32 or size[0] % 2 or size[1] % 2):
            raise ValueError("must be two even numbers of at least 32")
        return size


@dataclass(frozen=True, kw_only=True)
class Film:
    """One video to render."""

    path: Path
    camera: Camera
    story: Story
    fps: int
    start: float
    """Where it starts in the story, in seconds."""
    seconds: float
    anchor_m: float
    style: str
    seed: str

    @property
    def frames(self) -> int:
        """How many it has."""
        return max(1, round(self.seconds * self.fps))

    def image_id(self, frame: int) -> int:
        """What a box file calls ``frame``: the official extractor writes frames of 60 fps twice."""
        return 2 * frame if 59 < self.fps < 61 else frame


Boxes = dict[int, dict[str, Box]]
"""The box of each actor seen, by frame."""


@dataclass(frozen=True, kw_only=True)
class Cast:
    """One scenario of a synthetic dataset: its story and its films by view."""

    name: str
    split: Split
    number: int
    """Among the scenarios of its split."""
    story: Story
    films: dict[str, tuple[Film, ...]]
    normal: bool
    external: bool


def split_of(spec: SyntheticSpec) -> list[Split]:
    """The split of each scenario, in order; each share that is not 0 gets a scenario when there are enough."""
    counts = [int(spec.scenarios * share) for share in spec.fractions]
    order = sorted(range(3), key=lambda i: counts[i] - spec.scenarios * spec.fractions[i])
    for place in range(spec.scenarios - sum(counts)):
        counts[order[place % 3]] += 1
    for place, share in enumerate(spec.fractions):
        most = counts.index(max(counts))
        if share > 0 and not counts[place] and counts[most] > 1:
            counts[place], counts[most] = 1, counts[most] - 1
    return [split for split, count in zip(SPLITS, counts, strict=True) for _ in range(count)]
