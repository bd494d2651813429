"""``budgetft data stats``: the tokens of every example as the model would see it."""

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetft.contract import Contract
from budgetft.model import Model, load_model

if TYPE_CHECKING:
    from budgetft.data.examples import Examples
    from budgetft.workload import Shape


def stats(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder.")],
    model: Annotated[str, typer.Option("--model", help="A bundled model, a local folder or a hub id.")],
    max_pixels: Annotated[int | None, typer.Option(help="Shrink each image to at most this many pixels.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens allowed in one example.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count the tokens of every example as the model would see it."""
    from budgetft.data.examples import read_dataset

    chosen = {"max_pixels": max_pixels, "max_length": max_length}
    contract = Contract.make(**{name: value for name, value in chosen.items() if value is not None})
    description = load_model(model)
    examples = read_dataset(folder)
    shapes = _measure(examples, description, contract)
    summary = _summary(examples, shapes, description, contract)
    typer.echo(json.dumps(summary, indent=2) if as_json else _lines(summary))


def _measure(examples: "Examples", model: Model, contract: Contract) -> "list[Shape]":
    from rich.console import Console
    from rich.progress import Progress

    from budgetft.data.processor import load_processor
    from budgetft.data.stats import measure_shapes

    processor = load_processor(model)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=len(examples))
        return measure_shapes(examples, processor, model, contract, on_example=lambda: progress.advance(task))


def _summary(examples: "Examples", shapes: "list[Shape]", model: Model, contract: Contract) -> dict[str, Any]:
    from budgetft.data.stats import histogram, kinds_of, overlong, shrunk

    step = model.pixel_step
    total = [shape.total_tokens(step) for shape in shapes]
    columns = {
        "visual_tokens": [shape.visual_tokens(step) for shape in shapes],
        "text_tokens": [shape.text_tokens for shape in shapes],
        "supervised_tokens": [shape.supervised_tokens for shape in shapes],
        "total_tokens": total,
    }
    longest = max(range(len(shapes)), key=total.__getitem__)
    bins = [{"from": low, "to": high, "rows": count} for low, high, count in histogram(total)]
    ids = [example.id for example in examples]
    return {
        "rows": len(shapes),
        "fingerprint": examples.fingerprint,
        "model": model.name,
        "max_pixels": contract.max_pixels,
        "max_length": contract.max_length,
        **{name: {"min": min(row), "median": median(row), "max": max(row)} for name, row in columns.items()},
        "histogram": bins,
        "longest": {"id": ids[longest], **{name: row[longest] for name, row in columns.items()}},
        "kinds": kinds_of(examples),
        "shrunk": shrunk(examples, model, contract),
        "over_limit": len(overlong(ids, shapes, model, contract)),
    }


def _lines(summary: dict[str, Any]) -> str:
    lines = [f"rows               {summary['rows']}", f"{'':<18} {'min':>7} {'median':>7} {'max':>7}"]
    for name in ("visual_tokens", "text_tokens", "supervised_tokens", "total_tokens"):
        row = summary[name]
        lines.append(f"{name.replace('_', ' '):<18} {row['min']:>7} {row['median']:>7g} {row['max']:>7}")
    most = max(one["rows"] for one in summary["histogram"])
    for one in summary["histogram"]:
        bar = "#" * -(-30 * one["rows"] // most)
        lines.append(f"{one['from']:>7} to {one['to']:>7} {one['rows']:>7} {bar}".rstrip())
    longest, rows = summary["longest"], summary["rows"]
    lines.append(f"longest            {longest['id']} ({longest['total_tokens']} tokens, {longest['visual_tokens']} visual)")
    lines.append(f"shrunk             {summary['shrunk']} of {rows} (limit {summary['max_pixels']} pixels an image)")
    lines.append(
        f"over the limit     {summary['over_limit']} of {rows} (limit {summary['max_length']} tokens); refused, never cut"
    )
    kinds = summary["kinds"]
    told = {"several_turns": "several turns", "system_text": "a system text", "no_image": "no image", "video": "a video"}
    named = [f"{kinds[key]} with {name}" for key, name in told.items() if kinds[key]]
    if named:
        lines.append(f"among them         {', '.join(named)}")
    if kinds["boxes_as_written"] and summary["shrunk"]:
        lines.append(
            f"boxes              {kinds['boxes_as_written']} of {rows} tell boxes or points as they are written, and images are"
            " shrunk: if these are pixels of the image as it is, convert it again with --boxes pixels"
        )
    return "\n".join(lines)
