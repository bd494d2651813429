"""``budgetft estimate --trainer``: what another trainer's own step needs, micro-batch by micro-batch."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetft.cli.colour import paint
from budgetft.cli.lines import put
from budgetft.errors import NothingFits, UsageError
from budgetft.units import GIB, format_gib
from budgetft.value import Value

if TYPE_CHECKING:
    from budgetft.export.peer_table import PeerTable, Row
    from budgetft.measure.job import Job

PANEL = "Another trainer"
Trainer = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="none",
        help="What this trainer's own step needs: trainer, trl, llamafactory, swift or unsloth.",
        rich_help_panel=PANEL,
    ),
]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        show_default="the best that fits",
        help="Its examples per forward; a table of 1 to 32 is shown anyway.",
        rich_help_panel=PANEL,
    ),
]
Liger = Annotated[bool, typer.Option("--liger", help="With Liger kernels.", rich_help_panel=PANEL)]
Attn = Annotated[
    str | None,
    typer.Option(metavar="NAME", show_default="sdpa", help="sdpa, flash_attention_2 or eager.", rich_help_panel=PANEL),
]
GradientCheckpointing = Annotated[
    bool | None,
    typer.Option(
        "--gradient-checkpointing/--no-gradient-checkpointing", help="The trainer's when left out.", rich_help_panel=PANEL
    ),
]
LoadIn4bit = Annotated[
    bool | None,
    typer.Option("--load-in-4bit/--no-load-in-4bit", help="QLoRA; the trainer's when left out.", rich_help_panel=PANEL),
]
NAME = 12


class Asked(Value):
    """The options of another trainer, as typed."""

    trainer: str | None
    micro_batch: int | None = None
    liger: bool = False
    attn: str | None = None
    gradient_checkpointing: bool | None = None
    load_in_4bit: bool | None = None

    def check(self, knobs: dict[str, Any], *, allow_adamw8bit: bool) -> None:
        """Raise ``UsageError`` for options that do not go together."""
        if self.trainer is None:
            given = [name for name, value in self.model_dump(exclude={"trainer"}).items() if value not in (None, False)]
            given += [name for name in ("gradient_checkpointing", "load_in_4bit") if getattr(self, name) is False]
            if given:
                option = f"--{given[0].replace('_', '-')}"
                raise UsageError(
                    f"{option} is of another trainer's step", hint="give --trainer, or --setting for budgetft's own"
                )
            return
        if knobs:
            raise UsageError(
                "--setting sets budgetft's own step, --trainer takes another's",
                hint="with --trainer give --micro-batch, --attn, --liger, --gradient-checkpointing or --load-in-4bit",
            )
        if allow_adamw8bit:
            raise UsageError("--allow-adamw8bit is of budgetft's own search; --trainer is estimated with AdamW in fp32")


def estimate_peer(asked: Asked, job: "Job", *, json_output: bool) -> None:
    """Print the table of a trainer. Raises ``NothingFits`` after it where the asked micro-batch does not fit, or none does."""
    from budgetft.cli.progress import waiting
    from budgetft.export.peer_table import micro_batches_shown, peer_table
    from budgetft.export.peers import setup_of

    assert asked.trainer is not None
    four_bit = asked.load_in_4bit if asked.load_in_4bit is not None else job.contract.allow_nf4 or None
    setup = setup_of(
        asked.trainer,
        job.gpu,
        job.model,
        liger=asked.liger,
        attn=asked.attn,
        gradient_checkpointing=asked.gradient_checkpointing,
        load_in_4bit=four_bit,
    )
    micro_batches_shown(job.contract.effective_batch, asked.micro_batch)
    with waiting() as tell:
        table = peer_table(setup, job, micro_batch=asked.micro_batch, on_trace=tell)
    if json_output:
        print(json.dumps(table.to_dict(), indent=2))
    else:
        print_table(table)
    _refuse_what_does_not_fit(table)


def print_table(table: "PeerTable") -> None:
    """On stdout: the answer, the table, and what to know of it."""
    setup, peer = table.setup, table.setup.peer
    put(paint(f"{peer.title} ({peer.release}) · {table.model} · {table.gpu}", "bold"))
    put(f"predicted, nothing was run; budget {format_gib(table.budget_bytes)}\n")
    _line("Settings", setup.describe())
    if table.asked is not None:
        _line(f"Micro-batch {table.asked}", _answer(table, table.row(table.asked)))
    best = "none fits" if table.best is None else f"micro-batch {table.best}: {_answer(table, table.row(table.best))}"
    if table.best != table.asked or table.best is None:
        _line("Best", best)
    put()
    put(f"  {'micro-batch':>11}  {'accumulation':>12}  {'peak GiB':>8}  {'fits':<4}  examples/s")
    for row in table.rows:
        mark = "  <- best that fits" if row.micro_batch == table.best else ""
        mark += "  <- asked" if row.micro_batch == table.asked and len(table.rows) > 1 else ""
        put(f"  {row.micro_batch:>11}  {row.knobs.grad_accum:>12}  {_cells(row)}{mark}")
    put()
    for kind in ("approximated", "assumed", "as traced"):
        for note in table.notes:
            if note.kind == kind:
                _line(kind.capitalize(), note.text)
    _line("Versions", f"{peer.release} runs {peer.runs}; traced with {table.traced_with}")
    _line("Margin", f"{table.uncertainty_share:.0%} of the peak is left free; approximations come on top of it")
    _line("Next", "budgetft plan: the fastest that fits with budgetft's own step")


def _line(name: str, text: str) -> None:
    put(f"  {name:<{NAME}} {text}", hang=NAME + 3)


def _answer(table: "PeerTable", row: "Row") -> str:
    estimate, margin = row.estimate, round(row.estimate.process_peak_bytes * table.uncertainty_share)
    fits = "fits" if estimate.fits else "does not fit"
    peak = f"{estimate.process_peak_bytes / GIB:.2f} of {format_gib(table.budget_bytes)} (+- {format_gib(margin)}), {fits}"
    return f"{peak}; {estimate.speed_text(' examples/s')} (predicted)"


def _cells(row: "Row") -> str:
    estimate = row.estimate
    fits = f"{'yes' if estimate.fits else 'no':<4}"
    return f"{estimate.process_peak_bytes / GIB:>8.2f}  {paint(fits, 'good' if estimate.fits else 'bad')}  " + (
        estimate.speed_text("") if estimate.samples_per_second else "unknown"
    )


def _refuse_what_does_not_fit(table: "PeerTable") -> None:
    asked = None if table.asked is None else table.row(table.asked)
    if table.best is not None and (asked is None or asked.estimate.fits):
        return
    where = f"{format_gib(table.budget_bytes)} on {table.gpu}"
    if asked is not None and table.best is not None:
        best = table.row(table.best)
        raise NothingFits(
            f"micro-batch {table.asked} does not fit {where} (predicted)",
            hint=f"--micro-batch {table.best}, with {best.knobs.grad_accum} accumulation steps, does",
        )
    least, setup = table.rows[0].estimate.process_peak_bytes, table.setup
    margin = f", less than the margin of {table.uncertainty_share:.0%} below it" if least <= table.budget_bytes else ""
    ways = [
        "--gradient-checkpointing" if not setup.gradient_checkpointing else "",
        "--load-in-4bit" if not setup.load_in_4bit else "",
        "a smaller --image or --max-pixels",
        "budgetft plan, which needs less",
    ]
    needs = f"the smallest needs {format_gib(least)} (predicted){margin}"
    raise NothingFits(
        f"{setup.peer.title} does not fit {where} at any micro-batch: {needs}",
        hint=f"try {', '.join(filter(None, ways))}",
    )
