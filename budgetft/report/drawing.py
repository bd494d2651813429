"""A drawing as a list of marks, written as SVG for the page (colours follow its theme) or as PNG (light colours)."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

Point = tuple[float, float]
Anchor = Literal["start", "middle", "end"]
COLOURS = {
    "ink": "#1c2530",
    "soft": "#5b6775",
    "rule": "#d9dee5",
    "paper": "#ffffff",
    "context": "#a39a8c",
    "weights": "#3d6fc4",
    "adapter": "#8a5fc2",
    "inputs": "#b8578f",
    "kept": "#1b8fa6",
    "temporary": "#8ecbd8",
    "allocator": "#d6d0c6",
    "plan": "#1c2530",
    "stock": "#d08a1e",
    "probe": "#7b8794",
    "good": "#1f7a45",
    "close": "#946200",
    "bad": "#c8443c",
}
"""The light theme; ``style.css`` holds the dark one under the same names. A colour means one thing on a page: a kind of
memory, or whose number it is (the plan or run, the baseline, other settings), or good and bad."""
SCALE = 2
"""Pixels of a PNG per unit of a drawing."""


class Drawing:
    """Marks on a canvas of ``width`` x ``height`` units, origin at the top left. ``title`` says in words what is seen."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self._marks: list[tuple[str, dict[str, Any], str]] = []

    def area(self, points: Sequence[Point], colour: str, *, note: str = "", opacity: float = 1.0, crisp: bool = False) -> None:
        """A filled polygon; ``crisp`` leaves no seam between neighbours that share an upright edge."""
        self._marks.append(("area", {"points": list(points), "colour": colour, "opacity": opacity, "crisp": crisp}, note))

    def line(self, points: Sequence[Point], colour: str, *, width: float = 1.0, dashed: bool = False) -> None:
        self._marks.append(("line", {"points": list(points), "colour": colour, "width": width, "dashed": dashed}, ""))

    def rect(self, x: float, y: float, width: float, height: float, colour: str, *, note: str = "") -> None:
        self.area([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], colour, note=note, crisp=True)

    def dot(self, x: float, y: float, colour: str, *, radius: float = 4.5, hollow: bool = False, note: str = "") -> None:
        self._marks.append(("dot", {"at": (x, y), "colour": colour, "radius": radius, "hollow": hollow}, note))

    def cross(self, x: float, y: float, colour: str, *, note: str = "") -> None:
        """For what failed: told by its shape as well as by its colour."""
        for sign in (1, -1):
            self.line([(x - 4, y - 4 * sign), (x + 4, y + 4 * sign)], colour, width=2.2)
        self.area([(x - 7, y - 7), (x + 7, y - 7), (x + 7, y + 7), (x - 7, y + 7)], colour, note=note, opacity=0)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: Anchor = "start",
        colour: str = "ink",
        size: float = 12,
        bold: bool = False,
        halo: bool = False,
    ) -> None:
        """With ``halo`` it has an edge in the colour of the paper, to be read over anything."""
        mark = {"at": (x, y), "text": text, "anchor": anchor, "colour": colour, "size": size, "bold": bold, "halo": halo}
        self._marks.append(("text", mark, ""))

    def svg(self, *, class_name: str = "") -> str:
        """The drawing as an ``<svg>`` element; every text in it is escaped."""
        return f'<svg class="{class_name}" {self._about()}>{self._svg_marks()}</svg>'

    def svg_file(self, style: str) -> str:
        """The drawing on its own ground, as a whole SVG file; ``style`` gives its colours, by ``.budgetft-figure``."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="budgetft-figure" width="{_n(self.width)}"'
            f' height="{_n(self.height)}" {self._about()} font-family="system-ui, sans-serif" style="max-width:100%">'
            f'<style>{style}</style><rect width="100%" height="100%" fill="var(--paper)"/>{self._svg_marks()}</svg>'
        )

    def _about(self) -> str:
        return f'viewBox="0 0 {_n(self.width)} {_n(self.height)}" role="img" aria-label="{escape(self.title)}"'

    def _svg_marks(self) -> str:
        return "".join(_svg_mark(kind, mark, note) for kind, mark, note in self._marks)

    def write_png(self, path: Path) -> None:
        """Write the drawing to ``path``, ``SCALE`` pixels a unit. Pillow comes with torchvision's and Qwen's image code."""
        from PIL import Image, ImageDraw

        size = round(self.width * SCALE), round(self.height * SCALE)
        image = Image.new("RGB", size, COLOURS["paper"])
        draw = ImageDraw.Draw(image)
        for kind, mark, _ in self._marks:
            _PNG[kind](draw, mark)
        image.save(path, optimize=True)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg_mark(kind: str, mark: dict[str, Any], note: str) -> str:
    colour, hover = f"var(--{mark['colour']})", f"<title>{escape(note)}</title>" if note else ""
    if kind == "text":
        x, y = mark["at"]
        weight = ' font-weight="600"' if mark["bold"] else ""
        weight += ' stroke="var(--paper)" stroke-width="4" stroke-linejoin="round" paint-order="stroke"' if mark["halo"] else ""
        return (
            f'<text x="{_n(x)}" y="{_n(y)}" fill="{colour}" font-size="{_n(mark["size"])}"'
            f' text-anchor="{mark["anchor"]}"{weight}>{escape(mark["text"])}</text>'
        )
    if kind == "dot":
        x, y = mark["at"]
        paint = f'fill="var(--paper)" stroke="{colour}" stroke-width="2"' if mark["hollow"] else f'fill="{colour}"'
        return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(mark["radius"])}" {paint}>{hover}</circle>'
    points = " ".join(f"{_n(x)},{_n(y)}" for x, y in mark["points"])
    if kind == "area":
        opacity = "" if mark["opacity"] == 1 else f' opacity="{mark["opacity"]}"'
        edges = ' shape-rendering="crispEdges"' if mark["crisp"] else ""
        return f'<polygon points="{points}" fill="{colour}"{opacity}{edges}>{hover}</polygon>'
    dash = ' stroke-dasharray="6 4"' if mark["dashed"] else ""
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{_n(mark["width"])}"{dash}/>'


def _scaled(points: Sequence[Point]) -> list[Point]:
    return [(x * SCALE, y * SCALE) for x, y in points]


def _png_area(draw: Any, mark: dict[str, Any]) -> None:
    if mark["opacity"] > 0:
        draw.polygon(_scaled(mark["points"]), fill=_on_paper(COLOURS[mark["colour"]], mark["opacity"]))


def _on_paper(colour: str, opacity: float) -> str:
    shades = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{round(shade * opacity + 255 * (1 - opacity)):02x}" for shade in shades)


def _png_line(draw: Any, mark: dict[str, Any]) -> None:
    points, width = _scaled(mark["points"]), max(1, round(mark["width"] * SCALE))
    if not mark["dashed"]:
        draw.line(points, fill=COLOURS[mark["colour"]], width=width, joint="curve")
        return
    for (x1, y1), (x2, y2) in pairwise(points):
        length = max(abs(x2 - x1), abs(y2 - y1))
        for start in range(0, int(length), 10 * SCALE):
            a, b = start / length, min(1.0, (start + 6 * SCALE) / length)
            ends = [(x1 + (x2 - x1) * share, y1 + (y2 - y1) * share) for share in (a, b)]
            draw.line(ends, fill=COLOURS[mark["colour"]], width=width)


def _png_dot(draw: Any, mark: dict[str, Any]) -> None:
    (x, y), radius, colour = mark["at"], mark["radius"] * SCALE, COLOURS[mark["colour"]]
    box = [x * SCALE - radius, y * SCALE - radius, x * SCALE + radius, y * SCALE + radius]
    draw.ellipse(box, fill=COLOURS["paper"] if mark["hollow"] else colour, outline=colour, width=2 * SCALE)


def _png_text(draw: Any, mark: dict[str, Any]) -> None:
    from PIL import ImageFont

    x, y = mark["at"]
    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[mark["anchor"]]
    font, ink = ImageFont.load_default(mark["size"] * SCALE), COLOURS[mark["colour"]]
    given: dict[str, Any] = {"xy": (x * SCALE, y * SCALE), "text": mark["text"], "font": font, "anchor": anchor}
    if mark["halo"]:
        paper = COLOURS["paper"]
        draw.text(**given, fill=paper, stroke_width=2 * SCALE, stroke_fill=paper)
    draw.text(**given, fill=ink, stroke_width=0.6 if mark["bold"] else 0)


_PNG = {"area": _png_area, "line": _png_line, "dot": _png_dot, "text": _png_text}
