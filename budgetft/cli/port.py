"""``budgetft port``: the plan of one GPU made into a plan of another, from the same evidence."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from budgetft.cli import options
from budgetft.cli.lines import put

if TYPE_CHECKING:
    from budgetft.search.port import Port


def port(
    plan: Annotated[Path, typer.Option("--plan", metavar="FILE", help="The plan to port, from budgetft plan.")],
    gpu: options.Gpu_ = None,
    budget: options.Budget = None,
    display: options.Display = None,
    precision: Annotated[
        Literal["keep", "native"], typer.Option(help="The plan's 16-bit type, or the one that the new GPU runs natively.")
    ] = "keep",
    probe: Annotated[
        Literal["auto", "always", "never"],
        typer.Option(
            "--trials",
            "--probe",
            help="Confirm in a few trials: auto where a CUDA GPU is here (emulated if it is another).",
            rich_help_panel=options.SEARCH,
        ),
    ] = "auto",
    model: options.PlansModel = None,
    ledger: options.Ledger = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=f"SQLite {options.CACHED}",
            help="Optuna storage.",
            rich_help_panel=options.SEARCH,
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="The plan file to write.", rich_help_panel=options.OUTPUT)
    ] = Path("ported.json"),
    quiet: options.Quiet = False,
    json_output: options.Json = False,
) -> None:
    """Port a plan to another GPU or budget: what carries over, what changes and why, and how sure that is."""
    from budgetft.api import port as port_plan
    from budgetft.cli.progress import planning
    from budgetft.plan import check_file, read_plan, write_plan

    check_file(out)
    planned, profile = read_plan(plan), options.gpu_of(gpu)
    budget_bytes, display_bytes = options.budget_and_display(budget, profile, display)
    with planning(quiet=quiet) as (on_event, _):
        ported = port_plan(
            planned,
            profile,
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


def _print_port(ported: "Port", old_gpu: str, path: str) -> None:
    """What changed and why, then the plan."""
    from budgetft.cli.show import print_plan
    from budgetft.units import format_gib

    made, there = ported.plan, ported.old_knobs_there
    put(f"ported from {old_gpu} to {made.gpu.name}")
    put(f"  carried over  {ported.carried}")
    put(f"  old knobs     {format_gib(there.process_peak_bytes)} there: {'fit' if there.fits else 'do not fit'} (predicted)")
    for change in ported.changes:
        put(f"  changed       {change.knob} {change.before} -> {change.after}: {change.reason}")
    if not ported.changes:
        put("  changed       nothing")
    put("  contract      as it was")
    predicted = format_gib(ported.predicted.process_peak_bytes)
    put(f"  uncertainty   {predicted} +- {ported.uncertainty_share:.1%} was predicted before any trial on this GPU\n")
    print_plan(made, path)
