"""``budgetft data stats``: the tokens of every example as the model would see it."""

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetft.cli import options
from budgetft.cli.lines import put
from budgetft.contract import Contract
from budgetft.model import Model, load_model

if TYPE_CHECKING:
    from budgetft.data.examples import Examples
    from budgetft.data.survey import Survey

_KINDS = {
    "several_turns": "several turns",
    "system_text": "a system text",
    "no_image": "no image",
    "video": "a video",
    "unlabelled": "unlabelled",
    "boxes_as_written": "boxes, no scale",
}
"""How each kind of example is told."""


def stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder.")],
    model: options.Model_,
    max_pixels: options.Pixels = None,
    max_length: options.MaxLength = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count the tokens of every example as the model would see it."""
    from budgetft.data.examples import read_dataset

    chosen = {"max_pixels": max_pixels, "max_length": max_length}
    contract = Contract.make(**{name: value for name, value in chosen.items() if value is not None})
    description = load_model(model)
    examples = read_dataset(folder)
    summary = _summary(examples, _survey(examples, description, contract), description, contract)
    typer.echo(json.dumps(summary, indent=2)) if as_json else put(_lines(summary))


def _survey(examples: "Examples", model: Model, contract: Contract) -> "Survey":
    from budgetft.cli.data_files import progress
    from budgetft.cli.progress import spinning
    from budgetft.data.processor import load_processor
    from budgetft.data.survey import survey

    with spinning("loading the tokenizer"):
        processor = load_processor(model)
    with progress("measuring") as (start, advance):
        start(len(examples))
        return survey(examples, processor, model, contract, on_example=advance)


def _summary(examples: "Examples", found: "Survey", model: Model, contract: Contract) -> dict[str, Any]:
    from budgetft.data.shapes import ignores_pixels
    from budgetft.data.stats import histogram
    from budgetft.data.survey import BOXES, PIXELS

    counted = found.counted
    total = [one.total for one in counted]
    columns = {
        "visual_tokens": [one.visual for one in counted],
        "text_tokens": [one.text for one in counted],
        "supervised_tokens": [one.learned for one in counted],
        "total_tokens": total,
    }
    longest = max(range(len(counted)), key=total.__getitem__)
    bins = [{"from": low, "to": high, "rows": count} for low, high, count in histogram(total)]
    return {
        "rows": len(counted),
        "fingerprint": examples.fingerprint,
        "model": model.name,
        "max_pixels": contract.max_pixels,
        "max_length": contract.max_length,
        **{name: {"min": min(row), "median": median(row), "max": max(row)} for name, row in columns.items()},
        "histogram": bins,
        "longest": {"id": counted[longest].id, **{name: row[longest] for name, row in columns.items()}},
        "kinds": found.kinds,
        "shrunk": found.shrunk,
        "over_limit": sum(tokens > contract.max_length for tokens in total),
        "notes": [
            *([f"{BOXES} ({found.boxes_resized} of {len(counted)} examples)"] if found.boxes_resized else []),
            *([PIXELS] if ignores_pixels(model) else []),
        ],
    }


def _lines(summary: dict[str, Any]) -> str:
    from budgetft.data.preview import visible

    lines = [f"rows               {summary['rows']}", f"{'':<18} {'min':>7} {'median':>7} {'max':>7}"]
    for name in ("visual_tokens", "text_tokens", "supervised_tokens", "total_tokens"):
        row = summary[name]
        lines.append(f"{name.replace('_', ' '):<18} {row['min']:>7} {row['median']:>7g} {row['max']:>7}")
    most = max(one["rows"] for one in summary["histogram"])
    for one in summary["histogram"]:
        bar = "#" * -(-30 * one["rows"] // most)
        lines.append(f"{one['from']:>7} to {one['to']:>7} {one['rows']:>7} {bar}".rstrip())
    longest, rows = summary["longest"], summary["rows"]
    lines.append(
        f"longest            {visible(longest['id'])} ({longest['total_tokens']} tokens, {longest['visual_tokens']} visual)"
    )
    lines.append(f"shrunk             {summary['shrunk']} of {rows} (limit {summary['max_pixels']} pixels an image)")
    lines.append(
        f"over the limit     {summary['over_limit']} of {rows} (limit {summary['max_length']} tokens); refused, never cut"
    )
    for kind, name in _KINDS.items():
        if summary["kinds"][kind]:
            note = " (for predict; train refuses them)" if kind == "unlabelled" else ""
            lines.append(f"{name:<18} {summary['kinds'][kind]} of {rows}{note}")
    lines += [f"note: {note}" for note in summary["notes"]]
    return "\n".join(lines)
