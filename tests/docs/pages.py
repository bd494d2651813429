"""The Markdown pages of the repository, and what is in them: commands, code, links and headings."""

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
REPORTS = sorted((ROOT / "reports").rglob("*.md"))
SHELL = ("", "sh", "bash", "console")
"""What a block of commands may be called."""
START = re.compile(r"(?:[A-Z_]+=\S+ )*(?:accelerate launch .*-m )?budgetft(?: |$)")


@dataclass(frozen=True)
class Command:
    """One command of a page: its words after ``budgetft``, and whether it can be pasted or is named in a sentence."""

    page: str
    words: tuple[str, ...]
    pasted: bool

    def __str__(self) -> str:
        return f"{self.page}: budgetft {shlex.join(self.words)}"


def tokens(page: Path) -> Iterator[Token]:
    """All tokens of a page, those inside of paragraphs too."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        yield token
        yield from token.children or ()


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def commands(page: Path) -> list[Command]:
    """Every ``budgetft`` command of a page, in order."""
    found = []
    for token in tokens(page):
        if token.type == "fence" and token.info.strip() in SHELL:
            lines, pasted = token.content.replace("\\\n", " ").splitlines(), True
        elif token.type == "code_inline":
            lines, pasted = [token.content.replace("\n", " ")], False
        else:
            continue
        for line in (line.removeprefix("$ ") for line in lines):
            if match := START.match(line):
                words = shlex.split(line[match.end() :].partition(";")[0], comments=True)
                found.append(Command(named(page), tuple(words), pasted))
    return found


def code(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return [token.content for token in tokens(page) if token.type == "fence" and token.info.strip() == language]


def links(page: Path) -> list[str]:
    """Where the links and pictures of a page lead."""
    targets = (str(token.attrs.get("href") or token.attrs.get("src") or "") for token in tokens(page) if token.attrs)
    return [target for target in targets if target]


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    parsed = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    for opening, inline in itertools.pairwise(parsed):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline"))
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            names.add(name if name not in found else f"{name}-{found[name]}")
            found[name] = found.get(name, 0) + 1
    return names
