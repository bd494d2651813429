"""Options that several commands share, and how they become values."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from budgetft.cli import names
from budgetft.contract import MOST_ALPHA, MOST_SEED, Contract, Init, Schedule, init_problem
from budgetft.errors import UsageError
from budgetft.gpu import Gpu
from budgetft.model import Model, load_model, model_names
from budgetft.units import format_gib, parse_bytes, parse_size
from budgetft.weights import split_revision, with_revision
from budgetft.workload import Shape


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


GPU = "GPU and budget"
DATA = "Data"
KEPT = "Training settings (kept fixed)"
ROUNDS = "Settings that round"
SEARCH = "Search"
OUTPUT = "Output"
"""Headings of the options in --help."""


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


DEFAULT_IMAGE = "448x448"
PRICES = "LOW..HIGH plans LOW and lists what each doubling up to HIGH would cost."
Probe = Literal["auto", "always", "never"]
Gpu_ = Annotated[
    str,
    typer.Option(
        "--gpu",
        metavar="NAME",
        help="The GPU to plan for: a name of budgetft gpus, or a TOML file.",
        autocompletion=names.gpus,
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
MaxPixels = Annotated[
    str | None, setting("max_pixels", f"Larger images are downscaled to this many pixels. {PRICES}", metavar="N")
]
OneMaxPixels = Annotated[str | None, setting("max_pixels", "Larger images are downscaled to this many pixels.", metavar="N")]
Pixels = Annotated[int | None, setting("max_pixels", "Larger images are downscaled to this many pixels.")]
MaxLength = Annotated[
    int | None,
    setting("max_length", "Most tokens of an example, visual ones included. Longer ones are refused, never truncated."),
]
Rank = Annotated[str | None, setting("rank", f"LoRA rank. {PRICES}", metavar="N")]
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
        parser=_number("a number from 0 to below 1", lambda value: 0 <= value < 1),
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
        parser=_number("a number from 0 to 1", lambda value: 0 <= value <= 1),
    ),
]
WeightDecay = Annotated[
    float | None,
    setting(
        "weight_decay",
        "AdamW's, of the adapter.",
        metavar="X",
        parser=_number("a number of at least 0", lambda value: value >= 0),
    ),
]
MaxGradNorm = Annotated[
    float | None,
    setting(
        "max_grad_norm",
        "Gradients with a larger norm are scaled down to it.",
        metavar="X",
        parser=_number("a number above 0", lambda value: value > 0),
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
    typer.Option(
        metavar="WxH", show_default=DEFAULT_IMAGE, help="Without --data: all images have this size.", rich_help_panel=DATA
    ),
]
Images = Annotated[int, typer.Option(min=1, help="With --image: images per example.", rich_help_panel=DATA)]
TextTokens = Annotated[
    int, typer.Option(min=2, help="With --image: text tokens per example, prompt and answer.", rich_help_panel=DATA)
]
SupervisedTokens = Annotated[
    int, typer.Option(min=1, help="With --image: label (answer) tokens per example.", rich_help_panel=DATA)
]
PlansModel = Annotated[
    str | None,
    typer.Option(metavar="NAME", show_default="as in the plan", help="Where the plan's model is now.", rich_help_panel=DATA),
]
CACHED = "in the cache folder"
Ledger = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", show_default=CACHED, help="Database of all trials, read and added to.", rich_help_panel=OUTPUT
    ),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.", rich_help_panel=GPU)]
Workers = Annotated[int | None, typer.Option(min=1, show_default="all cores", help="Processes side by side.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.", rich_help_panel=OUTPUT)]

DEFAULT_MODEL = "qwen2.5-vl-3b"


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


def budget_bytes(text: str | None, gpu: Gpu) -> int:
    """The budget in bytes; more than the card has is refused."""
    if text is None:
        return gpu.budget_bytes
    size = parse_bytes(text)
    if not 0 < size <= gpu.memory_bytes:
        raise UsageError(f"--budget {text} is {format_gib(size)}; {gpu.name} has {format_gib(gpu.memory_bytes)}")
    return size


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
    if "rank" in chosen:
        chosen = {"alpha": 2 * chosen["rank"], **chosen}
    for rank in (chosen.get("rank", 2), *ranges.get("rank", ())):
        if chosen.get("init_lora") == "orthogonal" and rank % 2:
            raise UsageError(f"--init-lora orthogonal needs an even --rank, not {rank}")
    for name, steps in ranges.items():
        for value in steps:
            Contract.make(**{**chosen, name: value})
    return Contract.make(**chosen), ranges


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


def typed_shape(
    image: str, images: int, text_tokens: int, supervised_tokens: int, *, model: Model, contract: Contract
) -> Shape:
    """The shape that the user typed, its images resized as the model's processor would."""
    from budgetft.data.tokens import check_positions, resized_size

    check_positions(model, contract)
    width, height = parse_size(image)
    size = resized_size(width, height, model, contract)
    shape = Shape.make(images=(size,) * images, text_tokens=text_tokens, supervised_tokens=supervised_tokens)
    tokens = shape.total_tokens(model.pixel_step)
    if supervised_tokens >= text_tokens:
        raise UsageError(f"--supervised-tokens {supervised_tokens} must be fewer than --text-tokens {text_tokens}")
    if tokens > contract.max_length:
        raise UsageError(
            f"the example has {tokens} tokens ({shape.visual_tokens(model.pixel_step)} of them visual);"
            f" the limit is {contract.max_length}",
            hint="raise --max-length or lower --max-pixels; examples are never cut",
        )
    return shape
