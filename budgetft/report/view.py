"""A page or one chart of it as an object that a notebook shows and that can be saved."""

import re
from collections.abc import Callable
from functools import cache
from html import escape
from pathlib import Path

from budgetft.errors import UsageError, unknown_name
from budgetft.plan import Plan, check_file, write_text_atomically
from budgetft.predict.store import cache_folder
from budgetft.report.drawing import Drawing
from budgetft.report.gather import gather
from budgetft.report.html import WIDE
from budgetft.report.page import FIGURES, html_page, write_report
from budgetft.report.story import Story
from budgetft.report.verdict import headline

KINDS = {
    "memory": "bytes",
    "frontier": "frontier",
    "trials": "probes",
    "baseline": "stock",
    "data": "data",
    "training": "training",
}
"""Charts of a page by the names that people ask for."""
HEIGHT = 720
"""Pixels of a page in a notebook; it scrolls."""


class Page:
    """A report: ``html`` is the whole page, ``path`` where it was written, None where it was not."""

    def __init__(self, story: Story) -> None:
        self._story = story
        self.html = html_page(story)
        self.path: Path | None = None

    def save(self, path: str | Path) -> Path:
        """Write the page to ``path``, and each chart as PNG beside it. Raises ``UsageError`` where that cannot be done."""
        from budgetft.asked import as_path

        target = as_path("path", path)
        check_file(target)
        write_report(self._story, target)
        self.path = target
        return target

    def __repr__(self) -> str:
        return f"<report: {headline(self._story).text}{'' if self.path is None else f' In {self.path}.'}>"

    def _repr_html_(self) -> str:
        frame = f"width:100%;height:{HEIGHT}px;border:1px solid rgba(128,128,128,.35);border-radius:6px"
        return f'<iframe srcdoc="{escape(self.html)}" title="budgetft report" sandbox="" style="{frame}"></iframe>'


class Figure:
    """One chart: ``svg`` is a whole SVG file in the colours of the reader's theme."""

    def __init__(self, kind: str, drawing: Drawing) -> None:
        self.kind, self._drawing = kind, drawing
        self.svg = drawing.svg_file(_colours())

    def save(self, path: str | Path) -> Path:
        """Write it to ``path``: ``.svg``, or ``.png`` in light colours. Raises ``UsageError`` for other endings."""
        from budgetft.asked import as_path

        target = as_path("path", path)
        check_file(target)
        if target.suffix.lower() == ".svg":
            write_text_atomically(target, self.svg + "\n")
        elif target.suffix.lower() == ".png":
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._drawing.write_png(target)
            except OSError as error:
                raise UsageError(f"cannot write {target}: {error.strerror or error}") from None
        else:
            raise UsageError(f"cannot save a figure as {target.name}", hint="name it .svg or .png")
        return target

    def __repr__(self) -> str:
        return f"<figure {self.kind!r}: {self._drawing.title}>"

    def _repr_svg_(self) -> str:
        return self.svg


def page_of(source: Plan | Path, ledger: Path | None, tell: Callable[[str], None]) -> Page:
    """The report of a plan, of a plan file or of the folder of a run; errors as of :func:`gather`."""
    return Page(_story(source, ledger, tell))


def figure_of(source: Plan | Path, kind: str, ledger: Path | None, tell: Callable[[str], None]) -> Figure:
    """The chart ``kind`` of what :func:`page_of` reports on. Raises ``UsageError`` where there is nothing to draw."""
    if kind not in KINDS:
        raise unknown_name("kind of figure", kind, KINDS)
    story = _story(source, ledger, tell)
    drawing = FIGURES[KINDS[kind]](story, WIDE)
    if drawing is None:
        there = ", ".join(name for name, chart in KINDS.items() if FIGURES[chart](story, WIDE) is not None)
        raise UsageError(f"there is nothing to draw of {kind!r}", hint=f"of this there are: {there}")
    return Figure(kind, drawing)


def _story(source: Plan | Path, ledger: Path | None, tell: Callable[[str], None]) -> Story:
    given = source if isinstance(source, Plan) else None
    path = Path("plan.json") if isinstance(source, Plan) else source
    return gather(path, plan=given, ledger=ledger or cache_folder() / "ledger.sqlite3", on_trace=tell)


@cache
def _colours() -> str:
    """The page's colours, for light and for dark, as those of a figure alone."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root\s*\{([^}]*)\}", style)
    by_day, by_night = (" ".join(re.findall(r"--[\w-]+:[^;]+;", names)) for names in (light, dark))
    return f".budgetft-figure{{{by_day}}} @media (prefers-color-scheme: dark){{.budgetft-figure{{{by_night}}}}}"
