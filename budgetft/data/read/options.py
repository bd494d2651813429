"""How data is converted, and what came of it."""

from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from budgetft.data.examples import BoxScale
from budgetft.data.read.layout_keys import DESCRIBE
from budgetft.value import Value

MOST_FRAMES = 1024


class Options(Value):
    """How data is converted."""

    prompt: str = DESCRIBE
    """What is asked where a row is an image and its caption."""
    frames: int | None = Field(default=None, ge=1, le=MOST_FRAMES)
    """Of each film that does not say its own number."""
    video: bool = False
    """Whether those frames stay a video for the model; else they are images."""
    learn: Literal["all", "last"] = "all"
    """Which answers of a conversation are learned, where its messages do not say."""
    unlabelled: bool = False
    """Rows may lack their answer: they are for prediction."""
    skip_bad: bool = False
    """Leave out rows that cannot be used, and name them."""
    ignore: tuple[str, ...] = ()
    """Keys that mean nothing for training."""
    boxes: BoxScale | None = None
    """What boxes in the texts count in; None leaves them as they are written."""
    split: str | None = None
    config: str | None = None
    image_column: tuple[str, ...] = ()
    video_column: str | None = None
    text_column: str | None = None
    prompt_column: str | None = None
    limit: int | None = Field(default=None, ge=1)
    """Take the first rows alone."""


@dataclass(kw_only=True)
class Report:
    """What came of the rows."""

    rows: int = 0
    left_out: list[str] = field(default_factory=list)
    """``row: why``."""
    notes: list[str] = field(default_factory=list)
    """What the user should know, once each."""
