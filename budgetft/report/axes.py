"""Scales, ticks and frames that charts share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from budgetft.report.drawing import Drawing


@dataclass(frozen=True, kw_only=True)
class Axes:
    """A plot area on a drawing, linear in both directions."""

    drawing: Drawing
    left: float
    top: float
    right: float
    bottom: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def grid_y(self, unit: str, *, count: int = 5) -> None:
        """Horizontal rules with their values; the unit stands above the axis."""
        for value in ticks(*self.y_range, count=count):
            self.drawing.line([(self.left, self.y(value)), (self.right, self.y(value))], "rule")
            self.drawing.text(self.left - 6, self.y(value) + 4, tidy(value), anchor="end", colour="soft", size=11)
        self.drawing.text(4, self.top - 8, unit, colour="soft", size=11)

    def grid_x(self, unit: str, *, count: int = 6) -> None:
        """Values below the plot; the unit stands at their end."""
        for value in ticks(*self.x_range, count=count):
            self.drawing.line([(self.x(value), self.bottom), (self.x(value), self.bottom + 4)], "soft")
            self.drawing.text(self.x(value), self.bottom + 17, tidy(value), anchor="middle", colour="soft", size=11)
        self.drawing.text(self.right, self.bottom + 32, unit, anchor="end", colour="soft", size=11)

    def upright(self, value: float, colour: str) -> None:
        self.drawing.line([(self.x(value), self.top), (self.x(value), self.bottom)], colour, width=1.5, dashed=True)

    def level(self, value: float, colour: str) -> None:
        self.drawing.line([(self.left, self.y(value)), (self.right, self.y(value))], colour, width=1.5, dashed=True)


def ticks(low: float, high: float, *, count: int) -> list[float]:
    """About ``count`` round values from ``low`` to ``high``."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * size for size in (1, 2, 5, 10) if power * size >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def tidy(value: float) -> str:
    """A tick's value without needless digits."""
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.0e}"


def padded(low: float, high: float) -> tuple[float, float]:
    """The range with a little room, never empty."""
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room, high + room


LETTER = 6.3
"""Width of a letter of a legend, on average."""


def legend(drawing: Drawing, entries: Sequence[tuple[str, str] | tuple[str, str, str]], y: float) -> float:
    """Marks with names: (colour, name), or (colour, name, mark), ``dot``, ``hollow``, ``cross`` or ``line`` for a swatch.

    In one row, or in columns where they need more; returns where the next thing may start.
    """
    widths = [28 + LETTER * len(entry[1]) for entry in entries]
    room = drawing.width - 4
    most = len(entries) if sum(widths) <= room else max(1, int(room // max(widths, default=1)))
    x, column = 4.0, room / most
    for number, (entry, wide) in enumerate(zip(entries, widths, strict=True)):
        if number and number % most == 0:
            x, y = 4.0, y + 18
        _mark(drawing, entry[0], entry[2] if len(entry) > 2 else "", x, y)
        drawing.text(x + 16, y, entry[1], size=12)
        x += wide if most == len(entries) else column
    return y + 14


def _mark(drawing: Drawing, colour: str, kind: str, x: float, y: float) -> None:
    if kind in ("dot", "hollow"):
        drawing.dot(x + 5.5, y - 4, colour, hollow=kind == "hollow")
    elif kind == "cross":
        drawing.cross(x + 5.5, y - 4, colour)
    elif kind in ("line", "dashed"):
        drawing.line([(x, y - 4), (x + 12, y - 4)], colour, width=2, dashed=kind == "dashed")
    else:
        drawing.rect(x, y - 9, 11, 11, colour)
