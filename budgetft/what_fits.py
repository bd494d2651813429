"""What runs on a GPU: every model and method with its peak memory, time and largest picture, as values."""

from typing import Any, Literal

from pydantic import Field, field_validator

from budgetft.asked import LABEL_TOKENS, TEXT_TOKENS
from budgetft.duration import MOST_EXAMPLES, RunTime
from budgetft.knobs import Knobs
from budgetft.outcome import Evidence
from budgetft.units import GIB, parse_size
from budgetft.value import Value

Method = Literal["LoRA", "QLoRA"]
"""LoRA: on a base in 16 bits. QLoRA: on a base in four (NF4)."""
METHODS: tuple[Method, ...] = ("LoRA", "QLoRA")
PICTURES = ((448, 448), (896, 896), (1344, 1344))
"""Sizes that are asked for where none is named."""
MOST_PICTURES = 12


class FitAsked(Value):
    """What is to fit: one example of one picture, and a run over many of them."""

    images: tuple[tuple[int, int], ...] = Field(default=PICTURES, min_length=1, max_length=MOST_PICTURES)
    """(width, height) of pictures in pixels, before a model's processor; each makes a column."""
    text_tokens: int = Field(default=TEXT_TOKENS, ge=2)
    label_tokens: int = Field(default=LABEL_TOKENS, ge=1)
    """Of the text, those of the answer."""
    rank: int = Field(default=16, ge=1, le=1024)
    effective_batch: int = Field(default=32, ge=1)
    examples: int = Field(default=2000, ge=1, le=MOST_EXAMPLES)
    """In one epoch."""
    epochs: int = Field(default=3, ge=1)

    @field_validator("images", mode="before")
    @classmethod
    def _as_sizes(cls, images: Any) -> Any:
        """Lists are taken too, and ``WxH`` as the command line has it."""
        if not isinstance(images, list | tuple):
            return images
        return tuple(
            parse_size(each) if isinstance(each, str) else tuple(each) if isinstance(each, list) else each for each in images
        )


class FitCell(Value):
    """One model by one method on one GPU with pictures of one size, at the fastest settings that fit."""

    image: tuple[int, int]
    """(width, height) in pixels as the model sees it."""
    fits: bool
    """Whether the peak stays inside the budget, the prediction's uncertainty left as a margin."""
    peak_bytes: int
    """Most GPU memory of the whole process, as nvidia-smi shows it; where nothing fits, the least that is possible."""
    examples_per_second: float | None = None
    """None where nothing fits, or the GPU's speed is not known."""
    speed_low: float | None = None
    """With ``speed_high``, the range that holds the true speed with 80 %."""
    speed_high: float | None = None
    time: RunTime | None = None
    knobs: Knobs
    """The settings that this is of."""

    @property
    def peak_gib(self) -> float:
        return self.peak_bytes / GIB


class FitRow(Value):
    """One model by one method on one GPU."""

    model: str
    parameters: int | None
    gpu: str
    memory_bytes: int
    budget_bytes: int
    method: Method
    cells: tuple[FitCell, ...]
    """As many as pictures were asked for, in that order."""
    largest: FitCell | None
    """The largest square picture that fits; None where not even the smallest does, and where it is not looked for: in other
    families than Qwen-VL."""
    largest_of_model: bool
    """Whether the model itself takes no larger pictures."""
    calibrated: bool
    """Whether context and speed of this GPU were measured."""


class FitTable(Value):
    """The answer to "what can I run?": all of it predicted, nothing was run."""

    asked: FitAsked
    rows: tuple[FitRow, ...]
    evidence: Evidence = "predicted"

    @property
    def gpus(self) -> tuple[str, ...]:
        """In the order of the rows."""
        return tuple(dict.fromkeys(row.gpu for row in self.rows))

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(row.model for row in self.rows))

    def row(self, model: str, method: Method = "LoRA", gpu: str | None = None) -> FitRow:
        """The row of ``model``; ``gpu`` may be left out where there is only one. Raises ``KeyError`` where there is none."""
        for row in self.rows:
            if (row.model, row.method) == (model, method) and gpu in (None, row.gpu):
                return row
        raise KeyError(f"{model} by {method} on {gpu or 'any GPU'}")

    def to_dict(self) -> dict[str, Any]:
        """As ``budgetft fit --json`` has it."""
        return self.model_dump(mode="json")


UNITS = (("m", 60.0), ("h", 3600.0), ("d", 86400.0), ("y", 365.0 * 86400))
LONGEST = 1000
"""Years: beyond that nobody waits."""


def span_text(time: RunTime | None) -> str:
    """The range of a time in a few letters: ``43-69m``, ``2.2-3.7h``, ``4.1-7.0d``; ``-`` where it is not known."""
    if time is None:
        return "-"
    low, high = time.low_seconds or time.seconds, time.high_seconds or time.seconds
    unit, size = next((each for each in UNITS if high < 100 * each[1]), UNITS[-1])
    if high >= LONGEST * UNITS[-1][1]:
        return f">{LONGEST}y"
    if high < UNITS[0][1]:
        return "<1m"
    shown = [f"{end / size:.1f}" if end < 9.95 * size and unit != "m" else f"{end / size:.0f}" for end in (low, high)]
    return f"{shown[0]}{unit}" if shown[0] == shown[1] else f"{shown[0]}-{shown[1]}{unit}"


def number_text(value: float) -> str:
    """Two digits of a speed."""
    digits = next((digits for least, digits in ((10, 0), (1, 1), (0.1, 2)) if value >= least), None)
    return f"{value:.2g}" if digits is None else f"{value:,.{digits}f}"


def shrunk_text(table: "FitTable") -> list[str]:
    """Of each picture that models shrink, a line that says to what."""
    lines = []
    for place, (width, height) in enumerate(table.asked.images):
        seen = {row.cells[place].image for row in table.rows}
        smaller = sorted({size for size in seen if size[0] * size[1] < 0.8 * width * height})
        if smaller:
            told = " or ".join("x".join(map(str, size)) for size in smaller)
            lines.append(f"pictures of {width}x{height} are shrunk to {told}, the most that the models take")
    return lines
