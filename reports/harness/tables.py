"""Rows of Markdown, and how far predictions are off."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, quantiles

GIB, MIB = 2**30, 2**20


def row(*cells: object) -> str:
    """``| a | b |``."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*names: str, rule: str = "---") -> str:
    """The two lines above a table's rows; ``rule`` is what stands in every cell of the second."""
    return f"{row(*names)}\n|{'|'.join([rule] * len(names))}|"


def show(*cells: object) -> None:
    """Print a row at once: what is measured for minutes is seen as it comes."""
    print(row(*cells), flush=True)


def gib(size_bytes: float) -> str:
    """Two digits, no unit."""
    return f"{size_bytes / GIB:.2f}"


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far a column of relative errors (predicted over measured, less one) is off."""

    count: int
    mean: float
    p95: float
    worst: float
    under: float
    """The most that was predicted too little, negative."""


def spread(errors: Sequence[float]) -> Spread:
    """Of absolute errors, but for the last. Raises ``ValueError`` where there are none."""
    if not errors:
        raise ValueError("no errors to take a mean of")
    sizes = [abs(error) for error in errors]
    p95 = quantiles(sizes, n=20, method="inclusive")[-1] if len(sizes) > 1 else sizes[0]
    return Spread(count=len(sizes), mean=mean(sizes), p95=p95, worst=max(sizes), under=min(errors))
