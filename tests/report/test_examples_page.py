"""The page of examples in a browser: readable at any width, in light and in dark, and nothing is loaded."""

import pytest

from budgetft.contract import Contract
from budgetft.data.conversation import Message, Part
from budgetft.data.examples import Example
from budgetft.data.preview import Piece, Preview, Shown
from budgetft.data.visuals import Medium
from budgetft.model import load_model
from budgetft.report.examples import Selection, examples_page


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Many pictures, a film, boxes, a name and words without a place to break them, and a tag that is text."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("page")
    files = []
    for number, size in enumerate(((1288, 728), (280, 1232), (112, 84))):
        files.append(str(folder / f"{number}.png"))
        Image.new("RGB", size, (200, 90, 30 * number)).save(files[-1])
    long = "x" * 300
    said = (Message.of("user", Part(type="image"), "?"), Message.of("assistant", "!", learn=True))
    example = Example.talk(said, id=long, images=(files[0],))
    pieces = (
        Piece("<|im_start|>", False, "mark"),
        Piece("user\n", False),
        Piece("[image 1]", False, "medium"),
        Piece(f"{long} <script>\n", False),
        Piece("<|im_start|>", False, "mark"),
        Piece("assistant\n", False),
        Piece(long * 3, True),
    )
    boxes = (((0.2, 0.2), (0.8, 1.4)), ((0.5, 0.5),))
    media = [(Medium((name,), None), place) for place, name in enumerate(files * 2)]
    media.append((Medium(tuple(files[:1] * 7), tuple(map(float, range(7)))), 7))
    shown = tuple(
        Shown(name=f"image {place}", medium=medium, stored=(9, 9), size=(448, 252), tokens=144, outlines=boxes)
        for medium, place in media
    )
    found = [
        Preview(example=example, pieces=pieces, shown=shown[:count], warnings=(long,), text_tokens=10**6, most_tokens=10**6)
        for count in (0, 1, len(shown))
    ]
    found.append(Preview(example=example, refusal=long))
    path = folder / "page.html"
    path.write_text(
        examples_page(found, long, Selection(99, "some"), load_model("tiny-qwen2.5-vl"), Contract()), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_overflows_fails_or_is_loaded(browser, page, width, scheme):
    browser.open(page, width=width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    over = "[...document.querySelectorAll('section, section *:not(path)')].filter(e => e.getClientRects().length"
    assert browser.evaluate(f"{over} && e.getBoundingClientRect().right > window.innerWidth).length") == 0
    complaints = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [event for event in browser.events if event["method"] in complaints] == []
    asked = [event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:image/")] == [page.as_uri()]
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(244, 246, 248)" if scheme == "light" else "rgb(18, 22, 27)")
    line = browser.evaluate("getComputedStyle(document.querySelector('mark')).textDecorationLine")
    assert line == "underline"
    beside = browser.evaluate(
        "(s => s.children[2].getBoundingClientRect().top < s.children[1].getBoundingClientRect().bottom)"
        "(document.getElementById('example-2'))"
    )
    assert beside == (width == 1280), "the text stands beside the pictures, on a phone below them"
