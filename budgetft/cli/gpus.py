"""``budgetft gpus``: the GPUs that can be planned for, and where each of their figures is from."""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from budgetft.cli import names
from budgetft.cli.options import gpu_of
from budgetft.errors import UsageError
from budgetft.gpu import Gpu, all_gpus, gpu_at_hand, load_gpu
from budgetft.units import format_gib

if TYPE_CHECKING:
    from budgetft.outcome import Stack

# What the list shows of a GPU: the key in the JSON object, and a heading that leaves it within 80 columns.
_COLUMNS = {
    "memory_bytes": "GiB",
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
        typer.Argument(
            metavar="NAME",
            show_default="all",
            help='As people call it ("3060"), its memory, or a TOML file.',
            autocompletion=names.gpus,
        ),
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
            raise UsageError(f"--detect measures the GPU at hand; leave {name!r} out")
        _detect(out, json_output)
    elif out is not None:
        raise UsageError("--out goes with --detect or --calibrate")
    elif name is None:
        known = all_gpus()
        _print_json({"gpus": [describe(gpu) for gpu in known]}) if json_output else _print_all(known)
    else:
        row = describe(gpu_of(name))
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
    print(f"calibration of {found.gpu} ({found.source}) is used from now on; next: budgetft estimate --gpu {found.gpu}")


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
    """The profile of the GPU at hand, or ``name``, which must be of it, and the software."""
    import os

    from budgetft.host_gpus import first_visible, memory_of
    from budgetft.measure.child import current_stack

    stack = current_stack("cuda")  # raises where there is no GPU
    gpu = first_visible(os.environ)
    assert gpu is not None
    memory_bytes = memory_of(gpu)
    named = None if name is None else load_gpu(name)
    found = gpu_at_hand(gpu.name, memory_bytes) if named is None else named
    if found is not None and not found.is_gpu(gpu.name, memory_bytes):
        found = None
    if found is None:
        wanted = "is not in the list" if name is None else f"is not {name}"
        raise UsageError(
            f"{gpu.name} {wanted}",
            hint="budgetft gpus --detect writes a profile of it; then budgetft gpus NAME.toml --calibrate",
        )
    return found, stack


def describe(gpu: Gpu) -> dict[str, Any]:
    """The GPU as a JSON object: its profile, and what follows from it in bytes."""
    derived = {
        "memory_bytes": gpu.memory_bytes,
        "budget_bytes": gpu.budget_bytes,
        "base_precision": gpu.base_precision,
    }
    return {**gpu.model_dump(mode="json"), **derived}


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=2))


def _kind(gpu: Gpu) -> str:
    """The heading that the GPU is listed under."""
    title = gpu.title.removeprefix("NVIDIA ")
    if " Laptop" in title:
        return "laptops"
    for kind, start in (("GeForce", r"GeForce|TITAN"), ("workstations", r"RTX|Quadro"), ("Jetson", "Jetson")):
        if re.match(start, title):
            return kind
    return "data centre"


def _print_all(known: list[Gpu]) -> None:
    # A name is for copying: it is never cut, however narrow the terminal or pipe.
    columns = (Column(heading, justify="right", no_wrap=True) for heading in _COLUMNS.values())
    table = Table(Column("name", no_wrap=True), *columns, box=SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    for kind in ("GeForce", "laptops", "workstations", "data centre", "Jetson"):
        table.add_row(f"[bold]{kind}[/]")
        of_kind = [gpu for gpu in known if _kind(gpu) == kind]
        for gpu in sorted(of_kind, key=lambda gpu: (gpu.capability, gpu.memory_mib, gpu.name), reverse=True):
            row = describe(gpu)
            table.add_row(f"  {gpu.name}", *(_show(key, row[key]).removesuffix(" GiB") for key in _COLUMNS))
        table.add_section()
    Console().print(table)
    print("GiB: memory by nvidia-smi; budget: what a run may take; cc: compute capability.")
    print('--gpu takes these as people type them ("RTX 3060", "4070 laptop"), and what')
    print("nvidia-smi prints. Any other NVIDIA GPU: --gpu 24GiB, or --gpu 24GiB:sm_75.")
    print("The source of each figure: budgetft gpus NAME")


def _print_one(row: dict[str, Any]) -> None:
    table = Table(Column("figure", no_wrap=True), "value", "source", title=f"{row['name']}: {row['title']}")
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
