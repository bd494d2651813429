"""Examples in the terminal as a model is given them; text of the data is never taken for anything else."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from budgetft.data.preview import Preview


def print_previews(previews: Iterable["Preview"], notes: Sequence[str], model: str) -> None:
    """Each with its token counts; what is learned stands between signs, and in green where there are colours."""
    from rich.console import Console
    from rich.text import Text

    console = Console()
    for one in previews:
        counts = f"{one.visual_tokens} visual and {one.text_tokens} text tokens, {one.learned_tokens} learned"
        console.print(Text(f"\n{plain(one.example.id)}: {counts}", style="bold"))
        shown = Text()
        for segment in one.segments:
            text = plain(segment.text)
            shown.append(f"»{text}«" if segment.learned else text, style="green" if segment.learned else "")
        console.print(shown)
    for note in notes:
        console.print(Text(note))
    console.print(Text(f"\nAs {model} is given them; »between these signs« is learned."))


def plain(text: str) -> str:
    """``text`` with control characters shown, not obeyed."""
    return "".join(repr(char)[1:-1] if not char.isprintable() and char not in "\n" else char for char in text)
