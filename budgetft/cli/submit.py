"""``budgetft submit``: predictions to the challenge's two files, checked against the test set first."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def submit(
    test: Annotated[Path, typer.Option("--test", help="The folder that holds WTS_DATASET_PUBLIC_TEST and SubTask2-VQA.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files.")],
    captions: Annotated[Path | None, typer.Option("--captions", help="Predicted captions.")] = None,
    vqa: Annotated[Path | None, typer.Option("--vqa", help="Predicted answers.")] = None,
    aggregate: Annotated[
        Literal["mid", "consensus"],
        typer.Option(help="One of several frames: the middle one, or the one most like the others."),
    ] = "mid",
    fill: Annotated[
        Literal["none", "external", "all"],
        typer.Option(help="Fill in what is not predicted: nothing, BDD_PC_5K (asked for, not scored in 2026), or everything."),
    ] = "none",
    json_output: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Write subtask1_captioning.json and subtask2_vqa.json; with anything missing, unknown or doubled, write neither."""
    from budgetft.evaluate.metrics import Scorer
    from budgetft.evaluate.predictions import read_predictions
    from budgetft.evaluate.submission import read_test_set, write_submission

    written = write_submission(
        read_test_set(test),
        out,
        captions=None if captions is None else read_predictions(captions),
        answers=None if vqa is None else read_predictions(vqa),
        how=aggregate,
        fill=fill,
        scorer=Scorer(),
    )
    if json_output:
        print(written.model_dump_json(indent=2))
    else:
        filled = f", {written.filled} of them filled in" if written.filled else ""
        print(f"{written.captions} captions and {written.answers} answers{filled}: {', '.join(written.files)}")
