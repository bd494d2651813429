"""``budgetft evaluate``: the challenge's scores of predictions."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from budgetft.evaluate.metrics import Scores
    from budgetft.evaluate.scoring import CaptionReport, Evaluation

_SHOWN = 5


def evaluate(
    predictions: Annotated[list[Path], typer.Argument(help="Files that budgetft predict wrote, or submission files (.json).")],
    data: Annotated[list[Path] | None, typer.Option("--data", help="The dataset they are of; repeatable.")] = None,
    truth: Annotated[
        list[Path] | None, typer.Option(help="A folder of true captions, or a .json of true answers, instead; repeatable.")
    ] = None,
    aggregate: Annotated[
        Literal["mid", "consensus"],
        typer.Option(help="One of several frames: the middle one, or the one most like the others."),
    ] = "mid",
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Score captions (BLEU-4, METEOR, ROUGE-L, CIDEr, S1) and answers (accuracy), as the challenge does."""
    from budgetft.evaluate.files import evaluate_files

    result = evaluate_files(predictions, data=data or (), truth=truth or (), how=aggregate)
    print(json.dumps(result.labelled(), indent=2) if json_output else describe(result))


def describe(result: "Evaluation") -> str:
    """The scores as a table per group, then per scenario."""
    lines: list[str] = []
    captions, answers = result.captions, result.answers
    bound = captions is not None and captions.meteor_name != "meteor"
    if captions is not None:
        lines += _caption_lines(captions)
    if answers is not None:
        lines.append(
            f"accuracy {answers.accuracy:.2f} %: {answers.correct} of {answers.questions} right, {answers.wrong} wrong,"
            f" {answers.missing} missing" + (f"; {answers.unknown} answers to no question" if answers.unknown else "")
        )
    if result.s2 is not None:
        lines.append(f"S2 {result.s2:.4f}")
    if bound:
        lines.append(
            "meteor_nowordnet is METEOR without synonyms, because NLTK's WordNet is not installed: it and every score made"
            " of it are lower bounds of the official ones"
        )
    return "\n".join(lines)


def _caption_lines(report: "CaptionReport") -> list[str]:
    scenarios = [(row.scenario, row.captions, row.missing, row.scores, row.bigram_difference) for row in report.scenarios]
    width = max(len(name) for name in ("scenario", *report.groups, *(row[0] for row in scenarios)))
    meteor = report.meteor_name
    head = f"{'BLEU-4':>8} {meteor:>{max(8, len(meteor))}} {'ROUGE-L':>8} {'CIDEr':>8} {'S1':>8}"
    lines = []
    if scenarios:
        lines.append(f"{'scenario':<{width}} {head} {'captions':>8} {'missing':>7} {'|d|':>6}")
        for name, count, missing, scores, difference in scenarios:
            distance = "-" if difference is None else f"{difference:.1f}"
            lines.append(f"{name:<{width}} {_row(scores, meteor)} {count:>8} {missing:>7} {distance:>6}")
        lines.append("")
    lines.append(f"{'':<{width}} {head}")
    if len(report.groups) > 1:
        lines += [f"{name:<{width}} {_row(scores, meteor)}" for name, scores in report.groups.items()]
    lines.append(f"{'mean':<{width}} {_row(report.scores, meteor)}")
    if report.length_ratio is not None and report.bigram_difference is not None:
        lines.append(
            f"length ratio {report.length_ratio:.3f}; |d| {report.bigram_difference:.1f} bigrams on average, d"
            f" {report.bigram_bias:+.1f} (CIDEr keeps 61 % at 6, 14 % at 12, 1 % at 18)"
        )
    lines.append(f"{report.captions} captions, {len(report.missing)} missing (they score 0){_some(report.missing)}")
    if report.wordless:
        lines.append(
            f"{len(report.wordless)} references have no Latin letter or digit: the challenge's scores are made for English, and"
            f" mean little for another script{_some(report.wordless)}"
        )
    if report.unknown:
        lines.append(f"{len(report.unknown)} predictions belong to no caption{_some(report.unknown)}")
    return lines


def _row(scores: "Scores", meteor: str) -> str:
    return (
        f"{scores.bleu:>8.4f} {scores.meteor:>{max(8, len(meteor))}.4f} {scores.rouge_l:>8.4f} {scores.cider:>8.4f}"
        f" {scores.s1:>8.4f}"
    )


def _some(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    return ": " + ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
