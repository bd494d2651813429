"""``budgetft data``: make, convert and measure datasets."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from budgetft.cli import options
from budgetft.cli.data_files import Force, convert, frames_of, progress, show
from budgetft.cli.data_stats import stats
from budgetft.cli.help import Command, Group
from budgetft.contract import Contract
from budgetft.errors import UsageError
from budgetft.model import Model, load_model
from budgetft.weights import checkpoint_folder

if TYPE_CHECKING:
    from budgetft.data.features import Picture

app = typer.Typer(
    cls=Group,
    help="Make, convert and measure datasets.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_N = TypeVar("_N", int, float)


@app.command(cls=Command)
def sample(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create.")],
    count: Annotated[int, typer.Option(help="Number of examples.")] = 48,
    seed: Annotated[int, typer.Option(help="The same seed gives the same dataset.")] = 0,
    force: Force = False,
) -> None:
    """Draw a small synthetic dataset of street scenes."""
    from budgetft.data.synthetic.sample import write_sample

    examples = write_sample(out, count=count, seed=seed, overwrite=force)
    typer.echo(f"{out}: {len(examples)} examples, fingerprint {examples.fingerprint}")


@app.command(cls=Command)
def synthetic(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create.")],
    scenarios: Annotated[int, typer.Option(help="Number of scenarios.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    style: Annotated[str, typer.Option(metavar="NAME", help="Colours and cameras: day, dusk, winter or desert.")] = "day",
    split_fractions: Annotated[
        str, typer.Option(metavar="X,X,X", help="Shares of the scenarios for train, val and test.")
    ] = "0.6,0.2,0.2",
    videos: Annotated[int | None, typer.Option(show_default="2 to 4 a scenario", help="Videos in all.")] = None,
    seconds: Annotated[float, typer.Option(help="Length of a video.")] = 4.0,
    fps: Annotated[int | None, typer.Option(show_default="10 to 60", help="Frames per second.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", show_default="mixed", help="Size of a frame.")] = None,
    workers: options.Workers = None,
    force: Force = False,
) -> None:
    """Draw a synthetic WTS tree: videos, captions, questions, boxes and a public test package."""
    from budgetft.data.synthetic.dataset import write_synthetic
    from budgetft.data.synthetic.spec import SyntheticSpec

    spec = SyntheticSpec.make(
        scenarios=scenarios,
        seed=seed,
        style=style,
        fractions=_numbers(split_fractions, ",", "--split-fractions", float),
        videos=videos,
        seconds=seconds,
        fps=fps,
        size=None if size is None else _numbers(size, "x", "--size", int),
    )
    with progress("drawing") as (start, advance):
        count = write_synthetic(out, spec, overwrite=force, workers=workers, on_start=start, on_video=advance)
    typer.echo(f"{out}: {scenarios} scenarios, {count} videos; next: budgetft data wts {out} --split train --out DIR")


@app.command(cls=Command)
def wts(
    root: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the WTS data, of SynWTS, or of data synthetic.")],
    split: Annotated[str, typer.Option(metavar="NAME", help="train, val or test.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to create.")],
    frames: Annotated[
        str, typer.Option(metavar="HOW", help="single, sheet (2x2), crop (frame and part), N images, or video:N.")
    ] = "single",
    policy: Annotated[str, typer.Option(metavar="NAME", help="For single: mid, boxes (drawn) or expand (--per-row).")] = "mid",
    per_row: Annotated[int, typer.Option(help="For expand: frames per caption, each of weight 1/N.")] = 3,
    view: Annotated[str, typer.Option(metavar="NAME", help="overhead, vehicle or both.")] = "both",
    cameras: Annotated[
        str, typer.Option(metavar="NAME", help="main: one overhead camera a scenario; all: each, of weight 1/N.")
    ] = "main",
    tasks: Annotated[str, typer.Option(metavar="NAME", help="captions, questions or both.")] = "both",
    external: Annotated[bool, typer.Option("--external/--no-external", help="Take BDD_PC_5K too.")] = True,
    max_side: Annotated[
        int | None, typer.Option(show_default="as they are", help="Downscale frames to this many pixels a side.")
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(show_default="none", help="Share of the scenarios for a second dataset, OUT-holdout."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the scenarios that are held out.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out what cannot be used, and list it.")] = False,
    workers: options.Workers = None,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Convert a split of the WTS data, one frame per example or in another format.

    After an interrupt the same command resumes.
    """
    from budgetft.data.wts.convert import Request, convert_wts
    from budgetft.data.wts.reformat import Format

    count, video = frames_of(frames)
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
    with progress("decoding") as (start, advance):
        report = convert_wts(root, out, request, overwrite=force, workers=workers, on_start=start, on_video=advance)
    for line in report.skipped:
        typer.echo(f"left out: {line}", err=True)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=2))
        return
    for folder, count in report.examples.items():
        typer.echo(f"{folder}: {count} examples, fingerprint {report.fingerprints[folder]}")
    typer.echo(f"{report.scenarios} scenarios, {report.videos + report.videos_kept} videos, {len(report.skipped)} left out")


app.command(cls=Command)(convert)
app.command(cls=Command)(show)
app.command(cls=Command)(stats)


@app.command(cls=Command)
def cache(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder.")],
    model: options.Model_,
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="The folder of features: made, or added to.", rich_help_panel=options.DATA),
    ],
    weights: options.Weights = None,
    revision: options.Revision = None,
    max_pixels: options.Pixels = None,
    precision: Annotated[
        Literal["auto", "fp16", "bf16", "fp32"],
        typer.Option(
            help="Of the plan's base model; auto: bf16 where the GPU has it, else fp16, fp32 on the CPU.",
            rich_help_panel=options.GPU,
        ),
    ] = "auto",
    seed: Annotated[int | None, options.setting("seed", "Of random weights.")] = None,
    device: options.Device = "auto",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what it would take, and compute nothing.", rich_help_panel=options.OUTPUT),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=options.OUTPUT)] = False,
) -> None:
    """Pre-compute the vision features of every image, for plans that read them instead of running the vision tower."""
    from budgetft.data.examples import read_dataset
    from budgetft.data.features import BYTES, check_free_space, feature_bytes, find_pictures

    chosen = {"max_pixels": max_pixels, "seed": seed}
    contract = Contract.make(**{name: value for name, value in chosen.items() if value is not None})
    description = load_model(model)
    source = _weights(description, options.weights_at(weights, revision, description.weights or description.hub_id))
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
    source = given or model.weights or model.hub_id
    if source is None:
        raise UsageError(
            f"{model.name} names no weights", hint="give --weights FOLDER or a hub id, or --weights random to try the machinery"
        )
    return None if source == "random" else str(checkpoint_folder(source))


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


def _numbers(text: str, separator: str, flag: str, kind: type[_N]) -> tuple[_N, ...]:
    try:
        return tuple(kind(part) for part in text.split(separator))
    except ValueError:
        raise UsageError(f"{flag} {text!r} is not numbers with {separator!r} between them") from None
