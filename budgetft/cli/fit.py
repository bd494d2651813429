"""``budgetft fit``: what runs on a GPU, or where a model runs, in one table."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from budgetft.asked import LABEL_TOKENS, TEXT_TOKENS
from budgetft.cli import options
from budgetft.duration import MOST_EXAMPLES
from budgetft.errors import UsageError

if TYPE_CHECKING:
    from budgetft.gpu import Gpu


def fit(
    gpu: Annotated[
        str | None, typer.Option("--gpu", help="A GPU by name or memory (budgetft gpus); this machine's when left out.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="One model: bundled, a folder or a hub id. Without --gpu: on every GPU that is known."),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", "--image-size", help="Size of the picture, WxH; repeatable. [default: 448x448 to 1344x1344]"),
    ] = None,
    text_tokens: options.TextTokens = TEXT_TOKENS,
    supervised_tokens: options.SupervisedTokens = LABEL_TOKENS,
    examples: Annotated[int, typer.Option(min=1, max=MOST_EXAMPLES, help="Of an epoch, for the time.")] = 2000,
    epochs: Annotated[int, typer.Option(min=1, max=10**6, help="Times that every example is seen.")] = 3,
    rank: Annotated[int, typer.Option(min=1, max=1024, help="LoRA rank.")] = 16,
    effective_batch: Annotated[int, typer.Option(min=1, max=2**20, help="Examples per optimizer step.")] = 32,
    budget: options.Budget = None,
    price_per_hour: options.PricePerHour = None,
    html: Annotated[Path | None, typer.Option(help="Write the table as a page of its own, sortable and offline.")] = None,
    json_output: options.Json = False,
) -> None:
    """What can I run? Every model by LoRA and QLoRA on a GPU: fits, memory, time, largest picture. Nothing is run."""
    from budgetft.asked import budget_bytes
    from budgetft.cli.progress import waiting
    from budgetft.cli.show_fit import print_fit
    from budgetft.gpu import all_gpus, look_up
    from budgetft.model import load_model, model_names
    from budgetft.search.what_fits import what_fits
    from budgetft.units import parse_size
    from budgetft.what_fits import PICTURES, FitAsked

    note = ""
    if gpu is not None:
        chosen, note = look_up(gpu)
        gpus = [chosen]
    elif model is None:
        gpus = [_at_hand()]
    else:
        gpus = sorted(all_gpus(), key=lambda each: (each.memory_bytes, each.fp16_tflops or 0.0, each.name))
    if budget is not None and len(gpus) > 1:
        raise UsageError("--budget is of one GPU", hint="give --gpu too, or leave --budget out")
    bundled = [name for name in model_names() if not name.startswith("tiny")]
    models = [load_model(name) for name in (bundled if model is None else [model])]
    one_size = len(gpus) > 1 or price_per_hour is not None
    pictures = tuple(map(parse_size, image)) if image else PICTURES[:1] if one_size else PICTURES
    asked = FitAsked.make(
        images=pictures,
        text_tokens=text_tokens,
        label_tokens=supervised_tokens,
        rank=rank,
        effective_batch=effective_batch,
        examples=examples,
        epochs=epochs,
    )
    with waiting() as tell:
        table = what_fits(gpus, models, asked, budget_bytes=lambda each: budget_bytes(budget, each), on_trace=tell)
    if html is not None:
        from budgetft.report.fit_page import write_fit_page

        write_fit_page(table, gpus, html, price_per_hour=price_per_hour)
    if json_output:
        print(json.dumps(table.to_dict(), indent=2))
    else:
        print_fit(table, gpus, note=note, price_per_hour=price_per_hour, page=None if html is None else str(html))


def _at_hand() -> "Gpu":
    """The GPU of this machine that CUDA would use."""
    from budgetft.cards import first_visible, memory_of
    from budgetft.gpu import find_gpu, gpu_at_hand
    from budgetft.units import MIB

    card = first_visible(os.environ)
    if card is None:
        raise UsageError(
            "no NVIDIA GPU was found here",
            hint="name one: budgetft fit --gpu rtx3060-12g (budgetft gpus lists them, --gpu 24GiB is any);"
            " or budgetft fit --model qwen3-vl-4b for one model on every GPU",
        )
    memory = memory_of(card)
    known = gpu_at_hand(card.name, memory)
    if known is not None:
        return known
    if card.capability is None:
        raise UsageError(f"{card.name} has no profile", hint="budgetft gpus --detect writes one; then --gpu NAME.toml")
    major, minor = card.capability
    return find_gpu(f"{memory // MIB}MiB:sm_{major}{minor}")
