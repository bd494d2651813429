"""``budgetft report``: a plan or a run as a page to read."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetft.cli import options

if TYPE_CHECKING:
    from budgetft.report.story import Story

Predictions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        show_default="the run's own captions",
        help="Show the first of these, from budgetft predict.",
        rich_help_panel=options.OUTPUT,
    ),
]
Pictures = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        show_default="the plan's",
        help="Dataset with the pictures of --predictions.",
        rich_help_panel=options.OUTPUT,
    ),
]


def report(
    source: Annotated[
        list[Path],
        typer.Argument(metavar="PLAN|RUN...", help="A plan file or the folder of a run; several are set side by side."),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The page; its charts go beside it as PNG.", rich_help_panel=options.OUTPUT
        ),
    ] = Path("report.html"),
    predictions: Predictions = None,
    data: Pictures = None,
    ledger: options.Ledger = None,
    quiet: options.Quiet = False,
    json_output: options.Json = False,
) -> None:
    """Write one HTML page without a network: does it fit, how long, where the bytes go; of a run its curves and captions.

    Of two or more it has their figures, their curves in one chart, and the settings that differ.
    """
    from budgetft.cache import cache_folder
    from budgetft.cli.lines import put
    from budgetft.plan import check_file
    from budgetft.report.compare import named, write_comparison
    from budgetft.report.gather import gather, glance
    from budgetft.report.page import write_report
    from budgetft.report.verdict import headline

    check_file(out)
    _check_number(len(source), predictions)

    def say(text: str) -> None:
        if not quiet:
            print(f"[trace] {text} (kept for next time)", file=sys.stderr, flush=True)

    kept = ledger or cache_folder() / "ledger.sqlite3"
    alone = len(source) == 1
    stories = (
        [gather(source[0], ledger=kept, predictions=predictions, data=data, on_trace=say)]
        if alone
        else list(map(glance, source))
    )
    written = write_report(stories[0], out) if alone else write_comparison(stories, out)
    files = [str(path) for path in written]
    if json_output:
        print(json.dumps({**_told(stories), "files": files}, indent=2))
        return
    for name, story in named(stories):
        put(headline(story).text if alone else f"{name}: {headline(story).text}")
    for path in files:
        print(f"  {path}")


def _check_number(count: int, predictions: Path | None) -> None:
    from budgetft.errors import UsageError
    from budgetft.report.compare import check_number

    check_number(count)
    if count > 1 and predictions is not None:
        raise UsageError("--predictions are of one run", hint="give one run, or leave them out")


def _told(stories: "list[Story]") -> dict[str, Any]:
    """The verdict of one; of several each with its name."""
    from budgetft.report.compare import named
    from budgetft.report.verdict import headline, verdict

    found = [
        {
            "name": name,
            "headline": headline(story).text,
            "verdict": {answer.question: answer.answer for answer in verdict(story)},
        }
        for name, story in named(stories)
    ]
    return {"headline": found[0]["headline"], "verdict": found[0]["verdict"]} if len(found) == 1 else {"compared": found}
