"""``budgetft data``: make, convert and measure datasets."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.model import Model, load_model

if TYPE_CHECKING:
    from budgetft.data.convert import Options
    from budgetft.data.examples import Examples
    from budgetft.data.features import Picture
    from budgetft.workload import Shape

app = typer.Typer(help="Make, convert and measure datasets.", no_args_is_help=True)

_N = TypeVar("_N", int, float)
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
def twin(
    out: Annotated[Path, typer.Argument(help="Folder to create.")],
    scenarios: Annotated[int, typer.Option(help="Number of scenarios.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    style: Annotated[str, typer.Option(help="Colours and cameras: day, dusk, winter or desert.")] = "day",
    split_fractions: Annotated[str, typer.Option(help="Shares of the scenarios: train,val,test.")] = "0.6,0.2,0.2",
    videos: Annotated[int | None, typer.Option(help="Videos in all; without it 2 to 4 a scenario.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of a video.")] = 4.0,
    fps: Annotated[int | None, typer.Option(help="Frames a second; without it 10 to 60.")] = None,
    size: Annotated[str | None, typer.Option(help="Pixels of a frame, as 640x360; without it mixed.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that draw.")] = None,
    force: _Force = False,
) -> None:
    """Make up a whole WTS tree: videos, captions, questions, boxes and a public test package."""
    from budgetft.data.twin import TwinSpec, write_twin

    spec = TwinSpec.make(
        scenarios=scenarios,
        seed=seed,
        style=style,
        fractions=_numbers(split_fractions, ",", "--split-fractions", float),
        videos=videos,
        seconds=seconds,
        fps=fps,
        size=None if size is None else _numbers(size, "x", "--size", int),
    )
    with _progress("drawing") as (start, advance):
        count = write_twin(out, spec, overwrite=force, workers=workers, on_start=start, on_video=advance)
    typer.echo(f"{out}: {scenarios} scenarios, {count} videos; next: budgetft data wts {out} --split train --out DIR")


@app.command()
def wts(
    root: Annotated[Path, typer.Argument(help="Folder of the WTS data, of SynWTS, or of a twin.")],
    split: Annotated[str, typer.Option(help="train, val or test.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to create.")],
    frames: Annotated[str, typer.Option(help="single, sheet (2x2), crop (frame and part), N images, or video:N.")] = "single",
    policy: Annotated[str, typer.Option(help="For single: mid, boxes (drawn) or expand (--per-row).")] = "mid",
    per_row: Annotated[int, typer.Option(help="For expand: examples a row, each of weight 1/N.")] = 3,
    view: Annotated[str, typer.Option(help="overhead, vehicle or both.")] = "both",
    cameras: Annotated[str, typer.Option(help="main: one overhead camera a scenario; all: each, of weight 1/N.")] = "main",
    tasks: Annotated[str, typer.Option(help="captions, questions or both.")] = "both",
    external: Annotated[bool, typer.Option("--external/--no-external", help="Take BDD_PC_5K too.")] = True,
    max_side: Annotated[int | None, typer.Option(help="Shrink pictures to this many pixels a side.")] = None,
    holdout: Annotated[float | None, typer.Option(help="Share of the scenarios for a second dataset, OUT-holdout.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the scenarios that are held out.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what is bad, and name it.")] = False,
    workers: Annotated[int | None, typer.Option(help="Videos decoded side by side; all cores by default.")] = None,
    force: _Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert a split of the WTS data: one frame an example, or another format. A rerun goes on after an interrupt."""
    from budgetft.data.reformat import Format
    from budgetft.data.wts import Request, convert_wts

    count, video = _frames(frames)
    form = Format.make(frames=frames if count is None else count, video=video, policy=policy, per_row=per_row)
    request = Request.make(
        split=split,
        form=form,
        view=view,
        cameras=cameras,
        tasks=tasks,
        external=external,
        max_side=max_side,
        holdout=holdout,
        seed=seed,
        skip_bad=skip_bad,
    )
    with _progress("decoding") as (start, advance):
        report = convert_wts(root, out, request, overwrite=force, workers=workers, on_start=start, on_video=advance)
    for line in report.skipped:
        typer.echo(f"left out: {line}", err=True)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    for folder, count in report.examples.items():
        typer.echo(f"{folder}: {count} examples, fingerprint {report.fingerprints[folder]}")
    typer.echo(f"{report.scenarios} scenarios, {report.videos + report.videos_kept} videos, {len(report.skipped)} left out")


@app.command()
def convert(
    file: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help="Files, folders, archives, globs or a hub id: JSON, JSONL, CSV, TSV, parquet, Arrow, image folders, tar, zip.",
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to create.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="What is asked where a row is an image and its caption; 'Describe the image.' when left out."),
    ] = None,
    frames: Annotated[
        str | None, typer.Option(help="Of each video, spread evenly over it: N images, or video:N for one video of N frames.")
    ] = None,
    learn: Annotated[str, typer.Option(help="Of a conversation: all answers, or the last.")] = "all",
    image_column: Annotated[list[str] | None, typer.Option(help="Of a table: where images are; may be repeated.")] = None,
    video_column: Annotated[str | None, typer.Option(help="Of a table: where videos are.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Of a table: the answer, or the caption.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Of a table: what is asked.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset with several splits.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a dataset on the hub.")] = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            help="What boxes in the texts count in (pixels, thousandths, fractions): they are told as each model wants."
        ),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="A key that means nothing for training; may be repeated.")] = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Rows may lack answers: for predict.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out rows that cannot be used, and name them.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; show three examples as the model sees them.")
    ] = False,
    model: Annotated[
        str, typer.Option("--model", help="For --dry-run: a bundled model, a local folder or a hub id.")
    ] = "qwen2.5-vl-3b",
    force: _Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert data of other tools, with the images and videos it names; relative paths start at each file's folder."""
    from budgetft.cli.datasets import converting
    from budgetft.data.convert import Options
    from budgetft.data.convert import convert as convert_data
    from budgetft.data.layout_keys import DESCRIBE

    count, video = (None, False) if frames is None else _frames(frames)
    if frames is not None and count is None:
        raise UsageError(f"--frames must be a number or video:N, not {frames!r}")
    if count is not None and not 1 <= count <= 1024:
        raise UsageError(f"--frames must be from 1 to 1024, not {count}")
    options = Options.make(
        prompt=prompt or DESCRIBE,
        frames=count,
        video=video,
        learn=_one_of(learn, "--learn", ("all", "last")),
        unlabelled=unlabelled,
        skip_bad=skip_bad,
        ignore=tuple(ignore or ()),
        boxes=None if boxes is None else _one_of(boxes, "--boxes", ("pixels", "thousandths", "fractions")),
        split=split,
        config=config,
        image_column=tuple(image_column or ()),
        video_column=video_column,
        text_column=text_column,
        prompt_column=prompt_column,
    )
    if dry_run:
        _preview(file, options, model)
        return
    if out is None:
        raise UsageError("--out is needed: the folder to create", hint="or look at three examples first: --dry-run")
    with converting() as calls:
        written, report = convert_data(file, out, options, overwrite=force, on_columns=_say_lines, **calls)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    if report.left_out:
        typer.echo(f"left out: {len(report.left_out)} problems, the first: {report.left_out[0]}", err=True)
        typer.echo(f"all of them are in {out / 'left-out.txt'}", err=True)
    if as_json:
        found = {"out": str(out), "rows": report.rows, "examples": len(written), "fingerprint": written.fingerprint}
        typer.echo(json.dumps({**found, "left_out": report.left_out, "notes": report.notes}, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{out}: {len(written)} examples, fingerprint {written.fingerprint}")


def _preview(what: list[Path], options: "Options", model: str) -> None:
    """Show what ``model`` would be given of the first three rows; nothing is kept."""
    import tempfile

    from rich.console import Console
    from rich.text import Text

    from budgetft.data.convert import Conversion
    from budgetft.data.preview import preview
    from budgetft.data.processor import load_processor

    console = Console()
    description = load_model(model)
    with tempfile.TemporaryDirectory(prefix="budgetft-") as work:
        conversion = Conversion(what, Path(work), options.replace(limit=3))
        for line in conversion.describe():
            console.print(Text(line))
        examples = conversion.examples()
        processor = load_processor(description)
        for example in examples:
            seen = preview(example, processor, description, Contract(), answered=not options.unlabelled)
            heading = (
                f"{example.id}: {seen.visual_tokens} visual and {seen.text_tokens} text tokens, {seen.learned_tokens} learned"
            )
            console.print(Text(f"\n{heading}", style="bold"))
            shown = Text()
            for one in seen.segments:
                # Told apart by more than colour: what is learned stands between these signs.
                shown.append(f"»{one.text}«" if one.learned else one.text, style="green" if one.learned else "")
            console.print(shown)
        for note in conversion.report.notes:
            console.print(Text(f"note: {note}"))
        for line in conversion.report.left_out:
            console.print(Text(f"left out: {line}"))
    console.print(Text(f"\nAs {description.name} is given them; »between these signs« is learned. Nothing was written."))


def _say_lines(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line, err=True)


def _one_of(value: str, flag: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"{flag} must be {', '.join(known[:-1])} or {known[-1]}, not {value!r}")
    return value


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


def _frames(text: str) -> tuple[int | None, bool]:
    """The N of ``N`` or ``video:N``, if it is one of them, and whether the frames are a video."""
    number = text.removeprefix("video:")
    return (int(number), number != text) if re.fullmatch(r"\d{1,9}", number, re.ASCII) else (None, False)


def _weights(model: Model, given: str | None) -> str | None:
    """A folder or hub id; None for random weights."""
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


@contextmanager
def _progress(what: str) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """A bar on stderr: to be told the number of steps, and each of them."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def start(total: int) -> None:
            progress.update(task, total=total)

        yield start, lambda: progress.advance(task)


def _numbers(text: str, separator: str, flag: str, kind: type[_N]) -> tuple[_N, ...]:
    try:
        return tuple(kind(part) for part in text.split(separator))
    except ValueError:
        raise UsageError(f"{flag} {text!r} is not numbers with {separator!r} between them") from None


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
    from budgetft.data.stats import histogram, overlong, shrunk

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
    return "\n".join(lines)
