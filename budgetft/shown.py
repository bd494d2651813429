"""How results show themselves: one line, a few lines, or a small table in a notebook. Colours are the reader's own."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from budgetft.asked import whole
from budgetft.contract import Contract
from budgetft.duration import RunTime, run_time
from budgetft.errors import UsageError
from budgetft.knobs import Knobs, describe
from budgetft.outcome import Estimate
from budgetft.units import GIB, counted
from budgetft.wording import fits_words, pixels_words, room_words, settings_words
from budgetft.workload import Shape

WIDEST = 100
"""Columns of a terminal that lines are broken for."""
Rows = Sequence[tuple[str, str]]
_EDGE = "1px solid rgba(128,128,128,.35)"
"""Grey enough for a white page, and for a black one."""
_CELL = f"text-align:left;vertical-align:top;padding:3px 12px 3px 0;border:0;border-top:{_EDGE};background:none;color:inherit"


class Shown:
    """The part of a value with knobs and an estimate that people look at first."""

    if TYPE_CHECKING:
        knobs: Knobs
        estimate: Estimate

    @property
    def peak_gib(self) -> float:
        """Peak GPU memory of the whole process, as nvidia-smi shows it, in GiB."""
        return self.estimate.process_peak_bytes / GIB

    @property
    def fits(self) -> bool:
        """Whether the peak stays inside the budget, the uncertainty of the prediction left as a margin."""
        return self.estimate.fits

    @property
    def examples_per_second(self) -> float | None:
        """The middle of the range; None where the speed of the GPU is not known."""
        return self.estimate.samples_per_second

    @property
    def examples_per_second_range(self) -> tuple[float, float] | None:
        """Both ends of the range that holds the true speed with 80 %; None where it was measured, or is not known."""
        low, high = self.estimate.speed_low, self.estimate.speed_high
        return None if low is None or high is None else (low, high)

    def _title(self) -> str:
        return ""

    def _verdict(self) -> str:
        """Memory and speed in one line, with where the numbers are from."""
        budget, share = self._limits()
        room = room_words(self.estimate, budget, share)
        return f"{fits_words(self.estimate, budget)}, {room}, {self.estimate.speed_text()}"

    def _limits(self) -> tuple[int | None, float | None]:
        """The budget in bytes, and the half-width of the interval around the peak as a share of it, where they are known."""
        return None, None

    def _rows(self) -> Rows:
        return (("settings", "; ".join(settings_words(self.knobs, None))),)

    def __repr__(self) -> str:
        title = self._title()
        return f"<{title}: {self._verdict()}>" if title else f"<{self._verdict()}; {describe(self.knobs)}>"

    def __str__(self) -> str:
        title = self._title()
        lines = broken(f"{title}: {self._verdict()}" if title else self._verdict(), hang=2)
        for name, text in self._rows():
            lines += broken(f"  {name:<14}{text}", hang=16)
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return table(self._title(), self._verdict(), self._rows())


def time_of(estimate: Estimate, contract: Contract, examples: int | None, epochs: int | None) -> RunTime:
    """How long ``epochs`` over ``examples`` take; the contract's epochs when None.

    Raises ``UsageError`` where the number of examples is not known and not given, or the speed is not known.
    """
    if examples is None:
        raise UsageError("how many examples there are is not known", hint="say it: .hours(examples=2000, epochs=3)")
    examples = whole("examples", examples, most=10**12)
    epochs = contract.epochs if epochs is None else whole("epochs", epochs, most=10**6)
    found = run_time(estimate, examples=examples, epochs=epochs, effective_batch=contract.effective_batch)
    if found is None:
        raise UsageError("the time is not known, as the speed is not: the rates of this GPU are not in its profile")
    return found


def contract_text(contract: Contract) -> str:
    """What is learned, in one line: the fields that people ask for, and others that are not at their defaults."""
    unusual = "".join(f", {name} {value}".removesuffix(" True") for name, value in contract.unusual.items())
    return (
        f"LoRA rank {contract.rank}, alpha {contract.alpha}, effective batch {contract.effective_batch},"
        f" learning rate {contract.learning_rate:g}, {counted(contract.epochs, 'epoch')},"
        f" images up to {pixels_words(contract.max_pixels)},"
        f" {contract.max_length:,} tokens{unusual}"
    )


def shape_text(shape: Shape) -> str:
    """An example in one line: its images as the model sees them, and its tokens."""
    sizes = list(dict.fromkeys(f"{width}x{height}" for width, height in shape.images))
    told = ", ".join(sizes[:3]) + (", ..." if len(sizes) > 3 else "")
    count = f"{len(shape.images)} image{'' if len(shape.images) == 1 else 's'} of {told}" if sizes else "no image"
    if shape.frames is not None:
        count = f"a video of {shape.frames} frames of {told}"
    return f"{count}, {shape.text_tokens} text tokens, {shape.supervised_tokens} of them labels"


def broken(line: str, *, hang: int) -> list[str]:
    """``line`` in lines of at most ``WIDEST`` columns, broken at spaces; all but the first begin at column ``hang``."""
    lines, first = [], True
    while len(line) > WIDEST and (cut := line.rfind(" ", hang + 1, WIDEST + 1)) > 0:
        lines.append(line[:cut])
        line, first = " " * hang + line[cut + 1 :], False
    return [*lines, line] if line.strip() or first else lines


def table(title: str, lead: str, rows: Iterable[tuple[str, str]]) -> str:
    """A small HTML table for a notebook. All text is escaped; it takes the colours and the font of the page around it."""
    head = f"<b>{escape(title)}</b><br>{escape(lead)}" if title else f"<b>{escape(lead)}</b>"
    body = "".join(
        f'<tr style="background:none"><th style="{_CELL};font-weight:normal;opacity:.7;white-space:nowrap">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(text)}</td></tr>'
        for name, text in rows
    )
    style = "border-collapse:collapse;width:100%;margin:0;font-size:.92em;border:0"
    return (
        f'<div style="max-width:52em;color:inherit;line-height:1.45"><div style="padding:4px 0">{head}</div>'
        f'<table style="{style}"><tbody>{body}</tbody></table></div>'
    )
