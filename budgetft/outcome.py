"""Numbers and where they were obtained: an ``Estimate`` is computed, an ``Outcome`` is measured."""

import platform
from importlib.metadata import version
from typing import Literal, Self

from pydantic import AliasChoices, Field, field_validator

from budgetft.knobs import Knobs
from budgetft.value import Value

Evidence = Literal["predicted", "emulated", "measured"]
"""``predicted``: no GPU was used. ``emulated``: another GPU, capped and restricted. ``measured``: the GPU itself."""
Phase = Literal["load", "vision", "forward", "loss", "backward", "optimizer"]
Status = Literal["ok", "oom", "over_budget", "nonfinite", "timeout", "crash"]


CONNECTION = "connection to the other GPUs"
"""Name of the term of what a process holds to be connected to others; only plans for several GPUs have one."""


KNOWN_FACTOR = 1.05
"""Between the ends of a range of speeds under which it is printed as one number."""


def speed_text(middle: float, low: float | None, high: float | None, unit: str = " examples/s") -> str:
    """``5.1 to 8.2 examples/s``; one number where ``low`` and ``high`` are None or next to each other."""
    if low is None or high is None or high / low < KNOWN_FACTOR:
        return f"{middle:.2f}{unit}"
    return f"{_two_digits(low)} to {_two_digits(high)}{unit}"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


_FORMER_CONNECTION = "connection to the other cards"
_FORMER = (('"stack":{"gpu":', '"stack":{"card":'), ('"gpus":', '"cards":'), (CONNECTION, _FORMER_CONNECTION))


def in_former_names(text: str) -> str:
    """JSON ``text`` of values with the keys of before 0.2: what fingerprints are of, so that they stay as they were."""
    for now, before in _FORMER:
        text = text.replace(now, before)
    return text


class Term(Value):
    """One named part of an estimate."""

    name: str
    memory_bytes: int

    @field_validator("name")
    @classmethod
    def _as_now(cls, name: str) -> str:
        """Plans of before 0.2 have the former name of one term."""
        return CONNECTION if name == _FORMER_CONNECTION else name


class Estimate(Value):
    """What a setting is computed to need. ``step_seconds`` is one optimizer step."""

    tensor_peak_bytes: int
    reserved_peak_bytes: int
    process_peak_bytes: int
    step_seconds: float | None
    samples_per_second: float | None
    speed_low: float | None = Field(default=None, exclude_if=lambda value: value is None)
    """With ``speed_high``, the range of ``samples_per_second`` that holds the true one with 80 %; None: measured, or older."""
    speed_high: float | None = Field(default=None, exclude_if=lambda value: value is None)
    fits: bool
    terms: tuple[Term, ...]
    evidence: Evidence = "predicted"

    def speed_text(self, unit: str = " examples/s") -> str:
        """The speed for people: a range while it is not known to a few per cent, else a number."""
        if self.samples_per_second is None:
            return "speed unknown"
        return speed_text(self.samples_per_second, self.speed_low, self.speed_high, unit)

    def term_bytes(self, name: str) -> int:
        """Of the term called ``name``; 0 where there is none."""
        return sum(term.memory_bytes for term in self.terms if term.name == name)


class Stack(Value):
    """The software and hardware that a measurement was made on."""

    gpu: str = Field(validation_alias=AliasChoices("gpu", "card"))
    driver: str | None
    torch: str
    transformers: str
    peft: str
    python: str

    @property
    def key(self) -> str:
        """The JSON by which ledgers and studies know it, older ones too."""
        before = '"stack":'
        return in_former_names(before + self.model_dump_json()).removeprefix(before)

    @classmethod
    def here(cls, gpu: str, driver: str | None) -> Self:
        """The software of this process, as its packages say, without loading any: torch's own version has its build added."""
        packages = {name: version(name) for name in ("torch", "transformers", "peft")}
        return cls(gpu=gpu, driver=driver, python=platform.python_version(), **packages)


def processor() -> str:
    """What a probe or a run on the CPU's byte meter has for a GPU."""
    return platform.processor() or platform.machine() or "cpu"


class Outcome(Value):
    """What a probe found. Bytes are peaks of the worst batch; seconds are medians over the typical one."""

    status: Status
    phase: Phase | None = None
    """Where it ended, when it did not end well."""
    detail: str = ""
    knobs: Knobs
    evidence: Evidence
    budget_bytes: int
    cap_bytes: int | None = None
    """What torch's allocator was allowed: the budget less what the process holds outside it."""
    allocated_peak_bytes: int | None = None
    reserved_peak_bytes: int | None = None
    process_peak_bytes: int | None = None
    """Everything the process held on the GPU, by NVML; on the CPU meter, the live tensor bytes."""
    alloc_retries: int | None = None
    micro_seconds: float | None = None
    optimizer_seconds: float | None = None
    step_seconds: float | None = None
    samples_per_second: float | None = None
    timed_seconds: tuple[float, ...] = ()
    speed_error: float | None = Field(default=None, ge=0.0, exclude_if=lambda value: value is None)
    """Standard error of ``samples_per_second`` as a share of it; None where too little was timed to say, and in older files."""
    loss: float | None = None
    wall_seconds: float = Field(default=0.0, ge=0.0)
    stack: Stack | None = None

    @property
    def fits(self) -> bool:
        return self.status == "ok"
