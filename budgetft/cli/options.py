"""Options that several commands share, and how they become values."""

import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from budgetft.asked import IMAGE, Typed, contract_of
from budgetft.asked import budget_bytes as budget_bytes  # as the commands have it
from budgetft.cli import names
from budgetft.cli.settings import DATA, GPU, OUTPUT, ROUNDS, TIME, finite
from budgetft.cli.settings import KEPT as KEPT
from budgetft.cli.settings import SEARCH as SEARCH
from budgetft.cli.settings import EffectiveBatch as EffectiveBatch
from budgetft.cli.settings import Epochs as Epochs
from budgetft.cli.settings import FramesPerExample as FramesPerExample
from budgetft.cli.settings import InitLora as InitLora
from budgetft.cli.settings import LearningRate as LearningRate
from budgetft.cli.settings import LoraAlpha as LoraAlpha
from budgetft.cli.settings import LoraDropout as LoraDropout
from budgetft.cli.settings import LrSchedule as LrSchedule
from budgetft.cli.settings import MaxGradNorm as MaxGradNorm
from budgetft.cli.settings import MaxLength as MaxLength
from budgetft.cli.settings import MaxPixels as MaxPixels
from budgetft.cli.settings import OneMaxPixels as OneMaxPixels
from budgetft.cli.settings import OneRank as OneRank
from budgetft.cli.settings import Pixels as Pixels
from budgetft.cli.settings import Rank as Rank
from budgetft.cli.settings import Seed as Seed
from budgetft.cli.settings import Targets as Targets
from budgetft.cli.settings import UseDora as UseDora
from budgetft.cli.settings import UseRslora as UseRslora
from budgetft.cli.settings import WarmupRatio as WarmupRatio
from budgetft.cli.settings import WeightDecay as WeightDecay
from budgetft.cli.settings import kept as kept
from budgetft.cli.settings import setting as setting
from budgetft.contract import Contract
from budgetft.duration import MOST_EXAMPLES
from budgetft.errors import UsageError
from budgetft.gpu import Gpu, look_up
from budgetft.host_gpus import gpu_here
from budgetft.model import Model, load_model, model_names
from budgetft.weights import split_revision, with_revision

Probe = Literal["auto", "always", "never"]
Gpu_ = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME",
        show_default="this machine's",
        help='The GPU as people call it ("RTX 3060"), any by its memory (24GiB, 24GiB:sm_75) or a TOML file.',
        autocompletion=names.gpus,
        rich_help_panel=GPU,
    ),
]
Display = Annotated[
    bool | None,
    typer.Option(
        "--display/--no-display",
        help="The GPU drives a display too: the default budget keeps room for it. Found by itself for the GPU here.",
        rich_help_panel=GPU,
    ),
]
Model_ = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="A name of budgetft models, a local folder or an id on the Hugging Face Hub.",
        autocompletion=names.models,
        rich_help_panel=DATA,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="main",
        help="Branch, tag or commit of a model on the hub; ORG/NAME@REVISION says the same.",
        rich_help_panel=DATA,
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        show_default="the GPU's, see budgetft gpus",
        help="Memory for the whole process, such as 14GiB.",
        rich_help_panel=GPU,
    ),
]
Hours = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        show_default="no limit",
        help="A time, such as 10, 90min or 04:00:00: plan the largest settings of the ranges whose run ends in it, and list"
        " what else would be possible. Without ranges: refuse what takes longer.",
        rich_help_panel=TIME,
    ),
]
Prefer = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        show_default="pixels,rank,frames",
        help="With --hours: which of the ranges is to be large first.",
        rich_help_panel=TIME,
    ),
]
Sure = Annotated[
    bool,
    typer.Option(
        "--sure",
        help="With --hours: the slow end of a predicted time must be in time (9 in 10), not its middle (1 in 2).",
        rich_help_panel=TIME,
    ),
]
ExamplesOf = Annotated[
    int | None,
    typer.Option(
        "--examples",
        min=1,
        max=MOST_EXAMPLES,
        show_default="not known",
        help="With --image: examples of an epoch, for the time.",
        rich_help_panel=TIME,
    ),
]
PricePerHour = Annotated[
    float | None,
    typer.Option(
        parser=finite("a number of at least 0", lambda value: value >= 0),
        metavar="X",
        show_default="none",
        help="What the GPU costs an hour, in any currency: prints what the run costs.",
        rich_help_panel=TIME,
    ),
]
AllowNf4 = Annotated[
    bool,
    typer.Option("--allow-nf4", "--qlora", help="Base weights may be kept in 4 bits (QLoRA, NF4).", rich_help_panel=ROUNDS),
]
AllowAdamw8bit = Annotated[
    bool,
    typer.Option(
        "--allow-adamw8bit", "--optim-8bit", help="The optimizer may keep its state in 8 bits.", rich_help_panel=ROUNDS
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default="the model's own",
        help="A folder or an id on the hub with the base weights, or 'random' for a smoke test without any.",
        rich_help_panel=DATA,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        show_default="none",
        help="A dataset folder; or CSV, JSON, parquet, images, an archive or an id on the hub, which are converted first.",
        rich_help_panel=DATA,
    ),
]
Image = Annotated[
    str | None,
    typer.Option(
        metavar="WxH", show_default="none", help="Instead of --data: all images have this size.", rich_help_panel=DATA
    ),
]
OneImage = Annotated[
    str | None,
    typer.Option(metavar="WxH", show_default=IMAGE, help="Without --data: all images have this size.", rich_help_panel=DATA),
]
Images = Annotated[int, typer.Option(min=1, help="With --image: images per example.", rich_help_panel=DATA)]
TextTokens = Annotated[
    int, typer.Option(min=2, help="With --image: text tokens per example, prompt and answer.", rich_help_panel=DATA)
]
SupervisedTokens = Annotated[
    int,
    typer.Option(
        "--label-tokens",
        "--supervised-tokens",
        min=1,
        help="With --image: label (answer) tokens per example.",
        rich_help_panel=DATA,
    ),
]
PlansModel = Annotated[
    str | None,
    typer.Option(metavar="NAME", show_default="as in the plan", help="Where the plan's model is now.", rich_help_panel=DATA),
]
CACHED = "in the cache folder"
Ledger = Annotated[
    Path | None,
    typer.Option(
        "--trial-database",
        "--ledger",
        metavar="FILE",
        show_default=CACHED,
        help="Database of all trials, read and added to.",
        rich_help_panel=OUTPUT,
    ),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.", rich_help_panel=GPU)]
Workers = Annotated[int | None, typer.Option(min=1, show_default="all cores", help="Processes side by side.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]


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
    return str(Typed(image=image).pixels)


def note_pixels(model: Model, max_pixels: object) -> None:
    """Say so where ``max_pixels`` was given and the processor of ``model`` makes of it what it wants."""
    if max_pixels is None or model.packed:
        return
    from budgetft.data.shapes import ignores_pixels

    if ignores_pixels(model):
        typer.echo(
            f"note: --max-pixels changes nothing: the processor of {model.name} makes as many visual tokens of a picture in any"
            " size, so pictures are not shrunk before it",
            err=True,
        )


def contract_from(**flags: Any) -> tuple[Contract, dict[str, list[int]]]:
    """The contract with its ranges at their minimum, and the further values of each range: doublings up to its end.

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
        elif name == "frames_per_example":  # the data settles it, so there is no minimum to plan
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
