"""``budgetft submit``: predictions to the challenge's two files, checked against the test set first."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from budgetft.errors import UsageError


def submit(
    test: Annotated[
        Path, typer.Option("--test", metavar="DIR", help="The folder that holds WTS_DATASET_PUBLIC_TEST and SubTask2-VQA.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the files.")],
    predictions: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FILE...", show_default="none", help="Files of budgetft predict: captions and answers, together or not."
        ),
    ] = None,
    captions: Annotated[
        Path | None, typer.Option("--captions", metavar="FILE", show_default="none", help="Instead: captions alone.")
    ] = None,
    vqa: Annotated[
        Path | None, typer.Option("--vqa", metavar="FILE", show_default="none", help="Instead: answers alone.")
    ] = None,
    aggregate: Annotated[
        Literal["mid", "consensus"],
        typer.Option(help="Of several frames of a scene: the middle one, or the one most like the others."),
    ] = "mid",
    fill: Annotated[
        Literal["none", "external", "all"],
        typer.Option(help="Fill in what is not predicted: nothing, BDD_PC_5K (not scored in 2026), or everything."),
    ] = "none",
    json_output: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write the AI City Challenge's submission files; with anything missing, unknown or doubled, write none."""
    from budgetft.evaluate.metrics import Scorer
    from budgetft.evaluate.predictions import read_predictions
    from budgetft.evaluate.submission import read_test_set, split_predictions, write_submission

    if predictions and (captions or vqa):
        raise UsageError(
            "predictions are given twice: as files, and with --captions or --vqa",
            hint="give all files without --captions and --vqa: captions and answers are told apart",
        )
    together = list(predictions or ())
    if captions is not None and captions == vqa:
        together = [captions]
    if together:
        said, chosen = split_predictions([row for path in together for row in read_predictions(path)])
    else:
        said = None if captions is None else read_predictions(captions)
        chosen = None if vqa is None else read_predictions(vqa)
    written = write_submission(
        read_test_set(test), out, captions=said, answers=chosen, how=aggregate, fill=fill, scorer=Scorer()
    )
    if json_output:
        print(written.model_dump_json(indent=2))
    else:
        filled = f", {written.filled} of them filled in" if written.filled else ""
        absent = "".join(f"; no {name}, so {file} is not written" for name, file in written.absent.items())
        print(f"{written.captions} captions and {written.answers} answers{filled}: {', '.join(written.files)}{absent}")
