"""The page of ``budgetft fit``: one file, sortable without a network, light and dark, readable on a phone."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from budgetft.gpu import Gpu
from budgetft.plan import write_text_atomically
from budgetft.report.html import document
from budgetft.units import GIB, format_gib
from budgetft.what_fits import FitCell, FitRow, FitTable, number_text, shrunk_text, span_text


def write_fit_page(table: FitTable, gpus: Sequence[Gpu], path: Path, *, price_per_hour: float | None = None) -> None:
    """Write whole or not at all. Raises ``UsageError`` where ``path`` cannot be written."""
    write_text_atomically(path, fit_page(table, gpus, price_per_hour=price_per_hour))


def fit_page(table: FitTable, gpus: Sequence[Gpu], *, price_per_hour: float | None = None) -> str:
    """The whole page. Every text is escaped; it loads nothing, and the one script that may run is the one in it."""
    asked = table.asked
    if len(gpus) == 1:
        title = f"What fits on {gpus[0].title.removeprefix('NVIDIA ')}?"
        lead = f"{format_gib(table.rows[0].budget_bytes)} of {format_gib(gpus[0].memory_bytes)} to use."
    else:
        title, lead = f"Where does {table.models[0]} fit?", f"{len(gpus)} GPUs, each with its default budget."
    fitting = sum(row.cells[0].fits for row in table.rows)
    size = _size(asked.images[0])
    body = [
        f'<header><h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)} {fitting} of {len(table.rows)} fit with pictures'
        f" of {size}.</p>",
        f'<p class="note">Predicted, nothing was run. LoRA rank {asked.rank}, effective batch {asked.effective_batch}; an'
        f" example is one picture and {asked.text_tokens} text tokens; time is that of {asked.epochs:,} x"
        f" {asked.examples:,} examples, the range that is 80 % likely. A click on a heading sorts.</p></header>",
        "<section>",
        _table(table, several=len(gpus) > 1, price=price_per_hour),
        "</section>",
        '<p class="note">Red: does not fit; the number is the least that it takes. Largest: the largest square picture that'
        f" fits; * the model takes no larger. {escape('; '.join(shrunk_text(table)))}</p>",
    ]
    return document(title, "\n".join(body), "style.css", "fit.css", script=_script())


def _script() -> str:
    return Path(__file__).with_name("fit.js").read_text(encoding="utf-8")


def _size(image: tuple[int, int]) -> str:
    return f"{image[0]}x{image[1]}"


def _table(table: FitTable, *, several: bool, price: float | None) -> str:
    first = ["GPU"] if several else []
    fixed = [*first, *([] if several and len(table.models) == 1 else ["model"]), "method"]
    head = "".join(f'<th aria-sort="none"><button>{escape(name)}</button></th>' for name in fixed)
    head += "".join(
        f'<th class="number" aria-sort="none"><button>{_size(image)}<br><small>GiB</small></button></th>'
        f'<th class="number" aria-sort="none"><button>{"time" if price is None else "cost"}</button></th>'
        f'<th class="number speed" aria-sort="none"><button>examples/s</button></th>'
        for image in table.asked.images
    )
    head += '<th class="number" aria-sort="none"><button>largest</button></th>'
    rows = "\n".join(_row(row, len(fixed), table, several=several, price=price) for row in table.rows)
    return f'<div class="scroll"><table class="fit">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'


def _row(row: FitRow, fixed: int, table: FitTable, *, several: bool, price: float | None) -> str:
    names = [(row.gpu, row.memory_bytes)] if several else []
    if fixed > 1 + len(names):
        names.append((row.model, row.parameters or 0))
    names.append((row.method, 0 if row.method == "LoRA" else 1))
    cells = "".join(f'<td data-sort="{value}">{escape(text)}</td>' for text, value in names)
    cells += "".join(_cells(cell, image, price) for cell, image in zip(row.cells, table.asked.images, strict=True))
    largest = row.largest
    pixels = 0 if largest is None else largest.image[0] * largest.image[1]
    text = "none" if largest is None else _size(largest.image) + ("*" if row.largest_of_model else "")
    return f'<tr>{cells}<td class="number" data-name="largest" data-sort="{pixels}">{text}</td></tr>'


def _cells(cell: FitCell, image: tuple[int, int], price: float | None) -> str:
    kind = "ok" if cell.fits else "failed"
    peak = (
        f'<td class="number {kind}" data-name="{_size(image)}" data-sort="{cell.peak_bytes}">{cell.peak_bytes / GIB:.1f}</td>'
    )
    if not cell.fits:
        return f'{peak}<td class="number failed" data-sort="inf">no</td><td class="number speed" data-sort="-1"></td>'
    seconds = "inf" if cell.time is None else f"{cell.time.seconds:.0f}"
    shown = span_text(cell.time) if price is None else "-" if cell.time is None else cell.time.price_text(price)
    speed = cell.examples_per_second
    between = "-" if speed is None else number_text(speed)
    if cell.speed_low is not None and cell.speed_high is not None:
        between = f"{number_text(cell.speed_low)} to {number_text(cell.speed_high)}"
    return (
        f'{peak}<td class="number" data-sort="{seconds}">{escape(shown)}</td>'
        f'<td class="number speed" data-sort="{speed or -1}">{between}</td>'
    )
