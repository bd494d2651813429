"""A report and its charts as objects of a notebook."""

import re
from html import unescape
from xml.etree import ElementTree

import pytest

from budgetft.api import UsageError, figure, report


def test_a_page_shows_itself_in_a_frame_of_its_own_that_runs_nothing(plan):
    page = report(plan)
    shown = page._repr_html_()
    assert re.fullmatch(r'<iframe srcdoc="[^"]*" title="budgetft report" sandbox="" style="[^"]*"></iframe>', shown, re.S)
    assert unescape(shown.split('"')[1]) == page.html
    assert page.path is None
    assert len(repr(page)) < 200


def test_a_page_is_written_where_it_is_asked_for(plan, tmp_path):
    page = report(plan, tmp_path / "page.html")
    assert page.path == tmp_path / "page.html"
    assert page.path.read_text(encoding="utf-8") == page.html
    assert (tmp_path / "page-frontier.png").is_file()
    with pytest.raises(UsageError, match="it is a folder"):
        page.save(tmp_path)


def test_a_figure_is_a_whole_svg_file_with_the_colours_of_both_themes(plan, tmp_path):
    drawn = figure(plan, "frontier")
    root = ElementTree.fromstring(drawn._repr_svg_())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    used = set(re.findall(r"var\((--[\w-]+)\)", drawn.svg))
    light, dark = drawn.svg.split("@media", 1)
    assert {"--ink", "--paper", "--plan"} <= used
    assert all(f"{name}:" in light and f"{name}:" in dark for name in used)
    assert drawn.save(tmp_path / "new" / "f.svg").read_text().startswith("<svg")
    assert drawn.save(tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match=r"f\.pdf") as caught:
        drawn.save(tmp_path / "f.pdf")
    assert ".svg or .png" in caught.value.hint


def test_what_there_is_nothing_of_is_refused_with_what_there_is(plan):
    with pytest.raises(UsageError) as caught:
        figure(plan, "training")
    assert "frontier" in caught.value.hint
    assert "training" not in caught.value.hint
