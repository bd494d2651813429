"""Data as people name it, for any command: a dataset folder, or files that are converted once."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgetft.cli.progress import say

if TYPE_CHECKING:
    from budgetft.data.read.convert import Report

_AT_ONCE = 20
"""Rows or pictures between two updates of a bar, which cost as much as a small picture."""


def dataset(data: Path, *, quiet: bool = False, unlabelled: bool = False) -> Path:
    """The dataset folder of ``data``, converted into the cache if it is not one. What is done is told on stderr."""
    from budgetft.cache import cache_folder
    from budgetft.data.read.opening import dataset_folder

    def told(text: str) -> None:
        if not quiet:
            say(text)

    with converting(quiet=quiet) as calls:
        return dataset_folder(
            data,
            cache=cache_folder(),
            unlabelled=unlabelled,
            on_convert=lambda folder: told(f"{data} is converted into {folder}"),
            on_report=lambda report: _tell(report, told),
            on_columns=lambda lines: told("\n".join(lines)) if lines else None,
            **calls,
        )


@contextmanager
def converting(*, quiet: bool = False) -> Iterator[dict[str, Any]]:
    """Two bars on stderr, with the time left: rows read, and pictures and examples made. Gives what is to be called."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as progress:
        reading = progress.add_task("reading rows", total=1.0, visible=False)
        making = progress.add_task("converting", total=None, visible=False)

        calls = Counter[str]()

        def read(share: float) -> None:
            calls["read"] += 1
            if calls["read"] % _AT_ONCE == 0:
                progress.update(reading, completed=share, visible=True)

        def start(steps: int) -> None:
            progress.update(reading, visible=False)
            progress.update(making, total=steps, visible=True)

        def step() -> None:
            calls["step"] += 1  # by several threads: a bar that is one off harms nobody
            if calls["step"] % _AT_ONCE == 0:
                progress.update(making, completed=calls["step"])

        yield {"on_read": read, "on_start": start, "on_step": step}


def _tell(report: "Report", told: Callable[[str], None]) -> None:
    for note in report.notes:
        told(f"note: {note}")
