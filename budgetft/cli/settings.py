"""Options of the training settings, which a plan keeps as they are, and the groups in which --help shows options."""

import math
from collections.abc import Callable
from typing import Annotated, Any, get_args

import typer

from budgetft.contract import MOST_ALPHA, MOST_SEED, Contract, Init, Schedule, init_problem

GPU = "GPU and budget"
DATA = "Data"
KEPT = "Training settings (kept fixed)"
ROUNDS = "Settings that round"
SEARCH = "Search"
TIME = "Time and cost"
OUTPUT = "Output"
"""Headings of the options in --help."""


def finite(told: str, holds: Callable[[float], bool]) -> Callable[[str], float]:
    """A parser of finite numbers for which ``holds`` is true: those that are ``told``."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and holds(value)):
            raise typer.BadParameter(f"{text} is not {told}.")
        return value

    return number


def _init(text: str) -> str:
    if problem := init_problem(text):
        raise typer.BadParameter(f"{problem}.")
    return text


def kept(field: str) -> str:
    """The default of a training setting for people, as :class:`Contract` has it."""
    value = Contract.model_fields[field].default
    if field == "alpha":
        return f"{value / Contract.model_fields['rank'].default:g} x --rank"
    if isinstance(value, tuple):
        return ", ".join(value)
    if field == "max_pixels" and math.isqrt(value) ** 2 == value:
        return f"{value} = {math.isqrt(value)}x{math.isqrt(value)}"
    return f"{value:.0e}".replace("e-0", "e-") if isinstance(value, float) and 0 < value < 1e-3 else f"{value}"


def setting(field: str, told: str, metavar: str | None = None, **more: Any) -> Any:
    """The option of a training setting, with its default shown."""
    return typer.Option(show_default=kept(field), help=told, metavar=metavar, rich_help_panel=KEPT, **more)


COSTS = "LOW..HIGH plans LOW and lists what each doubling up to HIGH would cost."
MaxPixels = Annotated[
    str | None, setting("max_pixels", f"Larger images are downscaled to this many pixels. {COSTS}", metavar="N")
]
OneMaxPixels = Annotated[str | None, setting("max_pixels", "Larger images are downscaled to this many pixels.", metavar="N")]
Pixels = Annotated[int | None, setting("max_pixels", "Larger images are downscaled to this many pixels.")]
MaxLength = Annotated[
    int | None,
    setting("max_length", "Most tokens of an example, visual ones included. Longer ones are refused, never truncated."),
]
Rank = Annotated[str | None, setting("rank", f"LoRA rank. {COSTS}", metavar="N")]
OneRank = Annotated[str | None, setting("rank", "LoRA rank.", metavar="N")]
FramesPerExample = Annotated[
    str | None,
    typer.Option(
        metavar="LOW..HIGH",
        show_default="as the data has them",
        help="Also list what examples of LOW to HIGH frames would cost; a video of N frames costs about N/2 images.",
        rich_help_panel=KEPT,
    ),
]
Targets = Annotated[
    str | None,
    setting("targets", "Linear layers of the language model that get an adapter, comma-separated.", metavar="NAMES"),
]
EffectiveBatch = Annotated[int | None, setting("effective_batch", "Examples per optimizer step, over all GPUs.")]
LearningRate = Annotated[
    float | None, setting("learning_rate", "The highest of the run: it warms up to this, then follows --lr-schedule.")
]
Epochs = Annotated[int | None, setting("epochs", "How often every example is seen.")]
Seed = Annotated[
    int | None, setting("seed", "Of the adapter's start, the order of the examples and dropout.", min=0, max=MOST_SEED)
]
LoraAlpha = Annotated[int | None, setting("alpha", "Scale of the adapter: alpha / rank.", min=1, max=MOST_ALPHA)]
LoraDropout = Annotated[
    float | None,
    setting(
        "lora_dropout",
        "Share of a layer's inputs that its adapter does not see. Above 0 it takes more memory.",
        metavar="X",
        parser=finite("a number from 0 to below 1", lambda value: 0 <= value < 1),
    ),
]
UseRslora = Annotated[
    bool,
    typer.Option("--use-rslora", help="Scale by alpha / sqrt(rank) instead: rank-stabilised LoRA.", rich_help_panel=KEPT),
]
UseDora = Annotated[
    bool,
    typer.Option(
        "--use-dora", help="Learn the length of each weight's rows apart (DoRA); slower, more memory.", rich_help_panel=KEPT
    ),
]
InitLora = Annotated[
    str | None,
    setting(
        "init_lora",
        "How the adapter starts, as in peft. Starts that change the base weights are refused.",
        metavar="|".join(get_args(Init)),
        parser=_init,
    ),
]
LrSchedule = Annotated[
    Schedule | None,
    setting("lr_schedule", "Learning rate after the warm-up, by transformers' names. constant has no warm-up."),
]
WarmupRatio = Annotated[
    float | None,
    setting(
        "warmup_ratio",
        "Share of the steps in which the learning rate rises.",
        metavar="X",
        parser=finite("a number from 0 to 1", lambda value: 0 <= value <= 1),
    ),
]
WeightDecay = Annotated[
    float | None,
    setting(
        "weight_decay",
        "AdamW's, of the adapter.",
        metavar="X",
        parser=finite("a number of at least 0", lambda value: value >= 0),
    ),
]
MaxGradNorm = Annotated[
    float | None,
    setting(
        "max_grad_norm",
        "Gradients with a larger norm are scaled down to it.",
        metavar="X",
        parser=finite("a number above 0", lambda value: value > 0),
    ),
]
