"""``budgetft merge``: the adapter of a run inside its base model, for whatever loads that model."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from budgetft.cli import options


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of budgetft train, or an adapter's folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The new folder for the merged checkpoint.")],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", show_default="what the run started from", help="The base checkpoint: a folder or an id on the hub."
        ),
    ] = None,
    revision: options.Revision = None,
    json_output: options.Json = False,
) -> None:
    """Merge an adapter into its base checkpoint, weight by weight: files, names and types stay the base's."""
    from budgetft.api import merge as merge_run
    from budgetft.data.given import Given
    from budgetft.export.merge import base_of_run
    from budgetft.units import format_gib

    chosen = options.weights_at(weights, revision, base_of_run(run) if revision else None)
    made = merge_run(run, out, weights=chosen, on_file=lambda name: print(name, file=sys.stderr, flush=True))
    facts = {"merged": made.merged, "copied": made.copied, "files": made.files, "weight_bytes": made.weight_bytes}
    if json_output:
        print(json.dumps({"folder": str(made.folder), **facts}, indent=2))
    else:
        print(f"{made.merged} weights merged, {made.copied} tensors as they were, {format_gib(made.weight_bytes)}")
        print(f"written to {made.folder}: transformers and vLLM load it as they load the base model")
        given = Given.read_from(made.folder)
        if given is not None:
            print(f"it learned with images of at most {given.max_pixels} pixels; with vLLM: {given.serving()}")
