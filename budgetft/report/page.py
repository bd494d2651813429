"""The page of a plan or of a run: one self-contained HTML file, and its charts as PNG beside it."""

from collections.abc import Callable
from html import escape
from pathlib import Path

from budgetft.errors import UsageError
from budgetft.plan import Plan, write_text_atomically
from budgetft.report import memory_charts, run_charts, run_sections, sections, setting_charts
from budgetft.report.data_chart import lengths_chart
from budgetft.report.drawing import Drawing
from budgetft.report.goal_chart import goal_chart
from budgetft.report.html import WIDE, Section, banner, command, definitions, document, sections_html, tiles_html
from budgetft.report.story import Story
from budgetft.report.verdict import gpu_title, headline, tiles, verdict
from budgetft.units import counted
from budgetft.wording import pixels_words

FIGURES: dict[str, Callable[[Story, float], Drawing | None]] = {
    "bytes": memory_charts.bytes_chart,
    "probes": setting_charts.probes_chart,
    "goal": goal_chart,
    "frontier": setting_charts.frontier_chart,
    "stock": memory_charts.baseline_chart,
    "data": lengths_chart,
    "training": run_charts.training_chart,
}


def write_report(story: Story, path: Path) -> list[Path]:
    """Write the page to ``path`` and each chart to ``<name>-<chart>.png`` beside it; returns what was written."""
    return write_page(html_page(story), {name: draw(story, WIDE) for name, draw in FIGURES.items()}, path)


def write_page(page: str, drawings: dict[str, Drawing | None], path: Path) -> list[Path]:
    """Write a page and its drawings, those that are there; raises ``UsageError`` where that cannot be done."""
    write_text_atomically(path, page)
    written = [path]
    for name, drawing in drawings.items():
        if drawing is not None:
            image = path.with_name(f"{path.stem}-{name}.png")
            try:
                drawing.write_png(image)
            except OSError as error:
                raise UsageError(f"cannot write {image}: {error.strerror or error}") from None
            written.append(image)
    return written


def html_page(story: Story) -> str:
    """The whole page. Every text from a file is escaped; nothing is loaded from anywhere and no script runs."""
    plan = story.plan
    title = f"{plan.model.name} on {gpu_title(plan)}"
    title = f"Run {story.name}: {title}" if story.run else title
    said = headline(story)
    commands = "".join(command(text, label) for text, label in sections.next_commands(story))
    header = (
        f'<header><h1>{escape(title)}</h1>\n<p class="lead">{escape(_lead(plan))}</p>\n'
        f"{banner(said.kind, said.text)}\n{tiles_html(tiles(story))}\n{commands}</header>\n"
    )
    return document(f"{title}: {'run' if story.run else 'memory plan'}", header + sections_html(_sections(story)), "style.css")


def _lead(plan: Plan) -> str:
    """What is trained, in one line."""
    contract = plan.contract
    method = "QLoRA" if plan.knobs.base_precision == "nf4" else "LoRA"
    examples = "" if plan.workload.examples is None else f" of {counted(plan.workload.examples, 'example')}"
    return (
        f"{method} rank {contract.rank} · {counted(contract.epochs, 'epoch')}{examples} · effective batch"
        f" {contract.effective_batch} · learning rate {contract.learning_rate:g} · images up to"
        f" {pixels_words(contract.max_pixels)}"
    )


def _sections(story: Story) -> list[Section]:
    """In the order of the page: of a run first how it went, then what was planned; words last."""
    plan = story.plan
    run = [
        Section(name="training", title="Training", body=run_sections.training(story)),
        Section(name="samples", title="What the model says", body=run_sections.samples(story), short="Samples"),
    ]
    goal = [] if plan.goal is None else [
        Section(name="goal", title=sections.goal_title(plan.goal), body=sections.goal_body(story, plan.goal), short="In time")
    ]  # fmt: skip
    answers = definitions((answer.question, answer.answer) for answer in verdict(story)[1:])
    return [
        *(run if story.run or story.samples else []),
        *goal,
        Section(name="bytes", title="Where the bytes go", body=sections.memory(story), short="Memory"),
        Section(name="frontier", title="Speed against memory", body=sections.frontier(story), short="Speed"),
        Section(name="costs", title="What more would cost", body=sections.costs(story), short="Costs"),
        Section(name="stock", title="Beside Hugging Face Trainer defaults", body=sections.baseline(story), short="Baseline"),
        Section(name="data", title="Dataset", body=sections.dataset(story)),
        Section(name="probes", title="Trials", body=sections.trials(story)),
        Section(name="verdict", title="Questions", body=answers),
        Section(name="setup", title="Details", body=sections.details(story)),
    ]
