"""Progress of a call from Python: one line that changes, in a notebook cell or on a terminal, and nothing in a script."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from budgetft.duration import duration_text
from budgetft.errors import UsageError
from budgetft.units import format_gib

if TYPE_CHECKING:
    from budgetft.search.events import Event
    from budgetft.train.record import Record

Tell = Callable[[str], None]
LONGEST = 160


def in_notebook() -> bool:
    """Whether this process is a kernel of IPython's, such as that of a Jupyter notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and getattr(shell, "kernel", None) is not None


@contextmanager
def telling(progress: bool | None, what: str) -> Iterator[Tell]:
    """What to call with the state of ``what``, in words. None: shown in a notebook and on a terminal; True: elsewhere in lines.

    The line goes to the display of a notebook, else to stderr; it is gone when all is done.
    """
    if progress is not None and not isinstance(progress, bool):
        raise UsageError(f"progress must be True, False or None, not {progress!r:.60}")
    if progress is not False and in_notebook():
        with _cell(what) as tell:
            yield tell
    elif progress is not False and sys.stderr.isatty():
        with _terminal(what) as tell:
            yield tell
    elif progress:
        yield lambda text: print(f"{what}: {text}", file=sys.stderr, flush=True)
    else:
        yield lambda text: None


@contextmanager
def _cell(what: str) -> Iterator[Tell]:
    from IPython.display import display  # pyright: ignore[reportMissingImports]

    started, shown = monotonic(), []

    def show(text: str) -> None:
        bundle = {"text/plain": text}
        if shown:
            shown[0].update(bundle, raw=True)
        else:
            shown.append(display(bundle, raw=True, display_id=True))

    def tell(text: str) -> None:
        show(f"{what}: {_cut(text)} ({duration_text(monotonic() - started)})")

    try:
        yield tell
    finally:
        if shown:
            show("")


@contextmanager
def _terminal(what: str) -> Iterator[Tell]:
    """A spinner, so that a long wait has a sign of life; it comes with the first text."""
    from rich.console import Console
    from rich.text import Text

    console, shown = Console(stderr=True), []

    def tell(text: str) -> None:
        line = Text(f"{what}: {text}", overflow="ellipsis", no_wrap=True)
        line.truncate(max(20, console.width - 4), overflow="ellipsis")
        if shown:
            shown[0].update(line)
        else:
            shown.append(console.status(line))
            shown[0].start()

    try:
        yield tell
    finally:
        if shown:
            shown[0].stop()


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def event_text(event: "Event") -> str:
    """Where planning is: which probe of how many, and what it found."""
    head = f"{event.stage} {event.number} of at most {event.most}" if event.most else event.stage
    if event.outcome is not None:
        found = event.outcome
        speed = "" if found.samples_per_second is None else f"{found.samples_per_second:.2f} examples/s, "
        return f"{head}: {found.status}, {speed}{format_gib(found.process_peak_bytes)} ({found.evidence})"
    if event.knobs is not None:
        return f"{head}: micro-batch {event.knobs.micro_batch}, {event.knobs.checkpointed_layers} layers checkpointed"
    return f"{head}: {event.text}" if event.text else head


def record_text(record: "Record") -> str:
    """Where training is."""
    loss = "loss not finite" if record.loss is None else f"loss {record.loss:.3f}"
    left = (record.steps - record.step) * record.seconds
    rest = f", {duration_text(left)} left" if left else ""
    return f"step {record.step} of {record.steps}, {loss}, {record.samples_per_second:.2f} examples/s{rest}"


def both(tell: Callable[[Any], None], given: Callable[[Any], None] | None) -> Callable[[Any], None]:
    """One call for two listeners: the line, and the caller's own."""

    def call(told: Any) -> None:
        tell(told)
        if given is not None:
            given(told)

    return call
