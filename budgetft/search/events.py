"""What planning tells while it works."""

from dataclasses import dataclass
from typing import Literal

from budgetft.knobs import Knobs
from budgetft.outcome import Estimate, Outcome

Stage = Literal["trace", "baseline", "search", "confirm", "cost"]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Progress, for whoever shows it."""

    stage: Stage
    text: str = ""
    number: int = 0
    """Of the probe, from 1."""
    most: int = 0
    """Probes that planning may make in all."""
    knobs: Knobs | None = None
    """What is probed; None when the event is not of a probe."""
    estimate: Estimate | None = None
    outcome: Outcome | None = None
    from_ledger: bool = False
