"""Runs and plans side by side: figures, curves, and only the settings that differ."""

import re
import shutil
from pathlib import Path

import pytest

from budgetft.cli import main
from budgetft.errors import UsageError
from budgetft.report.compare import MOST, check_number, compare_page, named
from budgetft.report.gather import glance

SPINE = Path(__file__).parents[2] / "reports" / "spine"


@pytest.fixture
def runs(tmp_path, plan) -> list[Path]:
    """Two runs that differ in rank and learning rate; the second has not come to its end."""
    found = []
    for name, contract in (("one", plan.contract), ("two", plan.contract.replace(rank=32, learning_rate=1e-3))):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "plan.json").write_text(plan.replace(contract=contract).model_dump_json())
        shutil.copy(SPINE / "log-real.jsonl", folder / "log.jsonl")
        found.append(folder)
    shutil.copy(SPINE / "summary-real.json", found[0] / "summary.json")
    return found


def section(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def test_only_the_settings_that_differ_are_listed_in_words(runs):
    page = compare_page([glance(run) for run in runs])
    settings = section(page, "settings")
    assert re.findall(r'data-name="setting">([^<]+)<', settings) == ["LoRA rank", "learning rate"]
    assert ">16<" in settings
    assert ">0.001<" in settings


def test_equal_ones_say_that_nothing_differs(runs):
    story = glance(runs[0])
    assert "of the same settings and the same data" in section(compare_page([story, story]), "settings")


def test_both_runs_are_in_every_plot_and_each_has_its_verdict(runs):
    page = compare_page([glance(run) for run in runs])
    curves = section(page, "curves")
    assert curves.count("<svg") == 2
    for colour in ("plan", "stock"):
        assert len(re.findall(rf'<polyline [^>]*stroke="var\(--{colour}\)"', curves)) == 2 * 5  # 4 plots and the legend
    assert "one</b>: Finished: 200 steps" in page
    assert "two</b>: Not finished: 200 of 200 steps" in page
    assert re.findall(r'class="tag (\w+)"', page) == ["ok", "close"]


def test_plans_have_figures_and_no_curves(plan, unprobed, tmp_path):
    for name, one in (("a", plan), ("b", unprobed)):
        (tmp_path / f"{name}.json").write_text(one.model_dump_json())
    page = compare_page([glance(tmp_path / f"{name}.json") for name in "ab"])
    assert section(page, "curves") == ""
    assert ">emulated<" in section(page, "figures")
    assert ">predicted<" in section(page, "figures")


def test_folders_of_the_same_name_are_told_apart(runs, tmp_path):
    other = tmp_path / "other" / "one"
    shutil.copytree(runs[0], other)
    stories = [glance(run) for run in (runs[0], other)]
    assert [name for name, _ in named(stories)] == [f"{tmp_path.name}/one", "other/one"]
    assert len({name for name, _ in named([stories[0], stories[0]])}) == 2


def test_more_than_there_are_colours_for_are_refused():
    check_number(MOST)
    with pytest.raises(UsageError, match="cannot compare 5 runs"):
        check_number(MOST + 1)


def test_the_command_takes_several(runs, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "-o", str(out), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "one: Finished: 200 steps" in said
    assert "two: Not finished" in said
    assert (tmp_path / "page-curves.png").is_file()
    assert main(["report", *map(str, runs), "--predictions", "x.jsonl"]) == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_overflows_or_is_loaded(browser, runs, tmp_path, width, scheme):
    path = tmp_path / "page.html"
    path.write_text(compare_page([glance(run) for run in (*runs, *runs)]), encoding="utf-8")
    browser.open(path, width=width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.evaluate("[...document.querySelectorAll('section')].every(s => s.scrollWidth <= s.clientWidth)")
    asked = [event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert asked == [path.as_uri()]
