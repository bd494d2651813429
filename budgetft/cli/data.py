"""``budgetft data``: make, convert and measure datasets."""

import json
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from budgetft.contract import Contract
from budgetft.model import Model, load_model

if TYPE_CHECKING:
    from budgetft.data.examples import Examples
    from budgetft.data.features import Picture
    from budgetft.workload import Shape

app = typer.Typer(help="Make, convert and measure datasets.", no_args_is_help=True)

_Force = Annotated[bool, typer.Option("--force", help="Replace the dataset that is already there.")]


@app.command()
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    count: Annotated[int, typer.Option(help="Number of examples.")] = 48,
    seed: Annotated[int, typer.Option(help="The same seed gives the same dataset.")] = 0,
    force: _Force = False,
) -> None:
    """Make up a small dataset of drawn street scenes."""
    from budgetft.data.sample import write_sample

    examples = write_sample(out, count=count, seed=seed, overwrite=force)
    typer.echo(f"{out}: {len(examples)} examples, fingerprint {examples.fingerprint}")


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="JSON or JSONL: canonical rows, LLaVA conversations or chat messages.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to create.")],
    force: _Force = False,
) -> None:
    """Convert a file and the images it names; relative image paths start at the file's folder."""
    from budgetft.data.convert import convert_file
    from budgetft.data.examples import write_dataset

    examples = write_dataset(convert_file(file), out, images_root=file.parent, overwrite=force)
    typer.echo(f"{out}: {len(examples)} examples, fingerprint {examples.fingerprint}")


@app.command()
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


@app.command()
def cache(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder.")],
    model: Annotated[str, typer.Option("--model", help="A bundled model, a local folder or a hub id.")],
    out: Annotated[Path, typer.Option("--out", help="The cache folder: made, or added to.")],
    weights: Annotated[
        str | None, typer.Option(help="A folder or hub id with the weights, or 'random'; the model's when left out.")
    ] = None,
    max_pixels: Annotated[int | None, typer.Option(help="Shrink each image to at most this many pixels.")] = None,
    precision: Annotated[
        Literal["auto", "fp16", "bf16", "fp32"],
        typer.Option(help="Of the plan's base; auto: bf16 where the card has it, else fp16, fp32 on the CPU."),
    ] = "auto",
    seed: Annotated[int | None, typer.Option(help="Of random weights.")] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the vision tower runs.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and compute nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compute what the frozen vision tower makes of every image, once, for plans with cached vision."""
    from budgetft.data.examples import read_dataset
    from budgetft.data.features import BYTES, check_free_space, feature_bytes, find_pictures

    chosen = {"max_pixels": max_pixels, "seed": seed}
    contract = Contract.make(**{name: value for name, value in chosen.items() if value is not None})
    description = load_model(model)
    source = _weights(description, weights)
    pictures = find_pictures(read_dataset(folder), description, contract)
    if dry_run:
        kind = precision if precision != "auto" else "fp16"
        wanted = feature_bytes(pictures, description, kind)
        report = {
            "images": len({each.digest for each in pictures}),
            "disk_bytes": wanted,
            "bytes_per_visual_token": description.feature_width * BYTES[kind],
        }
        typer.echo(json.dumps(report, indent=2) if as_json else _needed(report["images"], report["images"], wanted))
        check_free_space(out, wanted)
        return
    _compute(pictures, out, description, contract, precision, source, device, as_json=as_json)


def _weights(model: Model, given: str | None) -> str | None:
    """A folder or hub id; None for random weights."""
    from budgetft.errors import UsageError

    source = given or model.weights or model.hub_id
    if source is None:
        raise UsageError(
            f"{model.name} names no weights", hint="give --weights FOLDER or a hub id, or --weights random to try the machinery"
        )
    return None if source == "random" else source


def _needed(images: int, missing: int, wanted_bytes: int) -> str:
    from budgetft.units import format_gib

    return f"{images} distinct images, {missing} to compute: {format_gib(wanted_bytes)} on disk"


def _compute(
    pictures: "list[Picture]",
    out: Path,
    model: Model,
    contract: Contract,
    precision: str,
    weights: str | None,
    device: str,
    *,
    as_json: bool,
) -> None:
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import Progress

    from budgetft.step.features import cache_features, pick_device, pick_precision

    place = pick_device(device)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("features", total=None)

        def on_start(images: int, missing: int, wanted_bytes: int) -> None:
            progress.console.print(_needed(images, missing, wanted_bytes), markup=False, highlight=False)
            progress.update(task, total=missing)

        done = cache_features(
            pictures,
            out,
            model=model,
            contract=contract,
            precision=pick_precision(precision, place),
            weights=weights,
            device=place,
            on_start=on_start,
            on_images=lambda count: progress.advance(task, count),
            on_note=lambda note: progress.console.print(note, markup=False, highlight=False),
        )
    line = f"{out}: features of {done.images} images, {done.computed} computed in {done.seconds:.1f} s"
    typer.echo(json.dumps(asdict(done), indent=2) if as_json else line)


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
    from budgetft.data.stats import overlong

    step = model.pixel_step
    total = [shape.total_tokens(step) for shape in shapes]
    columns = {
        "visual_tokens": [shape.visual_tokens(step) for shape in shapes],
        "text_tokens": [shape.text_tokens for shape in shapes],
        "supervised_tokens": [shape.supervised_tokens for shape in shapes],
        "total_tokens": total,
    }
    longest = max(range(len(shapes)), key=total.__getitem__)
    ids = [example.id for example in examples]
    return {
        "rows": len(shapes),
        "fingerprint": examples.fingerprint,
        "model": model.name,
        "max_pixels": contract.max_pixels,
        "max_length": contract.max_length,
        **{name: {"min": min(row), "median": median(row), "max": max(row)} for name, row in columns.items()},
        "longest": {"id": ids[longest], "total_tokens": total[longest]},
        "over_limit": len(overlong(ids, shapes, model, contract)),
    }


def _lines(summary: dict[str, Any]) -> str:
    lines = [f"rows               {summary['rows']}", f"{'':<18} {'min':>7} {'median':>7} {'max':>7}"]
    for name in ("visual_tokens", "text_tokens", "supervised_tokens", "total_tokens"):
        row = summary[name]
        lines.append(f"{name.replace('_', ' '):<18} {row['min']:>7} {row['median']:>7g} {row['max']:>7}")
    longest = summary["longest"]
    lines.append(f"longest            {longest['id']} ({longest['total_tokens']} tokens)")
    lines.append(f"over the limit     {summary['over_limit']} of {summary['rows']} (limit {summary['max_length']} tokens)")
    return "\n".join(lines)
