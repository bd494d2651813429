"""``budgetft estimate``: what one setting would need, without planning and without a card."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from budgetft.cli import names, options
from budgetft.errors import NothingFits, UsageError

if TYPE_CHECKING:
    from budgetft.contract import Contract
    from budgetft.model import Model
    from budgetft.workload import Workload


def estimate(
    gpu: options.Gpu_,
    model: options.Model_ = options.DEFAULT_MODEL,
    revision: options.Revision = None,
    budget: options.Budget = None,
    data: options.Data = None,
    image: options.OneImage = None,
    images: options.Images = 1,
    text_tokens: options.TextTokens = 256,
    supervised_tokens: options.SupervisedTokens = 160,
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
    allow_nf4: options.AllowNf4 = False,
    allow_adamw8bit: options.AllowAdamw8bit = False,
    knob: Annotated[
        list[str] | None,
        typer.Option(
            "--knob",
            metavar="NAME=VALUE",
            show_default="the fastest that fits",
            help="Fix a setting, such as micro_batch=4; repeatable.",
            autocompletion=names.knobs,
            rich_help_panel=options.SEARCH,
        ),
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Estimate the memory and speed of one setting, without a GPU and without running anything.

    Settings that --knob does not fix are the fastest that are predicted to fit. Exit code 3: it does not fit.
    """
    from budgetft.cli.progress import waiting
    from budgetft.cli.show import print_estimate
    from budgetft.gpu import load_gpu
    from budgetft.knobs import parse_knob
    from budgetft.measure.job import Job
    from budgetft.predict.estimator import Estimator
    from budgetft.search.predicted import fastest
    from budgetft.units import parse_size
    from budgetft.workload import Workload

    given = dict(parse_knob(text) for text in knob or [])
    card, architecture = load_gpu(gpu), options.model_at(model, revision)
    if data is not None and image is not None:
        raise UsageError("--image is instead of --data: an estimate is of one or the other", hint="leave one of them out")
    width, height = parse_size(image or options.DEFAULT_IMAGE)
    contract, ranges = options.contract_from(
        max_pixels=max_pixels or (str(width * height) if data is None else None),
        max_length=max_length,
        rank=rank,
        targets=targets,
        effective_batch=effective_batch,
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
        raise UsageError(f"--{name}: an estimate is of one setting", hint="budgetft plan prices a range")
    if data is None:
        typed = f"{width}x{height}", images, text_tokens, supervised_tokens
        workload = Workload.uniform(options.typed_shape(*typed, model=architecture, contract=contract))
    else:
        workload = _measured(data, architecture, contract)
    job = Job(
        gpu=card,
        budget_bytes=options.budget_bytes(budget, card),
        model=architecture,
        contract=contract,
        workload=workload,
        evidence="predicted",
    )
    with waiting() as tell:
        estimator = Estimator(job, at_once=True, on_trace=tell)
        best = fastest(estimator, given)
    print_estimate(best.knobs, best.estimate, estimator=estimator, json_output=json_output)
    if not best.estimate.fits:
        raise typer.Exit(NothingFits.exit_code)


def _measured(data: Path, model: "Model", contract: "Contract") -> "Workload":
    from budgetft.cli.datasets import dataset
    from budgetft.data.examples import read_dataset
    from budgetft.data.processor import load_processor
    from budgetft.data.stats import measure_workload

    return measure_workload(read_dataset(dataset(data)), load_processor(model), model, contract)
