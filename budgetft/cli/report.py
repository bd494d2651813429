"""``budgetft report``: a plan or a run as a page to read."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from budgetft.cli import options


def report(
    source: Annotated[Path, typer.Argument(metavar="PLAN|RUN", help="A plan file, or the folder of a run.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The page; its charts go beside it as PNG.", rich_help_panel=options.OUTPUT
        ),
    ] = Path("report.html"),
    ledger: options.Ledger = None,
    quiet: options.Quiet = False,
    json_output: options.Json = False,
) -> None:
    """Write one self-contained HTML page: will it fit, how fast, what was measured, where the bytes go, what was tried."""
    from budgetft.cache import cache_folder
    from budgetft.cli.lines import put
    from budgetft.plan import check_file
    from budgetft.report.gather import gather
    from budgetft.report.page import write_report
    from budgetft.report.verdict import headline, verdict

    check_file(out)

    def say(text: str) -> None:
        if not quiet:
            print(f"[trace] {text} (kept for next time)", file=sys.stderr, flush=True)

    story = gather(source, ledger=ledger or cache_folder() / "ledger.sqlite3", on_trace=say)
    written = write_report(story, out)
    if json_output:
        answers = {answer.question: answer.answer for answer in verdict(story)}
        result = {"headline": headline(story).text, "verdict": answers, "files": [str(path) for path in written]}
        print(json.dumps(result, indent=2))
        return
    put(headline(story).text)
    for path in written:
        print(f"  {path}")
