"""``budgetft evaluate``: the challenge's scores of predictions."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from budgetft.cli.lines import put

if TYPE_CHECKING:
    from budgetft.evaluate.metrics import Scores
    from budgetft.evaluate.notes import Note
    from budgetft.evaluate.scoring import AnswerReport, CaptionReport, Evaluation

_SHOWN = 5


def evaluate(
    predictions: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Files of budgetft predict, or submission files (.json).")
    ],
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="DIR", show_default="none", help="The dataset they are of; repeatable."),
    ] = None,
    truth: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            show_default="none",
            help="Instead of --data: a folder of true captions, or a .json of true answers; repeatable.",
        ),
    ] = None,
    aggregate: Annotated[
        Literal["mid", "consensus"],
        typer.Option(help="Of several frames of a scene: the middle one, or the one most like the others."),
    ] = "mid",
    skip_unlabelled: Annotated[
        bool,
        typer.Option("--skip-unlabelled", help="Leave out and count examples without a label; without this they are refused."),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Score captions (BLEU-4, METEOR, ROUGE-L, CIDEr, S1) and answers (accuracy), as the AI City Challenge does."""
    from budgetft.evaluate.files import evaluate_files

    result = evaluate_files(predictions, data=data or (), truth=truth or (), how=aggregate, skip_unlabelled=skip_unlabelled)
    print(json.dumps(result.labelled(), indent=2)) if json_output else put(describe(result))


def describe(result: "Evaluation") -> str:
    """The scores as a table per group, then per scenario, what to know about them, and what the names mean."""
    lines: list[str] = []
    if result.captions is not None:
        lines += _caption_lines(result.captions)
    if result.answers is not None:
        lines.append(_answer_line(result.answers))
    if result.s2 is not None:
        lines.append(f"S2 {result.s2:.4f}")
    lines += [_note_line(one) for one in result.notes]
    return "\n".join([*lines, *_legend(result)])


def _caption_lines(report: "CaptionReport") -> list[str]:
    lines = _hidden_lines(report) + ([] if report.withheld else _table(report))
    if report.internal_s1 is not None and report.external_s1 is not None and not report.withheld:
        lines.append(
            f"S1 of the challenge's own scenarios {report.internal_s1:.4f} (what counts in 2026), of BDD_PC_5K"
            f" {report.external_s1:.4f}"
        )
    if report.length_ratio is not None and report.bigram_difference is not None and not report.withheld:
        lines.append(
            f"length ratio {report.length_ratio:.3f}; |d| {report.bigram_difference:.1f} bigrams on average, d"
            f" {report.bigram_bias:+.1f} (CIDEr keeps 61 % at 6, 14 % at 12, 1 % at 18)"
        )
    lines.append(f"{report.captions} captions, {len(report.missing)} missing (they score 0){_some(report.missing)}")
    return lines


def _hidden_lines(report: "CaptionReport") -> list[str]:
    """What ROUGE-L cannot see, and the scores that can."""
    hidden, lines = report.hidden, []
    if hidden.partly:
        mostly = f"; most letters of {len(hidden.references)} of them{_some(hidden.references)}" if hidden.references else ""
        lines.append(
            f"ROUGE-L sees a to z and 0 to 9 only: it drops {100 * hidden.share:.1f} % of all letters of the labels, from"
            f" {hidden.partly} of {report.captions} labels{mostly}"
        )
    if hidden.predictions:
        lines.append(f"it drops most letters of {hidden.predictions} predictions")
    if report.wordless:
        lines.append(f"{len(report.wordless)} labels have no Latin letter or digit at all{_some(report.wordless)}")
    if report.withheld:
        lines.append(
            "BLEU-4, METEOR, ROUGE-L, CIDEr and S1 are withheld: the challenge's metrics are made for English, and would"
            " compare the few letters that are left"
        )
    if hidden.partly:
        any_script = report.any_script
        lines.append(
            f"scores for any script (not the challenge's, not comparable with S1): any-BLEU {any_script.any_bleu:.4f},"
            f" any-ROUGE-L {any_script.any_rouge_l:.4f}, any-CIDEr {any_script.any_cider:.4f}"
        )
    return lines


def _table(report: "CaptionReport") -> list[str]:
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
    return lines


def _row(scores: "Scores", meteor: str) -> str:
    return (
        f"{scores.bleu:>8.4f} {scores.meteor:>{max(8, len(meteor))}.4f} {scores.rouge_l:>8.4f} {scores.cider:>8.4f}"
        f" {scores.s1:>8.4f}"
    )


def _answer_line(answers: "AnswerReport") -> str:
    return (
        f"accuracy {answers.accuracy:.2f} %: {answers.correct} of {answers.questions} right, {answers.wrong} wrong,"
        f" {answers.missing} missing; always giving the commonest label would have"
        f" {answers.commonest_label_accuracy:.2f} %"
    )


def _note_line(one: "Note") -> str:
    return f"note: {one.text}{_some(one.ids, one.count)}"


def _legend(result: "Evaluation") -> list[str]:
    """A line for each short name in the output."""
    lines = []
    captions = result.captions
    if captions is not None and not captions.withheld:
        lines.append("S1: the challenge's caption score, 0 to 100: (100 BLEU-4 + 100 METEOR + 100 ROUGE-L + 10 CIDEr) / 4")
    if result.s2 is not None:
        lines.append("S2: the challenge's final score, 0 to 100: (S1 + accuracy) / 2")
    if captions is not None and captions.bigram_difference is not None and not captions.withheld:
        lines.append("d: how many bigrams (pairs of words) a prediction is longer than its label; |d|: without the sign")
    if captions is not None and not captions.withheld and captions.meteor_name != "meteor":
        lines.append(
            "meteor_nowordnet: METEOR without synonyms, because NLTK's WordNet is not installed; it, S1 and S2 are lower bounds"
            " of the official scores. For the official METEOR: python -m nltk.downloader wordnet"
        )
    return ["", *lines] if lines else []


def _some(names: tuple[str, ...], count: int | None = None) -> str:
    if not names:
        return ""
    total = len(names) if count is None else count
    return ": " + ", ".join(names[:_SHOWN]) + (f" and {total - _SHOWN} more" if total > _SHOWN else "")
