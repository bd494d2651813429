"""Runs or plans side by side on one page: their figures, their curves in one chart, and the settings that differ."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from budgetft.duration import duration_text
from budgetft.errors import UsageError
from budgetft.report.html import WIDE, Section, document, figure, note, sections_html, swatch, table
from budgetft.report.page import write_page
from budgetft.report.run_charts import SERIES, curves_chart
from budgetft.report.setting_charts import bars_chart
from budgetft.report.story import Story
from budgetft.report.verdict import HOW, MARKED, gpu_title, headline
from budgetft.units import GIB, counted, format_gib
from budgetft.value import Value
from budgetft.wording import setting_name, setting_value

MOST = len(SERIES)
"""As many as there are colours for."""
Named = Sequence[tuple[str, Story]]
Bar = tuple[str, float, str, str]


def check_number(count: int) -> None:
    """Raise ``UsageError`` where so many cannot be compared."""
    if count > MOST:
        raise UsageError(f"cannot compare {count} runs on one page", hint=f"give at most {MOST}")


def named(stories: Sequence[Story]) -> list[tuple[str, Story]]:
    """Each by a name that no other has: its folder's or file's, with as much of the path as it takes, or a number."""
    paths = [(story.run or story.plan_path).resolve() for story in stories]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.with_suffix("").parts[-count:])) for path in paths]
        if len(set(names)) == len(names):
            return list(zip(names, stories, strict=True))
    return [(f"{paths[place].stem} ({place + 1})", story) for place, story in enumerate(stories)]


def compare_page(stories: Sequence[Story]) -> str:
    """The whole page. Every text from a file is escaped; nothing is loaded from anywhere and no script runs."""
    runs = named(stories)
    title = " and ".join(name for name, _ in runs) if len(runs) == 2 else ", ".join(name for name, _ in runs)
    wheres = list(dict.fromkeys(f"{story.plan.model.name} on {gpu_title(story.plan)}" for story in stories))
    sections = [
        Section(name="figures", title="Figures", body=_figures(runs)),
        Section(name="curves", title="Curves", body=figure(lambda width: curves_chart(runs, width))),
        Section(name="bars", title="Memory and speed", body=_bars(runs)),
        Section(name="settings", title="Settings that differ", body=_settings(runs), short="Settings"),
    ]
    header = f'<header><h1>{escape(title)}</h1>\n<p class="lead">{escape("; ".join(wheres))}</p></header>\n'
    return document(f"{title}: side by side", header + sections_html(sections), "style.css")


def write_comparison(stories: Sequence[Story], path: Path) -> list[Path]:
    """Write the page to ``path`` and the curves beside it as PNG, where there are any; returns what was written."""
    return write_page(compare_page(stories), {"curves": curves_chart(named(stories), WIDE)}, path)


def _figures(runs: Named) -> str:
    """One row for each figure that any of them has."""
    known: list[tuple[str, Callable[[Story], str]]] = [
        ("peak GPU memory", lambda story: format_gib(_peak(story))),
        ("budget", lambda story: format_gib(story.plan.gpu.budget_bytes)),
        ("known from", _known_from),
        ("time", _time),
        ("examples/s", _speed_text),
        ("steps", lambda story: f"{len(story.records):,} of {story.records[-1].steps:,}" if story.records else ""),
        ("loss at the end", lambda story: _number(story.records[-1].loss) if story.records else ""),
        ("lowest eval loss", _eval_loss),
        ("out of memory", lambda story: counted(story.summary.ooms, "time") if story.summary else ""),
    ]
    rows = [["verdict", *(_tag(story) for _, story in runs)]]
    for name, told in known:
        cells = [told(story) for _, story in runs]
        if any(cells):
            rows.append([escape(name), *(escape(cell) or "-" for cell in cells)])
    heads = "".join(
        f"<p>{swatch(SERIES[place])}<b>{escape(name)}</b>: {escape(headline(story).text)}</p>"
        for place, (name, story) in enumerate(runs)
    )
    return heads + _wide(table(["", *(name for name, _ in runs)], rows, numbers=range(1, 1 + len(runs))))


def _wide(body: str) -> str:
    """A table that moves sideways within the page where it has no room."""
    return f'<div class="scroll">{body}</div>'


def _tag(story: Story) -> str:
    kind = headline(story).kind
    css = {"good": "ok", "close": "close", "bad": "failed"}[kind]
    return f'<span class="tag {css}">{MARKED[kind]}</span>'


def _peak(story: Story) -> int:
    return story.run_peak_bytes or story.plan.estimate.process_peak_bytes


def _known_from(story: Story) -> str:
    return HOW[story.summary.evidence] if story.summary else "" if story.run else story.plan.estimate.evidence


def _time(story: Story) -> str:
    if story.records:
        return duration_text(story.train_seconds)
    time = story.plan.run_time()
    return "" if time is None else duration_text(time.seconds)


def _speed(story: Story) -> float:
    return story.run_speed if story.records else story.plan.estimate.samples_per_second or 0.0


def _speed_text(story: Story) -> str:
    return f"{_speed(story):.2f}" if story.records else story.plan.estimate.speed_text("")


def _eval_loss(story: Story) -> str:
    held = [(record.heldout_loss, record.step) for record in story.records if record.heldout_loss is not None]
    return f"{min(held)[0]:.4f}, after step {min(held)[1]:,}" if held else ""


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"


def _bars(runs: Named) -> str:
    peaks: list[Bar] = [
        (name, _peak(story) / GIB, format_gib(_peak(story)), SERIES[place]) for place, (name, story) in enumerate(runs)
    ]
    speeds: list[Bar] = [
        (name, _speed(story), f"{_speed_text(story)} examples/s", SERIES[place]) for place, (name, story) in enumerate(runs)
    ]
    parts = ["<h3>Peak GPU memory</h3>", figure(lambda width: bars_chart(peaks, width, "Peak GPU memory"))]
    if any(value for _, value, _, _ in speeds):
        parts += ["<h3>Speed</h3>", figure(lambda width: bars_chart(speeds, width, "Examples per second"))]
    return "".join(parts)


def _settings(runs: Named) -> str:
    """What is not the same in all of them, of what is planned and of what is kept fixed."""
    stories = [story for _, story in runs]
    rows = [
        ["model", *(story.plan.model.name for story in stories)],
        ["GPU", *(gpu_title(story.plan) for story in stories)],
        ["budget", *(format_gib(story.plan.gpu.budget_bytes) for story in stories)],
        ["data", *(_data(story) for story in stories)],
    ]
    rows += _fields([story.plan.contract for story in stories], stories)
    rows += _fields([story.plan.knobs for story in stories], stories)
    different = [[escape(cell) for cell in row] for row in rows if len(set(row[1:])) > 1]
    if not different:
        return note("None: they are of the same settings and the same data.")
    return _wide(table(["setting", *(name for name, _ in runs)], different))


def _data(story: Story) -> str:
    """By name, number and the start of the hash, so that other data under the same name show."""
    work = story.plan.workload
    if work.examples is None:
        return "a typed shape"
    name = Path(story.plan.data).name if story.plan.data else "data"
    told = f" ({work.fingerprint[:8]})" if work.fingerprint else ""
    return f"{name}, {counted(work.examples, 'example')}{told}"


def _fields(values: Sequence[Value], stories: Sequence[Story]) -> list[list[str]]:
    return [
        [
            setting_name(field),
            *(setting_value(field, getattr(value, field), story.layers) for value, story in zip(values, stories, strict=True)),
        ]
        for field in type(values[0]).model_fields
    ]
