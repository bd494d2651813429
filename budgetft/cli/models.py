"""``budgetft models``: the bundled architectures, or what a folder or hub id holds."""

import json
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table

from budgetft.cli import names
from budgetft.model import Model, load_model, model_names

# What the list shows of a model: the key in the JSON object, and the heading; within 80 columns.
_COLUMNS = {
    "family": "family",
    "parameters": "parameters",
    "layers": "layers",
    "verified": "verified",
    "license_of_weights": "licence of weights",
}


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            show_default="all",
            help="A bundled model, a folder with config.json, or an id on the hub.",
            autocompletion=names.models,
        ),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print the same as JSON.")] = False,
) -> None:
    """List the bundled models, or show one with where its description is from."""
    if name is None:
        rows = [describe(load_model(known)) for known in model_names()]
        _print_json({"models": rows}) if json_output else _print_all(rows)
    else:
        row = describe(load_model(name))
        _print_json(row) if json_output else _print_one(row)


def describe(model: Model) -> dict[str, Any]:
    """The model as a JSON object: its description without the long config, and the sizes that planning reads."""
    derived = {
        "layers": model.layers,
        "max_positions": model.max_positions,
        "pixel_step": model.pixel_step,
        "hidden_size": model.text.get("hidden_size"),
        "vocab_size": model.text["vocab_size"],
        "verified": model.facts.verified,
        "levers": list(model.facts.levers),
    }
    patches = {"patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels", "image_mean", "image_std"}
    left = {"config"} if model.packed else {"config", *patches}  # another's processor is asked
    return {**model.model_dump(mode="json", exclude=left), **derived}


def _print_json(data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=2))


def _print_all(rows: list[dict[str, Any]]) -> None:
    # A name is for copying: it is never cut, however narrow the terminal or pipe.
    table = Table(Column("name", no_wrap=True), *_COLUMNS.values(), box=SIMPLE_HEAD)
    for row in rows:
        size = None if row["parameters"] is None else f"{row['parameters'] / 1e9:.2f} B"
        table.add_row(row["name"], *(_show(size if key == "parameters" else row[key]) for key in _COLUMNS))
    Console().print(table)


def _print_one(row: dict[str, Any]) -> None:
    table = Table("figure", "value", title=row["name"])
    for key, value in row.items():
        if key != "name":
            table.add_row(key, _show(value))
    Console().print(table)


def _show(value: Any) -> str:
    if isinstance(value, list):
        return ("\n" if any(isinstance(item, str) for item in value) else ", ").join(map(str, value)) or "-"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
