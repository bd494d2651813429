"""``budgetft gpus``: the cards that can be planned for, and where each of their figures is from."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from budgetft.cli import names
from budgetft.errors import UsageError
from budgetft.gpu import Gpu, gpu_names, load_gpu
from budgetft.units import format_gib

if TYPE_CHECKING:
    from budgetft.outcome import Stack

# What the list shows of a card: the key in the JSON object, and a heading that leaves it within 80 columns.
_COLUMNS = {
    "memory_bytes": "memory",
    "budget_bytes": "budget",
    "compute_capability": "cc",
    "memory_bandwidth_gb_per_s": "GB/s",
    "fp16_tflops": "TFLOP/s",
    "base_precision": "type",
    "flash_attention": "flash",
}


def gpus(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", show_default="all", help="A GPU, or a TOML file.", autocompletion=names.gpus),
    ] = None,
    detect: Annotated[bool, typer.Option("--detect", help="Measure this machine's GPU and write its profile.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine's GPU for some minutes and write its calibration.")
    ] = False,
    add: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="none", help="Use this calibration from now on, if it is plausible."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default="NAME.toml or NAME.json", help="With --detect or --calibrate: the file to write."
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """List the GPUs that can be planned for, or show one with the source of each figure."""
    if sum((detect, calibrate, add is not None)) > 1:
        raise UsageError("--detect, --calibrate and --add are three commands; give one of them")
    if add is not None:
        _add(add)
    elif calibrate:
        _calibrate(name, out)
    elif detect:
        if name is not None:
            raise UsageError(f"--detect measures the card at hand; leave {name!r} out")
        _detect(out, json_output)
    elif out is not None:
        raise UsageError("--out goes with --detect or --calibrate")
    elif name is None:
        rows = [describe(load_gpu(known)) for known in gpu_names()]
        _print_json({"gpus": rows}) if json_output else _print_all(rows)
    else:
        row = describe(load_gpu(name))
        _print_json(row) if json_output else _print_one(row)


def _detect(out: Path | None, json_output: bool) -> None:
    from budgetft.measure.detect import detect, profile_of, write_profile

    gpu = profile_of(detect())
    path = out or Path(f"{gpu.name}.toml")
    write_profile(gpu.replace(name=path.stem), path)
    row = describe(load_gpu(str(path)))
    _print_json(row) if json_output else _print_one(row)
    _keep_machine(load_gpu(str(path)))
    print(f"written to {path}; next: budgetft plan --gpu {path}", file=sys.stderr)


def _keep_machine(gpu: Gpu) -> None:
    """Measure launches, products and copies too, for every estimate and plan to come here; without them a profile is one."""
    from budgetft.errors import BudgetftError
    from budgetft.measure.child import current_stack
    from budgetft.predict.machine import measure_machine

    try:
        for warning in measure_machine(current_stack("cuda"), gpu).warnings():
            print(f"{warning}: is the GPU shared, or throttling?", file=sys.stderr)
    except BudgetftError as error:
        print(error.message, file=sys.stderr)


def _add(path: Path) -> None:
    from budgetft.predict.calibrate import add_calibration

    found = add_calibration(path)
    print(f"calibration of {found.card} ({found.source}) is used from now on; next: budgetft estimate --gpu {found.card}")


def _calibrate(name: str | None, out: Path | None) -> None:
    from budgetft.cli.progress import planning
    from budgetft.measure.probe import Prober
    from budgetft.predict.calibrate import add_calibration, write_calibration
    from budgetft.predict.machine import known_machine, measure_machine
    from budgetft.search.calibrate_gpu import calibrate, calibration_job

    gpu, stack = _at_hand(name)
    path = out or Path(f"{gpu.name}.json")
    if path.exists():
        raise UsageError(f"{path} exists", hint="choose another --out")
    with planning(quiet=False) as (event, note):
        note("measuring the GPU and its host, some ten seconds; then some probes, under five minutes in all")
        machine = known_machine(stack) or measure_machine(stack, gpu)
        for warning in machine.warnings():
            note(f"{warning}: is the GPU shared, or throttling? calibrate again when it is idle")
        with Prober(calibration_job(gpu), stack=stack) as prober:
            made, _ = calibrate(gpu, stack, machine, prober, on_event=event)
    write_calibration(made, path)
    if name is None:
        add_calibration(path)
    print(f"written to {path}, and used here from now on; CONTRIBUTING.md says how to share it")


def _at_hand(name: str | None) -> "tuple[Gpu, Stack]":
    """The profile of the card at hand, or ``name``, which must be of it, and the software."""
    import os

    from budgetft.cards import first_visible, memory_of
    from budgetft.measure.child import current_stack

    stack = current_stack("cuda")  # raises where there is no card
    card = first_visible(os.environ)
    assert card is not None
    known = [load_gpu(name)] if name is not None else [load_gpu(each) for each in gpu_names()]
    found = next((gpu for gpu in known if gpu.is_card(card.name, memory_of(card))), None)
    if found is None:
        wanted = "is not in the list" if name is None else f"is not {name}"
        raise UsageError(
            f"{card.name} {wanted}",
            hint="budgetft gpus --detect writes a profile of it; then budgetft gpus NAME.toml --calibrate",
        )
    return found, stack


def describe(gpu: Gpu) -> dict[str, Any]:
    """The card as a JSON object: its profile, and what follows from it in bytes."""
    derived = {
        "memory_bytes": gpu.memory_bytes,
        "budget_bytes": gpu.budget_bytes,
        "base_precision": gpu.base_precision,
    }
    return {**gpu.model_dump(mode="json"), **derived}


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=2))


def _print_all(rows: list[dict[str, Any]]) -> None:
    # A name is for copying: it is never cut, however narrow the terminal or pipe.
    table = Table(Column("name", no_wrap=True), *_COLUMNS.values(), box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(row["name"], *(_show(key, row[key]) for key in _COLUMNS))
    Console().print(table)


def _print_one(row: dict[str, Any]) -> None:
    table = Table("figure", "value", "source", title=f"{row['name']}: {row['title']}")
    for key, value in row.items():
        if key not in ("name", "title", "sources"):
            table.add_row(key, _show(key, value), row["sources"].get(key, "-"))
    Console().print(table)


def _show(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return format_gib(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
