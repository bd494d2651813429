"""``budgetft port``: the plan of one card made into a plan of another, from the same evidence."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from budgetft.cli import options

if TYPE_CHECKING:
    from budgetft.search.port import Port


def port(
    plan: Annotated[Path, typer.Option("--plan", help="The plan to port, as budgetft plan wrote it.")],
    gpu: options.Gpu_ = None,
    budget: options.Budget = None,
    display: options.Display = None,
    precision: Annotated[
        Literal["keep", "native"], typer.Option(help="The plan's 16-bit type, or the one that the new card runs natively.")
    ] = "keep",
    probe: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(help="Confirm in a few probes: auto when a CUDA card is here (emulated if it is another), always, never."),
    ] = "auto",
    model: Annotated[str | None, typer.Option(help="Where the plan's model is now; as in the plan when left out.")] = None,
    ledger: Annotated[Path | None, typer.Option(help="Ledger to learn from and to add to; in the cache when left out.")] = None,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL; SQLite in the cache when left out.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The plan file to write.")] = Path("ported.json"),
    quiet: options.Quiet = False,
    json_output: options.Json = False,
) -> None:
    """Port a plan to another card or budget: what carries over, what changes and why, and how sure that is."""
    from budgetft.api import port as port_plan
    from budgetft.cli.progress import planning
    from budgetft.plan import check_file, read_plan, write_plan

    check_file(out)
    planned, card = read_plan(plan), options.gpu_of(gpu)
    budget_bytes, display_bytes = options.budget_and_display(budget, card, display)
    with planning(quiet=quiet) as (on_event, _):
        ported = port_plan(
            planned,
            card,
            budget=budget_bytes,
            display_bytes=display_bytes,
            precision=precision,
            probe=probe,
            model=model,
            ledger=ledger,
            storage=storage,
            on_event=on_event,
        )
    write_plan(ported.plan, out)
    if json_output:
        print(ported.model_dump_json(indent=2))
    else:
        _print_port(ported, planned.gpu.name, str(out))


def _print_port(ported: "Port", old_card: str, path: str) -> None:
    """What changed and why, then the plan."""
    from budgetft.cli.show import print_plan
    from budgetft.units import format_gib

    made, there = ported.plan, ported.old_knobs_there
    print(f"ported from {old_card} to {made.gpu.name}")
    print(f"  carried over  {ported.carried}")
    print(f"  old knobs     {format_gib(there.process_peak_bytes)} there: {'fit' if there.fits else 'do not fit'} (predicted)")
    for change in ported.changes:
        print(f"  changed       {change.knob} {change.before} -> {change.after}: {change.reason}")
    if not ported.changes:
        print("  changed       nothing")
    print("  contract      as it was")
    predicted = format_gib(ported.predicted.process_peak_bytes)
    print(f"  uncertainty   {predicted} +- {ported.uncertainty_share:.1%} was predicted before any probe for this card\n")
    print_plan(made, path)
