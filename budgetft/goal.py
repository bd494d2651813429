"""A goal: the largest contract whose run ends in time, and what else would be possible."""

import math
from collections.abc import Sequence

from pydantic import Field

from budgetft.contract import Contract
from budgetft.duration import HOUR, RunTime, between_text, duration_text
from budgetft.errors import UsageError, nearest
from budgetft.outcome import KNOWN_FACTOR, Evidence
from budgetft.value import Value

AXES = {"pixels": "max_pixels", "rank": "rank", "frames": "frames_per_example"}
"""What a goal may trade, by the short name that ``--prefer`` takes, in the order in which it is preferred when nothing is said:
the field of the contract, or of the data."""
NAMES = {field: name for name, field in AXES.items()}
TITLES = {"max_pixels": "max pixels", "rank": "rank", "frames_per_example": "frames"}
MOST_ROWS = 24
"""Contracts that a goal lists."""
NEXT_TO_END = 1.1
"""A step that is nearer to the end of its range than by this factor is left out."""

Values = tuple[int, ...]
"""One value of each axis, in the order of preference."""


class GoalRow(Value):
    """One contract that was looked at: what a run of it takes."""

    values: dict[str, int]
    """By field."""
    seconds: float | None
    """Of the whole run, what is computed once included; None where no example fits the contract."""
    low_seconds: float | None = None
    """With ``high_seconds``, the range that holds the true time with 80 %; None: measured."""
    high_seconds: float | None = None
    process_peak_bytes: int | None
    fits: bool
    """In memory. Where it does not, seconds and bytes are those of the setting that needs least memory."""
    in_time: bool
    evidence: Evidence
    problem: str = Field(default="", exclude_if=lambda problem: not problem)
    """Why no run of it is possible at all, in words."""

    @property
    def possible(self) -> bool:
        return self.fits and self.in_time

    @property
    def verdict(self) -> str:
        """``in time``, or what stands against it."""
        if self.problem:
            return self.problem
        return "too much memory" if not self.fits else "in time" if self.in_time else "too long"

    def time_text(self) -> str:
        """``8 h 40 min (6 to 13 h)``; ``-`` where there is no run."""
        if self.seconds is None or not self.fits:
            return "-"
        low, high = self.low_seconds, self.high_seconds
        if low is None or high is None or high / low < KNOWN_FACTOR:
            return duration_text(self.seconds)
        between = between_text(low, high)
        return f"{duration_text(self.seconds)} ({between})" if between else duration_text(self.seconds)


class Goal(Value):
    """What was asked and what was chosen. The plan that has it is of the chosen contract."""

    hours: float = Field(gt=0)
    prefer: tuple[str, ...]
    """Fields that were given as ranges, the preferred first; none: only the time was asked for."""
    sure: bool = False
    """The slow end of the predicted time had to be in time too, not only its middle."""
    run: RunTime
    """Of the chosen contract: its training steps."""
    one_time_seconds: float = Field(default=0.0, ge=0)
    """Of the feature cache, where the plan has one."""
    values: dict[str, int] = Field(default_factory=dict)
    """Chosen, by field."""
    data_frames: int | None = Field(default=None, exclude_if=lambda frames: frames is None)
    """Frames of the examples as they are, where others were chosen: such data is still to be made."""
    rows: tuple[GoalRow, ...] = ()
    """The chosen contract first; then those that are possible and of which no other is as large in all, then larger ones that
    are not possible; all in the order of preference."""
    left_out: int = 0
    """Possible contracts for which the list had no room."""
    probes: int = 0
    """Made to choose the contract, beside those of the plan."""
    speed_factor: float = Field(default=1.0, gt=0)
    """By which the times of what was not probed were corrected, as the probes taught."""

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.run.seconds + self.one_time_seconds

    @property
    def late_at_its_slow_end(self) -> bool:
        """Whether the chosen run may well take longer than asked."""
        high = self.run.high_seconds
        return high is not None and high + self.one_time_seconds > self.hours * HOUR

    def is_chosen(self, row: GoalRow) -> bool:
        return row.values == self.values


def pixel_steps(low: int, high: int, pixel_step: int) -> list[int]:
    """Values above ``low`` up to ``high`` in steps of about the square root of two.

    Each but the last is a square whose side is a multiple of ``pixel_step``, as images of the model are: 200,704 (448 x 448),
    283,024 (532 x 532), 414,736 (644 x 644), ...
    """
    found: list[int] = []
    for number in range(1, 1 + max(0, math.ceil(2 * math.log2(max(1, high / low))))):
        side = round(math.sqrt(low * 2 ** (number / 2)) / pixel_step) * pixel_step
        if max([low, *found]) < side**2 and side**2 * NEXT_TO_END < high:
            found.append(side**2)
    return [*found, high] if high > low else []


def preferred(text: str | Sequence[str] | None, ranged: Sequence[str]) -> tuple[str, ...]:
    """The fields of ``ranged`` in the order of ``text`` (short names, with commas); those that it leaves out follow.

    Raises ``UsageError`` for a name that is none, twice there, or of what was given no range.
    """
    given = [name for name in AXES if AXES[name] in ranged]
    words = [] if text is None else text.split(",") if isinstance(text, str) else list(text)
    names = [NAMES.get(word.strip().replace("-", "_"), word.strip()) for word in words]
    offered = f"those with a range are {', '.join(given)}" if given else "nothing was given as a range"
    for name in names:
        if name not in AXES:
            near = nearest(name, AXES)
            raise UsageError(
                f"--prefer {name!r} is none of {', '.join(AXES)}", hint=f"did you mean {near!r}?" if near else offered
            )
        if name not in given:
            field = AXES[name].replace("_", "-")
            raise UsageError(f"--prefer {name}: it was given no range; {offered}", hint=f"give --{field} LOW..HIGH")
        if names.count(name) > 1:
            raise UsageError(f"--prefer names {name} twice")
    return tuple(AXES[name] for name in dict.fromkeys([*names, *given]))


def contract_with(contract: Contract, values: dict[str, int]) -> Contract:
    """``contract`` at ``values``; alpha stays twice the rank where it is that. Frames are the data's."""
    changes = {name: value for name, value in values.items() if name != "frames_per_example"}
    if "rank" in changes and contract.alpha == 2 * contract.rank:
        changes["alpha"] = 2 * changes["rank"]
    return Contract.make(**{**dict(contract), **changes})


def time_asked(goal: Goal) -> str:
    """``10 h``, or ``10 h, its slow end included``."""
    return duration_text(goal.hours * HOUR) + (", its slow end included" if goal.sure else "")


def values_text(values: dict[str, int]) -> str:
    """``max pixels 1132096, rank 32``."""
    return ", ".join(f"{TITLES[name]} {value}" for name, value in values.items())
