"""The page: whole, safe, small, quick, and readable in a browser of any width."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from calls import calls_of

from budgetft.knobs import Knobs
from budgetft.outcome import Outcome
from budgetft.report.gather import gather
from budgetft.report.memory_charts import bytes_chart
from budgetft.report.page import html_page, write_report
from budgetft.report.run_charts import thinned
from budgetft.report.sections import lesson
from budgetft.train.record import Record
from budgetft.units import GIB

PLANNED = ["bytes", "frontier", "stock", "probes", "verdict", "setup"]
HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(2)>\'"&'


def record(step: int, steps: int) -> Record:
    return Record(
        step=step, steps=steps, epoch=step / 10, loss=None if step % 997 == 0 else 5 / step**0.3, grad_norm=1.0, finite=True,
        scale=1.0, learning_rate=1e-4, seconds=0.5, data_seconds=0.01, samples_per_second=60 + step % 7, allocated_bytes=GIB,
        allocated_peak_bytes=10 * GIB, reserved_bytes=11 * GIB, reserved_peak_bytes=11 * GIB, process_bytes=12 * GIB,
        process_peak_bytes=12 * GIB,
    )  # fmt: skip


@pytest.fixture
def long_run(plan, tmp_path) -> Path:
    """Thirty trials and ten thousand steps."""
    folder = tmp_path / "long"
    folder.mkdir()
    outcomes = tuple(plan.evidence.outcomes[i % 7] for i in range(30))
    (folder / "plan.json").write_text(plan.replace(evidence=plan.evidence.replace(outcomes=outcomes)).model_dump_json())
    lines = (record(step, 10_000).model_dump_json() for step in range(1, 10_001))
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


class Tags(HTMLParser):
    """Every element with its attributes, and whether what is opened is closed again."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_section_is_there_in_order_and_every_element_is_closed(plan, tell):
    tags = Tags(html_page(tell(plan)))
    assert [attributes["id"] for tag, attributes in tags.found if tag == "section"] == PLANNED
    assert tags.open == []


def test_what_there_is_nothing_to_say_of_is_absent_from_the_page_and_its_contents(unprobed, tell):
    tags = Tags(html_page(tell(unprobed)))
    there = [attributes["id"] for tag, attributes in tags.found if tag == "section"]
    assert there == ["bytes", "verdict", "setup"]
    links = [attributes["href"] for tag, attributes in tags.found if tag == "a"]
    assert links[: len(there)] == [f"#{name}" for name in there]


def test_that_nothing_was_run_is_said_once(unprobed, tell):
    words = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", html_page(tell(unprobed)), flags=re.S)
    assert words.count("predicted") == 1
    assert words.count("no GPU was used") == 0


def test_a_budget_far_above_the_peak_does_not_flatten_the_chart(plan, tell):
    story = tell(plan)
    near = bytes_chart(story, 800).svg()
    far = bytes_chart(tell(plan.replace(gpu=plan.gpu.replace(budget_bytes=80 * GIB))), 800).svg()
    assert "budget 14.00 GiB<" in near
    assert "budget 80.00 GiB: far above<" in far

    def tallest(svg: str) -> float:
        shapes = re.findall(r'points="([^"]+)" fill="var\(--temporary', svg)
        return min(float(y) for points in shapes for y in re.findall(r",([\d.]+)", points))

    assert tallest(far) < 120


def test_hostile_names_stay_text(plan, tell):
    model = plan.model.replace(name=HOSTILE)
    profile = plan.gpu.profile.replace(title=HOSTILE)
    stack = plan.evidence.outcomes[0].stack.replace(gpu=HOSTILE)
    outcomes = tuple(
        outcome.replace(stack=stack, status="crash", detail=HOSTILE, phase="loss") for outcome in plan.evidence.outcomes
    )
    proof = plan.evidence.replace(statement=HOSTILE, outcomes=outcomes)
    hostile = plan.replace(
        model=model, evidence=proof, environment={HOSTILE: HOSTILE, "gpu": HOSTILE}, data=f"/data/{HOSTILE}",
        gpu=plan.gpu.replace(name=HOSTILE, profile=profile),
    )  # fmt: skip
    page = html_page(tell(hostile))
    tags = Tags(page)
    assert tags.open == []
    assert {tag for tag, _ in tags.found} & {"script", "img", "iframe", "object"} == set()
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    assert page.count("&lt;script&gt;") >= 6


def test_the_page_names_no_address_to_load_from(plan, tell):
    page = html_page(tell(plan))
    assert re.findall(r"(?:src|href|url|@import)\s*[=(]\s*[\"']?(?!data:)[\w/]", page) == []
    assert "default-src 'none'" in page


def test_thirty_trials_and_ten_thousand_steps_take_few_looks_at_each_step_no_trace_and_three_megabytes(
    long_run, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "budgetft.predict.estimator.fit_memory_model",
        lambda *given, **options: pytest.fail("a stored memory model was traced again"),
    )
    written: list[Path] = []
    story = gather(long_run, ledger=tmp_path / "none.sqlite3")
    read = calls_of(lambda: gather(long_run, ledger=tmp_path / "none.sqlite3"))
    drawn = calls_of(lambda: written.extend(write_report(story, tmp_path / "report.html")))
    steps = len(story.records)
    assert read["Value.read_text"] == steps == 10_000
    assert read.total() < 70 * steps
    assert drawn["Drawing.svg"] == written[0].read_text().count("<svg"), "something is drawn that is not shown"
    assert drawn.total() < 95 * steps, "more than thinning a few curves for three drawings"
    assert written[0].stat().st_size < 3_000_000
    names = ["report.html", *(f"report-{name}.png" for name in ("bytes", "probes", "frontier", "stock", "training"))]
    assert [path.name for path in written] == names


def test_charts_are_png_files_of_twice_their_size(plan, tell, tmp_path):
    from PIL import Image

    for path in write_report(tell(plan), tmp_path / "r.html")[1:]:
        with Image.open(path) as image:
            assert image.width == 1600
            assert len(image.getcolors(1 << 20)) > 4, f"{path.name} is all but empty"


def test_a_curve_of_many_steps_keeps_its_extremes():
    records = [record(step, 10_000) for step in range(1, 10_001)]
    points = thinned(records, lambda r: 1e6 if r.step == 5003 else 1.0)
    assert len(points) == 400
    assert max(high for _, _, _, high in points) == 1e6
    assert all(low <= mean <= high for _, low, mean, high in points)


def test_each_trial_tells_what_it_taught(plan, tell):
    story = tell(plan)
    said = [lesson(story, index) for index in range(7)]
    assert "the baseline" in said[0]
    assert "the first setting to compare with" in said[2]
    assert "best so far, 1.36x" in said[5]
    assert "confirmed in a fresh process" in said[6]
    assert all(re.match(r"peak [+-]\d", text) for text in said)


def test_an_out_of_memory_says_whether_it_was_foreseen(plan, tell):
    knobs: Knobs = plan.knobs
    oom = Outcome(status="oom", phase="backward", knobs=knobs, evidence="emulated", budget_bytes=14 * GIB, wall_seconds=1.0)
    small, large = (plan.estimate.replace(process_peak_bytes=size * GIB, terms=()) for size in (13, 15))
    proof = plan.evidence.replace(outcomes=(oom, oom), predictions=(small, large))
    story = tell(plan.replace(evidence=proof))
    assert lesson(story, 0) == "does not fit: out of memory in backward, although it was predicted to (13.00 GiB predicted)"
    assert lesson(story, 1) == "does not fit: out of memory in backward, as predicted (15.00 GiB predicted)"
    assert ">ran out of memory</span>" in html_page(story)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_nothing_overflows_fails_or_is_loaded(browser, long_run, tmp_path, width, scheme):
    write_report(gather(long_run, ledger=tmp_path / "none.sqlite3"), tmp_path / "report.html")
    browser.open(tmp_path / "report.html", width=width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    complaints = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [event for event in browser.events if event["method"] in complaints] == []
    asked = [event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert asked == [(tmp_path / "report.html").as_uri()]
    shown = browser.evaluate("[...document.querySelectorAll('section')].filter(s => s.offsetHeight > 40).map(s => s.id)")
    assert shown == ["training", *(name for name in PLANNED if name != "verdict")]
    visible = browser.evaluate("[...document.querySelectorAll('svg')].filter(s => s.clientHeight > 0).map(s => s.classList[0])")
    assert visible == ["narrow" if width == 390 else "wide"] * 6
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(244, 246, 248)" if scheme == "light" else "rgb(18, 22, 27)")
    smallest = browser.evaluate(
        "Math.min(...[...document.querySelectorAll('svg text')].filter(t => t.getClientRects().length)"
        ".map(t => t.getBoundingClientRect().height))"
    )
    assert smallest > 9, "a chart's letters are too small to read"
