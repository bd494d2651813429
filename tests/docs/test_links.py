"""Links of README, docs, reports and CONTRIBUTING, without a network: each names a file that is here, and a heading of it."""

import re
from pathlib import Path

import pytest
from pages import DOCS, REPORTS, ROOT, anchors, links, named

PAGES = [*DOCS, ROOT / "CHANGELOG.md", *REPORTS]
ELSEWHERE = ("http://", "https://", "mailto:")


def broken(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    wrong = []
    for target in links(page):
        if target.startswith(ELSEWHERE):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_file() or not file.is_relative_to(ROOT):
            wrong.append(f"{target}: no such file")
        elif anchor and (file.suffix != ".md" or anchor not in anchors(file)):
            wrong.append(f"{target}: no such heading")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file_and_a_heading_that_are_here(page):
    assert broken(page) == []


def test_a_broken_link_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("test_links.ROOT", tmp_path)
    (tmp_path / "b.md").write_text("# A heading, and `code`\n")
    page = tmp_path / "a.md"
    page.write_text("[x](b.md#a-heading-and-code) [y](c.md) [z](b.md#other) ![p](p.png) [w](https://example.org/no)\n")
    assert broken(page) == ["c.md: no such file", "b.md#other: no such heading", "p.png: no such file"]


def test_every_page_of_docs_can_be_reached_from_the_readme():
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        for target in links(page):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.is_file() and file not in seen:
                waiting.append(file)
    assert {page for page in DOCS if page not in seen} == set()


def test_the_site_lists_every_page_of_docs_and_no_other():
    listed = re.findall(r": ((?:docs/)?[\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(each for each in listed if each.startswith("docs/")) == sorted(
        named(page) for page in DOCS if page.parent.name == "docs"
    )
    assert [each for each in listed if not (ROOT / each).is_file()] == []
