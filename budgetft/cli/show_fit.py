"""The table of ``budgetft fit`` for a terminal of 80 columns: one line for each model and method, or for each GPU."""

from collections.abc import Sequence

from budgetft.cli.colour import paint
from budgetft.cli.lines import put
from budgetft.duration import RunTime
from budgetft.gpu import Gpu
from budgetft.units import counted, format_gib
from budgetft.what_fits import METHODS, FitCell, FitRow, FitTable, number_text, shrunk_text, span_text

FEW = 3
"""Names that are written out."""

GAP = "  "
TIME = 8
"""Columns of a time such as ``9.7-15h``."""


def print_fit(
    table: FitTable, gpus: Sequence[Gpu], *, price_per_hour: float | None, page: str | None, others: Sequence[str] = ()
) -> None:
    """The whole answer on stdout: what it is of, the table, how to read it, what to run next."""
    for line in _title(table, gpus):
        put(line)
    put()
    if len(gpus) > 1 and len(table.asked.images) == 1:
        lines = _by_gpu(table, price_per_hour)
    elif len(table.asked.images) > 1:
        lines = _by_size(table, several=len(gpus) > 1)
    else:
        lines = _one_size(table, price_per_hour, several=len(gpus) > 1)
    for line in lines:
        print(line)
    put()
    for line in _legend(table, price_per_hour):
        put(line)
    if page is not None:
        put(f"written to {page}")
    if others:
        asks = "--model NAME asks for one, minutes the first time"
        few = f"not listed: {', '.join(others)} ({asks})"
        put(few if len(others) <= FEW else f"not listed: {len(others)} others; {asks}")
    put(_next(table))


def _title(table: FitTable, gpus: Sequence[Gpu]) -> list[str]:
    asked, models = table.asked, table.models
    if len(gpus) == 1:
        budget = table.rows[0].budget_bytes
        name = f"{gpus[0].title.removeprefix('NVIDIA ')}: {format_gib(budget)} of {format_gib(gpus[0].memory_bytes)} to use"
    else:
        name = f"{models[0]} on {len(gpus)} GPUs"
    calibrated = [row.calibrated for row in table.rows]
    kind = "GPU not calibrated" if not any(calibrated) else "GPU calibrated" if all(calibrated) else "most GPUs not calibrated"
    lines = [paint(name, "bold"), f"predicted, nothing was run; {kind}"]
    example = f"an example is one picture and {asked.text_tokens} text tokens"
    return [*lines, f"LoRA rank {asked.rank}, effective batch {asked.effective_batch}; {example}"]


def _by_size(table: FitTable, *, several: bool) -> list[str]:
    """A column for each picture."""
    names = _names(table.rows, several=several)
    wide, headings = max(map(len, names)), [f"{width}x{height}" for width, height in table.asked.images]
    head = [" " * (wide + 6), *(f"{heading:>14}" for heading in headings), f"{'largest':>9}"]
    under = [" " * (wide + 6), *(f"{'GiB':>5} {'time':>{TIME}}" for _ in headings), f"{'picture':>9}"]
    lines = [paint(GAP.join(parts).rstrip(), "dim") for parts in (head, under)]
    for name, row in zip(names, table.rows, strict=True):
        cells = [_cell(cell) for cell in row.cells]
        lines.append(GAP.join([f"{name:<{wide}} {row.method:<5}", *cells, _largest(row)]))
    return lines


def _one_size(table: FitTable, price: float | None, *, several: bool) -> list[str]:
    """One picture, with the speed and what it costs."""
    names = _names(table.rows, several=several)
    wide = max(map(len, names))
    cost = [] if price is None else [f"{'cost':>10}"]
    (size,) = table.asked.images
    head = [" " * (wide + 6), f"{'peak':>8}", f"{'examples/s':>10}", f"{'time':>{TIME}}", *cost, f"{'largest':>9}"]
    lines = [f"pictures of {size[0]}x{size[1]}", "", paint(GAP.join(head), "dim")]
    for name, row in zip(names, table.rows, strict=True):
        cell = row.cells[0]
        costs = [] if price is None else [f"{_costs(cell.time, price):>10}"]
        speed = _speeds(cell) if cell.fits else "no"
        parts = [f"{cell.peak_gib:>4.1f} GiB", f"{speed:>10}", f"{span_text(cell.time):>{TIME}}", *costs]
        shown = paint(GAP.join(parts), "good" if cell.fits else "bad")
        lines.append(GAP.join([f"{name:<{wide}} {row.method:<5}", shown, _largest(row)]))
    return lines


def _by_gpu(table: FitTable, price: float | None) -> list[str]:
    """One model and picture: a line for each GPU, with both methods."""
    wide = max(len(row.gpu) for row in table.rows)
    (size,) = table.asked.images
    first = [" " * wide, *(f"{method:^{14 + 2 + 9}}" for method in METHODS)]
    head = [" " * wide, *(f"{'GiB':>5} {'time' if price is None else 'cost':>{TIME}}{GAP}{'largest':>9}" for _ in METHODS)]
    lines = [f"pictures of {size[0]}x{size[1]}", "", *(paint(GAP.join(parts).rstrip(), "dim") for parts in (first, head))]
    for gpu in table.gpus:
        rows = [table.row(table.models[0], method, gpu) for method in METHODS]
        lines.append(GAP.join([f"{gpu:<{wide}}", *(f"{_cell(row.cells[0], price)}{GAP}{_largest(row)}" for row in rows)]))
    return lines


def _names(rows: Sequence[FitRow], *, several: bool) -> list[str]:
    if not several:
        return [row.model for row in rows]
    models = {row.model for row in rows}
    return [f"{row.gpu} {row.model}" if len(models) > 1 else row.gpu for row in rows]


def _cell(cell: FitCell, price: float | None = None) -> str:
    took = span_text(cell.time) if price is None else _costs(cell.time, price)
    text = f"{cell.peak_gib:>5.1f} {took if cell.fits else 'no':>{TIME}}"
    return paint(text, "good" if cell.fits else "bad")


def _largest(row: FitRow) -> str:
    if row.largest is None:
        return f"{'none':>9}"
    width, height = row.largest.image
    return f"{f'{width}x{height}':>9}" + ("*" if row.largest_of_model else "")


def _speeds(cell: FitCell) -> str:
    if cell.examples_per_second is None:
        return "-"
    if cell.speed_low is None or cell.speed_high is None:
        return number_text(cell.examples_per_second)
    return f"{number_text(cell.speed_low)}-{number_text(cell.speed_high)}"


def _costs(time: RunTime | None, price: float) -> str:
    if time is None:
        return "-"
    middle, low, high = time.price(price)
    return f"{middle:.2f}" if low is None or high is None else f"{low:.2f}-{high:.2f}"


def _legend(table: FitTable, price: float | None) -> list[str]:
    asked = table.asked
    run = f"{counted(asked.epochs, 'epoch')} of {asked.examples:,} examples"
    lines = [
        "GiB   peak GPU memory of the fastest settings that fit",
        "no    does not fit; the GiB are then the least that is possible",
        f"time  {run}: m minutes, h hours, d days; 80 % likely",
    ]
    if price is not None:
        lines.append(f"cost  of the same, at {price:g} an hour")
    lines.append("largest picture that fits, in squares; *: the model takes no larger")
    return [*lines, *shrunk_text(table)]


def _next(table: FitTable) -> str:
    """The command for the best that fits: the largest model, rather in 16 bits than in four."""
    fitting = [row for row in table.rows if row.cells[0].fits]
    if not fitting:
        least = min(table.rows, key=lambda row: row.cells[0].peak_bytes)
        size = "x".join(map(str, least.cells[0].image))
        return f"nothing fits: {least.model} by {least.method} takes least, {least.cells[0].peak_gib:.1f} GiB at {size}"
    best = max(fitting, key=lambda row: (row.parameters or 0, row.method == "LoRA", -row.memory_bytes))
    four = " --allow-nf4" if best.method == "QLoRA" else ""
    return f"next: budgetft plan --gpu {best.gpu} --model {best.model}{four} --data YOUR_DATA"
