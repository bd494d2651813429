"""How long a run takes, in the units that people plan by: epochs, steps, minutes, hours, money."""

import math
import re
from typing import Protocol

from pydantic import Field

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.outcome import KNOWN_FACTOR, Evidence
from budgetft.units import counted
from budgetft.value import Value

HOUR = 3600.0
MOST_EXAMPLES = 10**12


class RunTime(Value):
    """The training steps of a run, evaluation and one-time costs aside."""

    examples: int = Field(ge=1, le=MOST_EXAMPLES)
    """In one epoch."""
    epochs: int = Field(ge=1)
    effective_batch: int = Field(ge=1)
    seconds: float = Field(gt=0)
    low_seconds: float | None = Field(default=None, gt=0)
    """With ``high_seconds``, the range that holds the true time with 80 %; None: measured, so no range is known."""
    high_seconds: float | None = Field(default=None, gt=0)
    evidence: Evidence

    @property
    def steps(self) -> int:
        """Optimizer steps: enough that every example is seen ``epochs`` times."""
        return math.ceil(self.epochs * self.examples / self.effective_batch)

    @property
    def hours(self) -> float:
        return self.seconds / HOUR

    @property
    def is_range(self) -> bool:
        """Whether it is known so roughly that people should see both ends."""
        low, high = self.low_seconds, self.high_seconds
        return low is not None and high is not None and high / low >= KNOWN_FACTOR

    def range_text(self) -> str:
        """``25 min to 1 h 20 min``; empty where no range is known or its ends are next to each other."""
        if not self.is_range:
            return ""
        assert self.low_seconds is not None
        assert self.high_seconds is not None
        return between_text(self.low_seconds, self.high_seconds)

    def text(self) -> str:
        """``3 epochs = 188 steps, about 40 min (25 to 80 min)``."""
        between = self.range_text()
        said = f"{counted(self.epochs, 'epoch')} = {counted(self.steps, 'step')}, about {duration_text(self.seconds)}"
        return f"{said} ({between})" if between else said

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<{self.text()} ({self.evidence})>"

    def price(self, price_per_hour: float) -> tuple[float, float | None, float | None]:
        """What it costs at ``price_per_hour``, with both ends of the range; the currency is whatever that was given in."""
        ends = (None if end is None else end / HOUR * price_per_hour for end in (self.low_seconds, self.high_seconds))
        low, high = ends
        return self.hours * price_per_hour, low, high

    def price_text(self, price_per_hour: float) -> str:
        """``0.27 (0.17 to 0.53)`` in the currency of ``price_per_hour``."""
        middle, low, high = self.price(price_per_hour)
        known = low is None or high is None or not self.is_range
        return f"{middle:.2f}" if known else f"{middle:.2f} ({low:.2f} to {high:.2f})"


class Timed(Protocol):
    """What has a speed: an estimate, or a row of the trade-offs."""

    @property
    def samples_per_second(self) -> float | None: ...
    @property
    def speed_low(self) -> float | None: ...
    @property
    def speed_high(self) -> float | None: ...
    @property
    def evidence(self) -> Evidence: ...


def run_time(estimate: Timed, *, examples: int, epochs: int, effective_batch: int) -> RunTime | None:
    """The time that ``epochs`` over ``examples`` take at the speed of ``estimate``; None where the speed is not known.

    Every example counts once per epoch: the last step of a run goes on into the next epoch, which is left out.
    """
    if not estimate.samples_per_second:
        return None
    seen = examples * epochs

    def seconds(speed: float | None) -> float | None:
        return None if not speed else seen / speed

    return RunTime.make(
        examples=examples,
        epochs=epochs,
        effective_batch=effective_batch,
        seconds=seen / estimate.samples_per_second,
        low_seconds=seconds(estimate.speed_high),
        high_seconds=seconds(estimate.speed_low),
        evidence=estimate.evidence,
    )


def time_under(contract: Contract, estimate: Timed, examples: int | None) -> RunTime | None:
    """As :func:`run_time`, by the epochs and the effective batch of ``contract``; None also where ``examples`` is None."""
    if examples is None:
        return None
    return run_time(estimate, examples=examples, epochs=contract.epochs, effective_batch=contract.effective_batch)


def duration_text(seconds: float) -> str:
    """``45 s``, ``2 min 20 s``, ``38 min``, ``2 h 10 min``, ``31 h``, ``4.2 days``: no more digits than such a figure has."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 0.95 else "under 1 s"
    if seconds < 595:
        minutes, rest = divmod(round(seconds / 10) * 10, 60)
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 600:
        minutes = round(minutes / 5) * 5
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    hours = round(seconds / HOUR)
    return f"{hours} h" if hours < 72 else f"{seconds / 86_400:.1f} days"


def between_text(low_seconds: float, high_seconds: float) -> str:
    """``25 min to 1 h 20 min``, ``6 to 13 h``: the unit once where both ends have it alone; empty where both read the same."""
    low, high = duration_text(low_seconds), duration_text(high_seconds)
    words, others = low.split(), high.split()
    short = words[0] if len(words) == len(others) == 2 and words[1] == others[1] else low
    return "" if low == high else f"{short} to {high}"


def parse_hours(text: str) -> float:
    """Hours from ``10``, ``4h``, ``90min``, ``1.5h``, ``04:00:00``, ``2-12:00:00`` (days, as Slurm has them).

    Raises ``UsageError`` for what is none of these, is not above zero, or is more than ten years.
    """
    said = text.strip().lower()
    units = {"": 1.0, "h": 1.0, "hours": 1.0, "m": 1 / 60, "min": 1 / 60, "minutes": 1 / 60, "d": 24.0, "days": 24.0}
    hours = math.nan
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", said):
        hours = float(match[1]) * units.get(match[2], math.nan)
    elif match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*h(?:ours?)?\s*(\d+)\s*m(?:in(?:utes)?)?", said):
        hours = float(match[1]) + int(match[2]) / 60
    elif match := re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", said):
        days, first, second, third = (int(part or 0) for part in match.groups())
        hours = 24 * days + first + second / 60 + third / 3600
    if not 0 < hours <= 10 * 365 * 24:
        raise UsageError(f"cannot read {text!r} as a time", hint="write for example 10 (hours), 4h, 90min or 04:00:00")
    return hours
