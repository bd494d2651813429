"""``budgetft data convert`` and ``data show``: data of other tools made a dataset, and looked at as a model is given it."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from budgetft.asked import MODEL
from budgetft.cli import names, options
from budgetft.contract import Contract
from budgetft.errors import UsageError, nearest
from budgetft.model import load_model

if TYPE_CHECKING:
    from budgetft.data.examples import Examples
    from budgetft.data.read.options import Options

GUESSED = "guessed from the names"
Force = Annotated[bool, typer.Option("--force", help="Replace the dataset that is already there.")]


def convert(
    file: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA...",
            help="Files, folders, archives, globs or a hub id: JSON, JSONL, CSV, TSV, parquet, Arrow, image folders, tar, zip.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", show_default="none, needed", help="Folder to create.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(show_default="Describe the image.", help="The question where an example is an image and its caption."),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(
            metavar="N|video:N",
            show_default="none; videos are refused",
            help="Of each video, spread evenly: N images, or one video of N frames.",
        ),
    ] = None,
    learn: Annotated[
        str, typer.Option(metavar="all|last", help="Train on all answers of a conversation, or the last.")
    ] = "all",
    image_column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default=GUESSED, help="Of a table: where images are; repeatable."),
    ] = None,
    video_column: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=GUESSED, help="Of a table: where videos are.")
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=GUESSED, help="Of a table: the answer or caption.")
    ] = None,
    prompt_column: Annotated[
        str | None, typer.Option(metavar="NAME", show_default=GUESSED, help="Of a table: the question.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="the only one", help="Of a dataset with several splits.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="the only one", help="Of a dataset on the hub.")
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(
            metavar="UNIT",
            show_default="left as written",
            help="Unit of boxes in the texts (pixels, thousandths, fractions); each model gets them as it was taught.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", show_default="none", help="A key that means nothing for training; repeatable."),
    ] = None,
    unlabelled: Annotated[bool, typer.Option("--unlabelled", help="Examples may lack answers: for predict.")] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out examples that cannot be used, and list them.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write nothing; show three examples as the model sees them.")
    ] = False,
    model: Annotated[
        str,
        typer.Option("--model", metavar="NAME", help="For --dry-run: the model that shows them.", autocompletion=names.models),
    ] = MODEL,
    force: Force = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a dataset of files of other tools, with the images and videos that they name.

    Relative paths start at each file's folder. Look first: --dry-run.
    """
    from budgetft.cli.datasets import converting
    from budgetft.data.read.convert import Options
    from budgetft.data.read.convert import convert as convert_data
    from budgetft.data.read.layout_keys import DESCRIBE

    count, video = (None, False) if frames is None else frames_of(frames)
    if frames is not None and count is None:
        raise UsageError(f"--frames must be a number or video:N, not {frames!r}")
    if count is not None and not 1 <= count <= 1024:
        raise UsageError(f"--frames must be from 1 to 1024, not {count}")
    chosen = Options.make(
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
        _preview(file, chosen, model)
        return
    if out is None:
        raise UsageError("--out is needed: the folder to create", hint="or look at three examples first: --dry-run")
    with converting() as calls:
        written, report = convert_data(file, out, chosen, overwrite=force, on_columns=_say_lines, **calls)
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


def _preview(what: list[Path], chosen: "Options", model: str) -> None:
    """Show what ``model`` would be given of the first three rows; nothing is kept."""
    import tempfile

    from budgetft.cli.examples import print_previews
    from budgetft.data.preview import preview, visible
    from budgetft.data.processor import load_processor
    from budgetft.data.read.convert import Conversion

    description = load_model(model)
    with tempfile.TemporaryDirectory(prefix="budgetft-") as work:
        conversion = Conversion(what, Path(work), chosen.replace(limit=3))
        for line in conversion.describe():
            typer.echo(visible(line))
        examples = conversion.examples()
        processor, report = load_processor(description), conversion.report
        answered = not chosen.unlabelled
        shown = [preview(one, processor, description, Contract(), answered=answered) for one in examples]
        notes = [f"note: {note}" for note in report.notes] + [f"left out: {line}" for line in report.left_out]
        print_previews(shown, notes, description.name)
    typer.echo("Nothing was written.")


def _say_lines(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line, err=True)


def _one_of(value: str, flag: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise UsageError(f"{flag} must be {', '.join(known[:-1])} or {known[-1]}, not {value!r}")
    return value


def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A dataset folder, or data to be converted first.")],
    model: options.Model_ = MODEL,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="none", help="Write a page with the pictures to this file."),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, max=200, show_default="3, on a page 24", help="How many, spread evenly; on a page the longest too."
        ),
    ] = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="ID", show_default="none", help="An example by its id; repeatable."),
    ] = None,
    max_pixels: options.Pixels = None,
    max_length: options.MaxLength = None,
) -> None:
    """Show examples as the model sees them: text with its special tokens, images in their size, what is learned."""
    from budgetft.cli.datasets import dataset
    from budgetft.cli.examples import print_previews
    from budgetft.data.examples import read_dataset
    from budgetft.data.preview import previews
    from budgetft.data.processor import load_processor
    from budgetft.data.survey import longest
    from budgetft.plan import check_file, write_text_atomically
    from budgetft.report.examples import Selection, examples_page

    if html is not None:
        check_file(html)
    if name and count is not None:
        raise UsageError("--count would not be read", hint="--id names the examples")
    given = {"max_pixels": max_pixels, "max_length": max_length}
    contract = Contract.make(**{key: value for key, value in given.items() if value is not None})
    description = load_model(model)
    examples = read_dataset(dataset(folder, unlabelled=True))
    processor = load_processor(description)
    places = _named(examples, name) if name else _spread(len(examples), count or (24 if html else 3))
    most = None
    if html is not None and not name and len(places) < len(examples):
        with progress("looking for the longest") as (start, advance):
            start(len(examples))
            most = longest(examples, processor, description, contract, on_example=advance)
        places = _with_longest(places, most, len(examples))
    found = list(previews([examples[place] for place in places], processor, description, contract))
    if html is None:
        print_previews(found, [f"{len(found)} of {len(examples)} examples"], description.name)
        return
    if len(found) == len(examples):
        most = max(range(len(found)), key=lambda place: found[place].tokens)
    how = "all of them" if len(places) == len(examples) else "spread evenly over the dataset, and the one with the most tokens"
    selection = Selection(len(examples), "chosen by id" if name else how, None if most is None else examples[most].id)
    with progress("drawing the page") as (start, advance):
        start(len(found))
        page = examples_page(found, folder.resolve().name, selection, description, contract, on_example=advance)
    write_text_atomically(html, page)
    typer.echo(f"{html}: {len(found)} of {len(examples)} examples")


def _named(examples: "Examples", names: list[str]) -> list[int]:
    """Places of the examples with ``names``."""
    known = {row["id"]: place for place, row in enumerate(examples.columns("id"))}
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        near = nearest(unknown, known)
        raise UsageError(f"no example has the id {unknown!r}", hint=f"did you mean {near!r}?" if near else None)
    return [known[name] for name in dict.fromkeys(names)]


def _spread(total: int, count: int) -> list[int]:
    """``count`` places spread evenly over ``total``, both ends among them; all where there are fewer."""
    count = min(count, total)
    return [round(place * (total - 1) / max(1, count - 1)) for place in range(count)]


def _with_longest(places: list[int], longest: int | None, total: int) -> list[int]:
    """As many places, ``longest`` among them."""
    if longest is None or longest in places:
        return places
    return sorted([*_spread(total, len(places) - 1), longest])


def frames_of(text: str) -> tuple[int | None, bool]:
    """The N of ``N`` or ``video:N``, if it is one of them, and whether the frames are a video."""
    number = text.removeprefix("video:")
    return (int(number), number != text) if re.fullmatch(r"\d{1,9}", number, re.ASCII) else (None, False)


@contextmanager
def progress(what: str) -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """A bar on stderr: to be told the number of steps, and each of them."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def start(total: int) -> None:
            progress.update(task, total=total)

        yield start, lambda: progress.advance(task)
