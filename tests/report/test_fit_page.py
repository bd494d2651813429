"""The page of what fits, in a browser: sorts by its own script, loads nothing, overflows nowhere."""

import pytest

from budgetft import api
from budgetft.gpu import find_gpu
from budgetft.report.fit_page import fit_page, write_fit_page
from budgetft.what_fits import FitTable


@pytest.fixture(scope="module")
def table() -> FitTable:
    return api.fit("rtx3060-12g", ["qwen2.5-vl-3b", "qwen2.5-vl-7b", "qwen3-vl-4b"], images=[(448, 448), (896, 896)])


def test_every_row_and_cell_is_on_the_page_and_texts_are_escaped(table):
    page = fit_page(table, [find_gpu("rtx3060-12g").replace(title="<b>mine</b>")])
    assert page.count("<tr>") == 1 + len(table.rows)
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert "<b>mine" not in page
    for row in table.rows:
        for cell in row.cells:
            assert f'data-sort="{cell.peak_bytes}">{cell.peak_gib:.1f}<' in page


def test_a_price_takes_the_place_of_the_time(table):
    gpus = [find_gpu("rtx3060-12g")]
    time = table.row("qwen3-vl-4b").cells[0].time
    assert time is not None
    assert f">{time.price_text(0.5)}<" in fit_page(table, gpus, price_per_hour=0.5)
    assert f">{time.price_text(0.5)}<" not in fit_page(table, gpus)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_it_sorts_and_nothing_overflows_fails_or_is_loaded(browser, table, tmp_path, width, scheme):
    path = tmp_path / "fit.html"
    write_fit_page(table, [find_gpu("rtx3060-12g")], path)
    browser.open(path, width=width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    rows = "[...document.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent + ' ' + r.cells[1].textContent)"
    before = browser.evaluate(rows)
    assert before == [f"{row.model} {row.method}" for row in table.rows]
    press = "document.querySelectorAll('thead button')[2].click()"
    by_peak = [f"{r.model} {r.method}" for r in sorted(table.rows, key=lambda r: (r.cells[0].peak_bytes, r.model))]
    browser.evaluate(press)
    assert browser.evaluate(rows) == by_peak
    browser.evaluate(press)
    assert browser.evaluate(rows) == by_peak[::-1]
    assert browser.evaluate("document.querySelectorAll('th')[2].getAttribute('aria-sort')") == "descending"
    complaints = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [event for event in browser.events if event["method"] in complaints] == []
    asked = [event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert asked == [path.as_uri()]
