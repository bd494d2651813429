"""``budgetft gpus``: the cards that can be planned for, and where each of their figures is from."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from budgetft.errors import UsageError
from budgetft.gpu import Gpu, gpu_names, load_gpu
from budgetft.units import format_gib

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
    name: Annotated[str | None, typer.Argument(help="A card, or a TOML file; all cards when left out.")] = None,
    detect: Annotated[bool, typer.Option("--detect", help="Measure the card at hand and write its profile.")] = False,
    out: Annotated[Path | None, typer.Option(help="With --detect: the profile's file; NAME.toml when left out.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """List the cards that can be planned for, or one card with the source of each figure."""
    if detect:
        if name is not None:
            raise UsageError(f"--detect measures the card at hand; leave {name!r} out")
        _detect(out, json_output)
    elif out is not None:
        raise UsageError("--out goes with --detect")
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
    print(f"written to {path}; next: budgetft plan --gpu {path}", file=sys.stderr)


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
