"""The parts that pages are put together from. What is given as text is escaped here; what is HTML already says so."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from budgetft.report.drawing import Drawing

WIDE, NARROW = 800, 340
"""Widths that charts are drawn for: a page, and a phone."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""What the page may load and run: nothing."""
MARKS = {"good": "✓", "close": "!", "bad": "✗"}
"""A verdict is told by its sign and its words as well as by its colour."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One part of a page; ``body`` is HTML. An empty one is left out of the page and of its contents."""

    name: str
    title: str
    body: str
    short: str = ""
    """In the contents; the title when empty."""


def document(title: str, body: str, *styles: str, script: str = "") -> str:
    """A whole page of ``body``, which is HTML already, with ``styles`` of this folder in it, and at its end ``script``: with
    one, that and no other may run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed, last = (f"; script-src 'sha256-{digest}'", f"<script>{script}</script>\n") if script else ("", "")
    style = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in styles)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}{allowed}">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n{last}</body>\n</html>\n"
    )


def sections_html(sections: Sequence[Section]) -> str:
    """The contents as a line of links, then every section that holds something."""
    held = [section for section in sections if section.body]
    links = "".join(f'<a href="#{each.name}">{escape(each.short or each.title)}</a>' for each in held)
    nav = f'<nav aria-label="Contents">{links}</nav>\n' if len(held) > 1 else ""
    bodies = (
        f'<section id="{each.name}">\n<h2><a href="#{each.name}">{escape(each.title)}</a></h2>\n{each.body}\n</section>'
        for each in held
    )
    return nav + "\n".join(bodies)


def banner(kind: str, text: str) -> str:
    """The verdict in the colour of its ``kind``, one of :data:`MARKS`."""
    return f'<p class="verdict {kind}"><b aria-hidden="true">{MARKS[kind]}</b><span>{escape(text)}</span></p>'


def tiles_html(tiles: Iterable[tuple[str, str, str]]) -> str:
    """(what, how much, what that is) of the numbers that a reader wants first."""
    cells = "".join(
        f"<div><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(what)}</small></div>"
        for name, value, what in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def command(text: str, label: str = "") -> str:
    """A command that one click selects as a whole, so that it can be copied without a script."""
    said = f"<span>{escape(label)}</span>" if label else ""
    return f'<div class="command">{said}<code>{escape(text)}</code></div>'


def note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what is said of each; those of which nothing is said are left out."""
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs if text)
    return f"<dl>{told}</dl>" if told else ""


def folded(summary: str, body: str) -> str:
    """``body`` (HTML) behind a line that opens it; nothing where it is empty."""
    return f"<details><summary>{escape(summary)}</summary>\n{body}\n</details>" if body else ""


def figure(draw: Callable[[float], Drawing | None]) -> str:
    """A chart twice, for a page and for a phone; the style shows one of them."""
    drawings = (draw(WIDE), draw(NARROW))
    drawn = "".join(d.svg(class_name=name) for d, name in zip(drawings, ("wide", "narrow"), strict=True) if d)
    return f"<figure>{drawn}</figure>" if drawn else ""


def table(
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Sequence[int] = (),
    blocks: bool = False,
    total: bool = False,
) -> str:
    """Cells are HTML already. With ``blocks``, on a phone each row becomes a block, and each cell tells its column; with
    ``total`` the last row is the sum. Nothing where there are no rows."""
    kinds = [' class="number"' if column in numbers else "" for column in range(len(names))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(names, kinds, strict=True))
    body = ""
    for row in rows:
        cells = zip(names, kinds, row, strict=True)
        body += "<tr>" + "".join(f'<td{kind} data-name="{escape(name)}">{cell}</td>' for name, kind, cell in cells) + "</tr>"
    classes = " ".join(name for name, wanted in (("blocks", blocks), ("total", total)) if wanted)
    kind = f' class="{classes}"' if classes else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else ""


def swatch(*colours: str) -> str:
    """Small squares in colours of the charts, before a word in a table."""
    return "".join(f'<i class="swatch" style="background:var(--{colour})"></i>' for colour in colours)
