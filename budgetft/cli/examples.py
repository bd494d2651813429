"""Examples in the terminal as a model is given them; text of the data is never taken for anything else."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from budgetft.data.preview import Preview, Shown, visible

if TYPE_CHECKING:
    from rich.text import Text


def print_previews(previews: Iterable[Preview], notes: Sequence[str], model: str) -> None:
    """Each with its token counts; what is learned stands between signs, and in bold green where there are colours."""
    from rich.console import Console
    from rich.text import Text

    if hasattr(sys.stdout, "reconfigure"):  # a terminal that does not know a character is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    console = Console(highlight=False)
    for one in previews:
        console.print(Text(f"\n{visible(one.example.id)}: {counts(one)}", style="bold"))
        for line in media_lines(one.shown):
            console.print(Text(f"  {line}", style="cyan"))
        for line in _said(one).wrap(console, console.width - 2):
            line.rstrip()
            console.print(Text("  ").append_text(line) if line.plain else line)
        for line in one.warnings:
            console.print(Text(f"! {visible(line)}", style="yellow"))
    console.print()
    for note in notes:
        console.print(Text(visible(note)))
    console.print(Text(f"As {model} is given them; »between these signs« is learned."))


def media_lines(shown: Sequence[Shown]) -> Iterator[str]:
    """Sizes, tokens and times; images in a row that are alike have one line."""
    for _, group in groupby(shown, key=lambda one: one.name if one.frames else (one.stored, one.size)):
        alike = list(group)
        one, last = alike[0], alike[-1]
        name = f"[{one.name}]" if one is last else f"[{one.name}] to [{last.name}]"
        each = "" if one is last else " each"
        sizes = "{}x{} from {}x{}".format(*one.size, *one.stored)
        yield f"{name} {sizes}, {one.tokens} tokens{each}{_times(one)}"


def _times(one: Shown) -> str:
    seconds = one.medium.seconds
    if not seconds:
        return ""
    span = f"{seconds[0]:.2f} s" if len(seconds) == 1 else f"{seconds[0]:.2f} to {seconds[-1]:.2f} s"
    return f", {one.frames} frame{'s' * (one.frames > 1)} at {span}"


def counts(one: Preview) -> str:
    """Its tokens, in words."""
    if one.refusal is not None:
        return "cannot be encoded"
    kinds = f"{one.visual_tokens} visual, {one.text_tokens} text"
    return f"{one.tokens} of {one.most_tokens} tokens ({kinds}), {one.learned_tokens} learned"


def _said(one: Preview) -> "Text":
    from rich.text import Text

    if one.refusal is not None:
        return Text(visible(one.refusal), style="yellow")
    said = Text()
    for learned, pieces in groupby(one.pieces, key=lambda piece: piece.learned):
        said.append("»" if learned else "")
        for piece in pieces:
            style = {"text": "bold green" if learned else "", "mark": "dim", "medium": "cyan"}[piece.kind]
            said.append(visible(piece.text), style=style)
        said.append("«" if learned else "")
    said.rstrip()
    return said
