"""``budgetft fit``: what runs on a GPU, or where a model runs, in one table."""

import json
from pathlib import Path
from typing import Annotated

import typer

from budgetft.asked import LABEL_TOKENS, TEXT_TOKENS
from budgetft.cli import names, options
from budgetft.duration import MOST_EXAMPLES
from budgetft.errors import UsageError


def fit(
    gpu: options.Gpu_ = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            show_default="all bundled ones",
            help="One model: bundled, a folder or an id on the hub. Without --gpu: on every GPU that is known.",
            autocompletion=names.models,
            rich_help_panel=options.DATA,
        ),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            "--image-size",
            metavar="WxH",
            show_default="448x448 to 1344x1344",
            help="Size of the picture; repeatable.",
            rich_help_panel=options.DATA,
        ),
    ] = None,
    text_tokens: options.TextTokens = TEXT_TOKENS,
    supervised_tokens: options.SupervisedTokens = LABEL_TOKENS,
    examples: Annotated[
        int,
        typer.Option(min=1, max=MOST_EXAMPLES, help="Examples of an epoch, for the time.", rich_help_panel=options.TIME),
    ] = 2000,
    epochs: Annotated[
        int, typer.Option(min=1, max=10**6, help="How often every example is seen.", rich_help_panel=options.TIME)
    ] = 3,
    rank: Annotated[int, typer.Option(min=1, max=1024, help="LoRA rank.", rich_help_panel=options.KEPT)] = 16,
    effective_batch: Annotated[
        int, typer.Option(min=1, max=2**20, help="Examples per optimizer step.", rich_help_panel=options.KEPT)
    ] = 32,
    budget: options.Budget = None,
    display: options.Display = None,
    price_per_hour: options.PricePerHour = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="none",
            help="Write the table as a page of its own, sortable and offline.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Every model by LoRA and QLoRA on a GPU: what fits, memory, time, largest picture. Nothing is run."""
    from budgetft.cli.progress import waiting
    from budgetft.cli.show_fit import print_fit
    from budgetft.gpu import all_gpus
    from budgetft.model import load_model
    from budgetft.search.what_fits import recorded_models, what_fits
    from budgetft.units import parse_size
    from budgetft.what_fits import PICTURES, FitAsked

    if gpu is not None or model is None:
        chosen = options.gpu_of(gpu)
        gpus, budgets = [chosen], {chosen.name: options.budget_and_display(budget, chosen, display)[0]}
    elif budget is not None or display is not None:
        raise UsageError("--budget and --display are of one GPU", hint="give --gpu too, or leave them out")
    else:
        gpus = sorted(all_gpus(), key=lambda each: (each.memory_bytes, each.fp16_tflops or 0.0, each.name))
        budgets = {each.name: each.budget_bytes for each in gpus}
    models, others = recorded_models(gpus) if model is None else ([load_model(model)], [])
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
        table = what_fits(gpus, models, asked, budget_bytes=lambda each: budgets[each.name], on_trace=tell)
    if html is not None:
        from budgetft.report.fit_page import write_fit_page

        write_fit_page(table, gpus, html, price_per_hour=price_per_hour)
    if json_output:
        print(json.dumps(table.to_dict(), indent=2))
    else:
        print_fit(table, gpus, price_per_hour=price_per_hour, page=None if html is None else str(html), others=others)
