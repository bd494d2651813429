"""``budgetft export``: a plan as another trainer's settings, with what is lost on the way."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from budgetft.cli import options

if TYPE_CHECKING:
    from budgetft.export.trainers import Exported


def export(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="The plan, from budgetft plan.")],
    to: Annotated[
        str, typer.Option("--to", metavar="NAME", help="The trainer: transformers, trl, llamafactory, swift or unsloth.")
    ],
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
    """Write a plan for another trainer: its settings or a script, at that trainer's best micro-batch that fits."""
    from budgetft.cli.progress import waiting
    from budgetft.export.trainers import export_plan
    from budgetft.plan import load_planned_model, read_plan, write_text_atomically

    made_for = read_plan(plan)
    architecture = load_planned_model(made_for, name=model)
    with waiting() as tell:
        made = export_plan(made_for, architecture, to, output=output, dataset=dataset, on_trace=tell)
    lora = None if out is None or made.lora is None else out.with_suffix(".lora.json")
    if out is not None:
        write_text_atomically(out, made.text)
    if lora is not None:
        write_text_atomically(lora, json.dumps(made.lora, indent=2) + "\n")
    if json_output:
        facts = {"release": made.release, "text": made.text, "lora": made.lora, "lacks": made.lacks}
        facts |= {"lacks_words": made.lacks_words, "warnings": made.warnings}
        print(json.dumps({**facts, "knobs": made.knobs.model_dump(), "estimate": made.estimate.model_dump()}, indent=2))
        return
    if out is None:
        print(made.text, end="")
        if made.lora is not None:
            print(f"\n# peft's LoraConfig; -o FILE writes it to a file of its own\n{json.dumps(made.lora, indent=2)}")
    _tell(made, architecture.layers)
    if out is not None:
        print(f"written to {out}" + (f" and {lora}" if lora else ""), file=sys.stderr)


def _tell(made: "Exported", layers: int) -> None:
    """On stderr: for what it is, what it will take, and what that trainer lacks."""
    from budgetft.units import format_gib
    from budgetft.wording import settings_words

    estimate = made.estimate
    peak = f"{format_gib(estimate.process_peak_bytes)} ({estimate.evidence})"
    lines = [f"for {made.release}: {peak}, {estimate.speed_text(' examples/s')}"]
    lines.append(f"it runs: {'; '.join(settings_words(made.knobs, layers))}")
    if made.lacks_words:
        lines.append(f"not available in this trainer: {'; '.join(made.lacks_words)}")
    for line in [*lines, *(f"warning: {text}" for text in made.warnings)]:
        print(line, file=sys.stderr)
