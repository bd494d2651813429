"""``budgetft estimate``: what one setting would need, without planning and without a GPU."""

import json
from typing import Annotated

import typer

from budgetft.asked import IMAGE, IMAGES, LABEL_TOKENS, MODEL, TEXT_TOKENS, Typed, workload_of
from budgetft.cli import names, options, peers
from budgetft.errors import NothingFits, UsageError


def estimate(
    gpu: options.Gpu_ = None,
    model: options.Model_ = MODEL,
    revision: options.Revision = None,
    budget: options.Budget = None,
    display: options.Display = None,
    data: options.Data = None,
    image: options.OneImage = None,
    images: options.Images = IMAGES,
    text_tokens: options.TextTokens = TEXT_TOKENS,
    supervised_tokens: options.SupervisedTokens = LABEL_TOKENS,
    max_pixels: options.OneMaxPixels = None,
    max_length: options.MaxLength = None,
    rank: options.OneRank = None,
    targets: options.Targets = None,
    effective_batch: options.EffectiveBatch = None,
    seed: options.Seed = None,
    lora_alpha: options.LoraAlpha = None,
    lora_dropout: options.LoraDropout = None,
    use_rslora: options.UseRslora = False,
    use_dora: options.UseDora = False,
    init_lora: options.InitLora = None,
    lr_schedule: options.LrSchedule = None,
    warmup_ratio: options.WarmupRatio = None,
    weight_decay: options.WeightDecay = None,
    max_grad_norm: options.MaxGradNorm = None,
    epochs: options.Epochs = None,
    examples: options.ExamplesOf = None,
    price_per_hour: options.PricePerHour = None,
    allow_nf4: options.AllowNf4 = False,
    allow_adamw8bit: options.AllowAdamw8bit = False,
    knob: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            "--knob",
            metavar="NAME=VALUE",
            show_default="the fastest that fits",
            help="Fix a setting, such as micro_batch=4; repeatable.",
            autocompletion=names.knobs,
            rich_help_panel=options.SEARCH,
        ),
    ] = None,
    trainer: peers.Trainer = None,
    micro_batch: peers.MicroBatch = None,
    liger: peers.Liger = False,
    attn: peers.Attn = None,
    gradient_checkpointing: peers.GradientCheckpointing = None,
    load_in_4bit: peers.LoadIn4bit = None,
    json_output: options.Json = False,
) -> None:
    """Estimate the memory and speed of one setting, without a GPU and without running anything.

    Settings that --setting does not fix are the fastest that are predicted to fit. Exit code 3: it does not fit.
    """
    from budgetft.cli.datasets import dataset
    from budgetft.cli.progress import waiting
    from budgetft.cli.show import print_estimate, print_ways_out
    from budgetft.knobs import parse_knob
    from budgetft.measure.job import Job
    from budgetft.predict.estimator import Estimator
    from budgetft.search.predicted import estimated

    if data is not None and examples is not None:
        raise UsageError("--examples is for a typed shape (--image): the data says how many it has")
    given = dict(parse_knob(text) for text in knob or [])
    asked = peers.Asked(
        trainer=trainer,
        micro_batch=micro_batch,
        liger=liger,
        attn=attn,
        gradient_checkpointing=gradient_checkpointing,
        load_in_4bit=load_in_4bit,
    )
    asked.check(given, allow_adamw8bit=allow_adamw8bit)
    profile, architecture = options.gpu_of(gpu), options.model_at(model, revision)
    if data is not None and image is not None:
        raise UsageError("--image is instead of --data: an estimate is of one or the other", hint="leave one of them out")
    options.note_pixels(architecture, max_pixels)
    typed = Typed(image=image or IMAGE, images=images, text_tokens=text_tokens, label_tokens=supervised_tokens)
    contract, ranges = options.contract_from(
        max_pixels=max_pixels or (str(typed.pixels) if data is None else None),
        max_length=max_length,
        rank=rank,
        targets=targets,
        effective_batch=effective_batch,
        epochs=epochs,
        seed=seed,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        use_rslora=use_rslora,
        use_dora=use_dora,
        init_lora=init_lora,
        lr_schedule=lr_schedule,
        warmup_ratio=warmup_ratio,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        allow_nf4=allow_nf4,
        allow_adamw8bit=allow_adamw8bit,
    )
    if ranges:
        name = next(iter(ranges)).replace("_", "-")
        raise UsageError(f"--{name}: an estimate is of one setting", hint="budgetft plan tells what a range costs")
    work = typed if data is None else dataset(data)
    budget_bytes, display_bytes = options.budget_and_display(budget, profile, display)
    job = Job(
        gpu=profile,
        budget_bytes=budget_bytes,
        model=architecture,
        contract=contract,
        workload=workload_of(work, architecture, contract),
        evidence="predicted",
    )
    if asked.trainer is not None:
        return peers.estimate_peer(asked, job, json_output=json_output)
    with waiting() as tell:
        found = estimated(Estimator(job, at_once=True, on_trace=tell), given)
    if examples is not None:
        found = found.replace(examples=examples)
    if json_output:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print_estimate(
            found, gpu=profile, layers=architecture.layers, display_bytes=display_bytes, price_per_hour=price_per_hour
        )
        if not found.fits:
            from budgetft.search.ways_out import ways_out  # loads optuna

            with waiting() as tell:
                ways = ways_out(job, given, on_trace=tell)
            print_ways_out(ways)
    if not found.fits:
        raise typer.Exit(NothingFits.exit_code)
