"""Options of a run that ``train`` takes and ``launch`` writes into a job script."""

from pathlib import Path
from typing import Annotated

import typer

from budgetft.cli import options

RUN = "Data"
LENGTH = "Length and checkpoints"
EVALUATION = "Evaluation during the run"
"""Headings of the options in --help."""
EVALUATE_EVERY = "50"
"""Steps, as training has it; written here too because help loads no trainer."""
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH", show_default="the plan's", help="A dataset folder, or data to convert first.", rich_help_panel=RUN
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="the plan's",
        help="A folder or an id on the hub with the base weights, or 'random' for a smoke test without any.",
        rich_help_panel=RUN,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(min=1, show_default="the plan's epochs", help="Optimizer steps of the whole run.", rich_help_panel=LENGTH),
]
SaveEvery = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default="about 2 % of the time",
        help="Steps between checkpoints. Ctrl-C, SIGTERM and errors save the last finished step; after a kill, --resume starts"
        " from the newest checkpoint.",
        rich_help_panel=LENGTH,
    ),
]
EvalData = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        show_default="none; of a resumed run its own",
        help="A held-out dataset whose loss is computed during the run; 'none' drops it.",
        rich_help_panel=EVALUATION,
    ),
]
EvalEvery = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default=EVALUATE_EVERY,
        help="Steps between evaluations; the last step has one too.",
        rich_help_panel=EVALUATION,
    ),
]
KeepBest = Annotated[
    bool | None,
    typer.Option(
        "--keep-best/--no-keep-best",
        help="Keep the step with the lowest eval loss in best/, and make it the adapter.",
        rich_help_panel=EVALUATION,
    ),
]
EarlyStopping = Annotated[
    int | None,
    typer.Option(
        min=0,
        show_default="never",
        help="End the run after this many evaluations in a row without a lower eval loss; 0: never.",
        rich_help_panel=EVALUATION,
    ),
]
SampleCaptions = Annotated[
    int | None,
    typer.Option(
        min=0,
        show_default="0",
        help="Write captions of this many held-out examples to samples.jsonl after each evaluation.",
        rich_help_panel=EVALUATION,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        show_default="the plan's, or inside --out",
        help="Pre-computed vision features, where the plan uses them.",
        rich_help_panel=RUN,
    ),
]
Tracker = Annotated[
    list[str] | None,
    typer.Option(
        "--tracker",
        "--track",
        metavar="NAME",
        show_default="TensorBoard alone",
        help="Also report to wandb, mlflow or another tracker of accelerate; repeatable.",
        rich_help_panel=options.OUTPUT,
    ),
]
