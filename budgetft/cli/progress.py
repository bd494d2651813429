"""Planning as it goes: probe by probe, plain lines in a file, the same lines over a live one on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from budgetft.duration import duration_text
from budgetft.knobs import Knobs, describe, differences, is_stock, shown
from budgetft.outcome import Estimate, Outcome
from budgetft.units import format_gib

if TYPE_CHECKING:
    from rich.status import Status

    from budgetft.search.events import Event

Say = Callable[[str], None]


def say(text: str) -> None:
    """One line on stderr, at once: progress never mixes with results."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def waiting() -> Iterator[Say]:
    """What to call with what is waited for: a spinner beside it on a terminal, else a line each. Nothing until the first."""
    if not sys.stderr.isatty():
        yield say
        return
    with ExitStack() as stack:
        shown: list[Status] = []

        def show(text: str) -> None:
            if not shown:
                from rich.console import Console

                shown.append(stack.enter_context(Console(stderr=True).status(text)))
            shown[0].update(text)

        yield show


@contextmanager
def spinning(text: str) -> Iterator[None]:
    """On a terminal, a spinner beside ``text`` during the block; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield
        return
    with waiting() as tell:
        tell(text)
        yield


@contextmanager
def planning(*, quiet: bool) -> Iterator[tuple["Callable[[Event], None]", Say]]:
    """What to call with events and with notes. A terminal also sees what is being probed, and for how long."""
    lines = ProbeLines()
    if quiet:
        yield (lambda event: None), (lambda text: None)
    elif not sys.stderr.isatty():
        yield (lambda event: say(lines.line(event))), say
    else:
        with _live(lines) as calls:
            yield calls


@contextmanager
def _live(lines: "ProbeLines") -> Iterator[tuple["Callable[[Event], None]", Say]]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("planning", total=None)

        def note(text: str) -> None:
            bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

        def show(event: "Event") -> None:
            text = lines.line(event)
            note(text)
            if event.outcome is None:
                bar.reset(
                    task, description=text if len(text) < bar.console.width - 14 else text[: bar.console.width - 17] + "..."
                )

        yield show, note


@dataclass
class ProbeLines:
    """Events as lines: what changed from the probe before, predicted beside found, the best so far, what may still come."""

    _before: Knobs | None = None
    _best: tuple[float, int] | None = None
    """Samples per second, and which probe."""
    _seconds: list[float] = field(default_factory=list)

    def line(self, event: "Event") -> str:
        """One line; a probe that is only recalled has no line of its own beginning, so it tells its knobs too."""
        if event.knobs is None:
            return f"[{event.stage}] {event.text}"
        head = f"[{event.stage}] {event.number}/{event.most}:"
        if event.outcome is None:
            return f"{head} {self._change(event.knobs)}; {_predicted(event.estimate)}"
        if event.stage == "cost":
            return f"{head} {event.text}: {_found(event.outcome, event.estimate)}"
        known = f" {self._change(event.knobs)}: known," if event.from_ledger else ""
        self._learn(event, event.outcome)
        rest = "" if event.stage == "confirm" else self._rest(event)
        return f"{head}{known} {_found(event.outcome, event.estimate)}{rest}"

    def _change(self, knobs: Knobs) -> str:
        if self._before is None:
            return describe(knobs)
        before = self._before
        changes = {name: value for name, value in differences(knobs, before).items() if name != "grad_accum"}
        told = ", ".join(f"{name} {shown(getattr(before, name))} to {shown(value)}" for name, value in changes.items())
        return told or "the same again, in a fresh process"

    def _learn(self, event: "Event", outcome: Outcome) -> None:
        self._before = outcome.knobs
        if not event.from_ledger:
            self._seconds.append(outcome.wall_seconds)
        speed = outcome.samples_per_second or 0.0
        if outcome.fits and not outcome.alloc_retries and not is_stock(outcome.knobs):
            self._best = max(self._best or (0.0, 0), (speed, event.number))

    def _rest(self, event: "Event") -> str:
        text = "" if self._best is None else f"; best so far {self._best[0]:.2f} examples/s (probe {self._best[1]})"
        left = event.most - event.number
        if left > 0:
            text += f"; at most {left} more"
            text += f", {duration_text(left * fmean(self._seconds))}" if self._seconds else ""
        return text


def _predicted(estimate: Estimate | None) -> str:
    if estimate is None:
        return "no prediction"
    return f"predicted {estimate.speed_text()}, {format_gib(estimate.process_peak_bytes)}"


def _found(outcome: Outcome, estimate: Estimate | None) -> str:
    predicted = format_gib(estimate.process_peak_bytes) if estimate else "-"
    if outcome.samples_per_second is None:
        where = f" in {outcome.phase}" if outcome.phase else ""
        return f"{outcome.status}{where}; predicted {predicted}: {outcome.detail[:160]}"
    if estimate and outcome.process_peak_bytes:
        predicted += f", {outcome.process_peak_bytes / estimate.process_peak_bytes - 1:+.1%}"
    kind = "on the CPU" if outcome.evidence == "predicted" else outcome.evidence
    retries = f", {outcome.alloc_retries} allocator retries" if outcome.alloc_retries else ""
    return (
        f"{kind} {outcome.samples_per_second:.2f} examples/s, {format_gib(outcome.process_peak_bytes)} (predicted {predicted})"
        f"{retries}, {outcome.wall_seconds:.0f} s"
    )
