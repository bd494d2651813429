"""Options that several commands share, and how they become values."""

import math
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from budgetft.asked import budget_bytes as budget_bytes  # as the commands have it
from budgetft.asked import contract_of
from budgetft.cards import gpu_here
from budgetft.contract import MOST_ALPHA, MOST_SEED, Contract, Schedule, init_problem
from budgetft.duration import MOST_EXAMPLES
from budgetft.errors import UsageError
from budgetft.gpu import Gpu, look_up
from budgetft.model import Model, load_model, model_names
from budgetft.units import parse_size
from budgetft.weights import split_revision, with_revision


def _number(told: str, holds: Callable[[float], bool]) -> Callable[[str], float]:
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


Probe = Literal["auto", "always", "never"]
Gpu_ = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        help='The GPU as people call it ("RTX 3060"), any by its memory (24GiB, 24GiB:sm_75) or a TOML file;'
        " this machine's when left out.",
    ),
]
Display = Annotated[
    bool | None,
    typer.Option(
        "--display/--no-display",
        help="The GPU drives a display too: the default budget keeps room for it. Found out by itself for the GPU here.",
    ),
]
Model_ = Annotated[str, typer.Option("--model", help="A bundled model (budgetft models), a local folder or a hub id.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id; ORG/NAME@REVISION says the same.")]
Budget = Annotated[str | None, typer.Option(help="Memory for the whole process, e.g. 14GiB; the profile's when left out.")]
MaxPixels = Annotated[str | None, typer.Option(help="Most pixels of an image; LOW..HIGH prices the steps up.")]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of an example, visual ones included; never cut.")]
Rank = Annotated[str | None, typer.Option(help="LoRA rank; LOW..HIGH prices the steps up and plans the floor.")]
FramesPerExample = Annotated[
    str | None,
    typer.Option(
        help="Price examples of LOW..HIGH frames beside those that they have; N as a video cost about what N/2 images do."
    ),
]
Targets = Annotated[str | None, typer.Option(help="Linears that get an adapter, comma-separated.")]
EffectiveBatch = Annotated[int | None, typer.Option(help="Examples per optimizer step.")]
LearningRate = Annotated[
    float | None, typer.Option(help="The highest of the run: it warms up to this, then goes by --lr-schedule.")
]
Epochs = Annotated[int | None, typer.Option(help="Times that every example is seen.")]
Seed = Annotated[
    int | None, typer.Option(min=0, max=MOST_SEED, help="Of the adapter's start, the order of the examples and dropout; 0.")
]
LoraAlpha = Annotated[int | None, typer.Option(min=1, max=MOST_ALPHA, help="Twice the rank when left out.")]
LoraDropout = Annotated[
    float | None,
    typer.Option(
        parser=_number("a number from 0 to below 1", lambda value: 0 <= value < 1),
        metavar="FLOAT",
        help="Share of a linear's inputs that its adapter does not see; 0. Above 0 it takes more memory.",
    ),
]
UseRslora = Annotated[bool, typer.Option("--use-rslora", help="Scale by alpha / sqrt(rank): rank-stabilised LoRA.")]
UseDora = Annotated[
    bool, typer.Option("--use-dora", help="Learn each weight's row lengths apart (DoRA); slower, and takes more memory.")
]
InitLora = Annotated[
    str | None,
    typer.Option(
        parser=_init,
        metavar="[default|gaussian|orthogonal]",
        help="How the adapter starts, as peft does it; those that change the base weights are refused.",
    ),
]
LrSchedule = Annotated[
    Schedule | None, typer.Option(help="After the warm-up, by transformers' names; cosine. constant has no warm-up.")
]
WarmupRatio = Annotated[
    float | None,
    typer.Option(
        parser=_number("a number from 0 to 1", lambda value: 0 <= value <= 1),
        metavar="FLOAT",
        help="Share of the steps in which the learning rate rises; 0.03.",
    ),
]
WeightDecay = Annotated[
    float | None,
    typer.Option(
        parser=_number("a number of at least 0", lambda value: value >= 0), metavar="FLOAT", help="AdamW's, of the adapter; 0."
    ),
]
MaxGradNorm = Annotated[
    float | None,
    typer.Option(
        parser=_number("a number above 0", lambda value: value > 0),
        metavar="FLOAT",
        help="Gradients whose norm is larger are scaled down to it; 1.",
    ),
]
Hours = Annotated[
    str | None,
    typer.Option(
        help="A time, as 10, 90min or 04:00:00: plan the largest contract of the ranges whose run ends in it, and list what"
        " else would be possible. Without ranges: refuse what takes longer."
    ),
]
Prefer = Annotated[
    str | None,
    typer.Option(help="With --hours: what is to be large first, of the ranges given: pixels,rank,frames when left out."),
]
Sure = Annotated[
    bool,
    typer.Option(
        "--sure", help="With --hours: the slow end of a predicted time must be in time (9 in 10), not its middle (1 in 2)."
    ),
]
ExamplesOf = Annotated[
    int | None, typer.Option("--examples", min=1, max=MOST_EXAMPLES, help="With --image: examples of an epoch, for the time.")
]
PricePerHour = Annotated[
    float | None,
    typer.Option(
        parser=_number("a number of at least 0", lambda value: value >= 0),
        metavar="X",
        help="What the GPU costs an hour, in any currency: prints what the run costs.",
    ),
]
AllowNf4 = Annotated[bool, typer.Option("--allow-nf4", help="Frozen base weights may be kept in four bits.")]
AllowAdamw8bit = Annotated[bool, typer.Option("--allow-adamw8bit", help="The optimizer's moments may be kept in eight bits.")]
Data = Annotated[
    Path | None,
    typer.Option(help="A dataset folder; or CSV, JSON, parquet, images, an archive or a hub id, which are converted first."),
]
Image = Annotated[str | None, typer.Option(help="Size of every image, WxH, instead of data.")]
Images = Annotated[int, typer.Option(min=1, help="Images per example, with --image.")]
TextTokens = Annotated[int, typer.Option(min=2, help="Text tokens per example, with --image; prompt and answer.")]
SupervisedTokens = Annotated[int, typer.Option(min=1, help="Answer tokens per example, with --image.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def model_at(name: str, revision: str | None) -> Model:
    """The model called ``name``, at ``revision`` where it is on the hub: of a bundled one, that of its published weights."""
    if revision is None:
        return load_model(name)
    if name in model_names():
        model = load_model(name)
        return model.replace(hub_id=with_revision(model.hub_id or name, revision))
    return load_model(with_revision(name, revision))


def weights_at(name: str | None, revision: str | None, default: str | None) -> str | None:
    """``--weights`` at ``--revision``; of ``default``, the ones that would be taken, when only a revision was given."""
    if revision is None:
        return name
    if name is None and default is None:
        raise UsageError(f"--revision {revision}: there are no weights that it could be of", hint="give --weights ORG/NAME")
    return with_revision(name or split_revision(default or "")[0], revision)


def gpu_of(text: str | None) -> Gpu:
    """The GPU that ``--gpu`` names, else the one in this machine; what was assumed goes to stderr."""
    if text is not None:
        gpu, assumed = look_up(text)
        if assumed:
            print(f"note: {assumed}", file=sys.stderr)
        return gpu
    here = gpu_here(os.environ)
    if here is None:
        raise UsageError(
            "no NVIDIA GPU is in this machine, or its driver does not answer, and --gpu is left out",
            hint='name the GPU to plan for: --gpu "RTX 3060", or by its memory --gpu 24GiB; `budgetft gpus` lists them',
        )
    print(f"note: --gpu is left out: taking the GPU in this machine, {here.title} ({here.name})", file=sys.stderr)
    return here


def budget_and_display(text: str | None, gpu: Gpu, display: bool | None) -> tuple[int, int]:
    """The budget in bytes, and what of it is kept for a display: none of a budget that was typed.

    What is kept is said on stderr; at least half of the default budget is left.
    """
    from budgetft.display import display_reserve

    budget = budget_bytes(text, gpu)
    reserve = None if text is not None else display_reserve(gpu, display)
    if reserve is None:
        return budget, 0
    print(f"note: {reserve.describe()}", file=sys.stderr)
    kept = min(reserve.memory_bytes, budget // 2)
    return budget - kept, kept


def pixels_of(image: str) -> str:
    """What ``--max-pixels`` means when only ``--image`` was given: the image as it is."""
    width, height = parse_size(image)
    return str(width * height)


def contract_from(**flags: Any) -> tuple[Contract, dict[str, list[int]]]:
    """The contract with its ranges at their floor, and the further values of each range: doublings up to its end.

    ``lora_alpha`` is the contract's alpha; twice the rank when left out.
    """
    flags["alpha"] = flags.pop("lora_alpha", None)
    chosen: dict[str, Any] = {}
    ranges: dict[str, list[int]] = {}
    for name, value in flags.items():
        if value is None:
            continue
        if name in ("rank", "max_pixels"):
            low, steps = _range(name, value)
            chosen[name] = low
            if steps:
                ranges[name] = steps
        elif name == "frames_per_example":  # the data settles it, so there is no floor to plan
            low, steps = _range(name, value)
            ranges[name] = [low, *steps]
        elif name == "targets":
            chosen[name] = tuple(part.strip() for part in value.split(","))
        else:
            chosen[name] = value
    for rank in (chosen.get("rank", 2), *ranges.get("rank", ())):
        if chosen.get("init_lora") == "orthogonal" and rank % 2:
            raise UsageError(f"--init-lora orthogonal needs an even --rank, not {rank}")
    for name, steps in ranges.items():
        for value in steps:
            contract_of({**chosen, name: value})
    return contract_of(chosen), ranges


def _range(name: str, text: str) -> tuple[int, list[int]]:
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text.strip())
    if match is None:
        raise UsageError(f"--{name.replace('_', '-')} must be a number or LOW..HIGH, not {text!r}")
    low = int(match[1])
    high = int(match[2] or low)
    if low < 1 or high < low:
        raise UsageError(f"--{name.replace('_', '-')} {text}: the range must rise from at least 1")
    steps, value = [], low * 2
    while value < high:
        steps.append(value)
        value *= 2
    return low, [*steps, high] if high > low else []
