"""Scales, ticks and frames that charts share."""

import math
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


def legend(drawing: Drawing, entries: list[tuple[str, str]], y: float) -> float:
    """Swatches with names, in as many rows as they need; returns where the next thing may start."""
    x = 4.0
    for colour, name in entries:
        wide = 22 + 6.3 * len(name)
        if x > 4 and x + wide > drawing.width:
            x, y = 4.0, y + 18
        drawing.rect(x, y - 9, 11, 11, colour)
        drawing.text(x + 16, y, name, size=12)
        x += wide + 6
    return y + 14
