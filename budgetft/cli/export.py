"""``budgetft export``: a plan as another trainer's settings, with what is lost on the way."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from budgetft.cli import options


def export(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan, from budgetft plan.")],
    to: Annotated[Literal["transformers", "llamafactory", "swift"], typer.Option("--to", help="The trainer.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", show_default="stdout", help="The file to write.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", show_default="to be filled in", help="The data, as that trainer names it.")
    ] = None,
    output: Annotated[str, typer.Option(metavar="DIR", help="Where that trainer shall write.")] = "runs/exported",
    model: options.PlansModel = None,
    json_output: options.Json = False,
) -> None:
    """Write a plan's settings for another trainer: the fastest of its own that fits, and what it lacks."""
    from budgetft.api import export as export_plan
    from budgetft.knobs import describe
    from budgetft.plan import read_plan, write_text_atomically
    from budgetft.units import format_gib

    made = export_plan(read_plan(plan), to, model=model, output=output, dataset=dataset)
    lora = None if out is None or made.lora is None else out.with_suffix(".lora.json")
    if out is not None:
        write_text_atomically(out, made.text)
    if lora is not None:
        write_text_atomically(lora, json.dumps(made.lora, indent=2) + "\n")
    if json_output:
        facts = {"text": made.text, "lora": made.lora, "lacks": made.lacks, "warnings": made.warnings}
        print(json.dumps({**facts, "knobs": made.knobs.model_dump(), "estimate": made.estimate.model_dump()}, indent=2))
        return
    if out is None:
        print(made.text, end="")
    notes = [
        f"{to} runs {describe(made.knobs)}: {format_gib(made.estimate.process_peak_bytes)} ({made.estimate.evidence})",
        f"it has no {', '.join(f'{name}={value}' for name, value in made.lacks.items())}" if made.lacks else "",
        *(f"warning: {text}" for text in made.warnings),
        f"written to {out}" + (f" and {lora}" if lora else "") if out else "",
    ]
    for note in filter(None, notes):
        print(note, file=sys.stderr)
