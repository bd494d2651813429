"""What people read is written in the words of the field: docs/words.md lists those that are not."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT / "docs" / "words.md"
SKIPPED = {LIST, ROOT / "reports" / "answers" / "walk.md", ROOT / "reports" / "answers" / "stumbles-cli.md"}
"""The list itself, and pages that quote what was said before."""
PAGES = sorted(
    {ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}
    | set((ROOT / "docs").glob("*.md"))
    | {ROOT / "reports" / "README.md", *(ROOT / "reports").glob("*/README.md")} - SKIPPED
)


def unwanted() -> dict[str, str]:
    """From each word that is not used to what is used instead."""
    rows = re.findall(r"^\| (?!not \||-)(.+?) \| (.+?) \|$", LIST.read_text(encoding="utf-8"), flags=re.M)
    return {word.strip(): instead for words, instead in rows for word in words.split(",")}


WORDS = re.compile("|".join(rf"(?<![\w/.-]){re.escape(word)}(?![\w/-]|\.\w)" for word in unwanted()), flags=re.I)
EXCEPTED = re.compile(r"model cards?\b|wild ?cards?\b|dataset cards?\b", flags=re.I)


def found(text: str) -> list[str]:
    return sorted({match[0].lower() for match in WORDS.finditer(EXCEPTED.sub("", text))})


def prose(text: str) -> Iterator[tuple[int, str]]:
    """The lines of a Markdown page by number, without code, comments and where links lead."""
    text = re.sub(r"^```.*?^```", lambda code: "\n" * code[0].count("\n"), text, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->|`[^`\n]*`|\]\([^)\n]*\)", "", text)
    yield from enumerate(text.splitlines(), start=1)


def commands() -> dict[str, str]:
    """The help of every command."""
    import typer

    from budgetft.cli import build_app

    def walk(command: Any, path: str) -> Iterator[tuple[str, str]]:
        context = command.context_class(command, info_name=path)
        options = (getattr(param, "help", None) or "" for param in command.params)
        yield path, "\n".join((command.help or "", command.epilog or "", *options, context.command_path))
        for name, each in getattr(command, "commands", {}).items():
            yield from walk(each, f"{path} {name}")

    return dict(walk(typer.main.get_command(build_app()), "budgetft"))


HELP = commands()


def test_the_list_is_read():
    assert {"card", "cards", "stock recipe", "samples/s"} <= set(unwanted())
    assert found("Two cards, a Law and 3 samples/s; the model card; card.toml and --cards") == ["cards", "law", "samples/s"]
    assert list(prose("a `card`\n```\ncard\n```\n[card](card.md)")) == [(1, "a "), (2, ""), (3, ""), (4, ""), (5, "[card")]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in SKIPPED], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_has_the_words_of_the_field(page):
    wrong = {number: words for number, line in prose(page.read_text(encoding="utf-8")) if (words := found(line))}
    assert wrong == {}, f"see {LIST.relative_to(ROOT)}"


@pytest.mark.parametrize("name", HELP)
def test_help_has_the_words_of_the_field(name):
    assert found(HELP[name]) == [], f"see {LIST.relative_to(ROOT)}"
