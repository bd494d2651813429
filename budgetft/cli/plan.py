"""``budgetft plan``: find the fastest setting that stays under the budget, and write it down with its proof."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from budgetft.allocator import read_settings
from budgetft.cli import options
from budgetft.errors import UsageError

if TYPE_CHECKING:
    from budgetft.contract import Contract
    from budgetft.model import Model
    from budgetft.workload import Workload


def plan(
    gpu: options.Gpu_,
    model: options.Model_ = options.DEFAULT_MODEL,
    revision: options.Revision = None,
    budget: options.Budget = None,
    cards: Annotated[
        int,
        typer.Option(
            "--gpus",
            "--cards",
            min=1,
            help="GPUs of one machine, each with that budget: all hold the base model, or shard it, whichever is faster.",
            rich_help_panel=options.GPU,
        ),
    ] = 1,
    data: options.Data = None,
    image: options.Image = None,
    images: options.Images = 1,
    text_tokens: options.TextTokens = 256,
    supervised_tokens: options.SupervisedTokens = 160,
    max_pixels: options.MaxPixels = None,
    max_length: options.MaxLength = None,
    frames_per_example: options.FramesPerExample = None,
    rank: options.Rank = None,
    targets: options.Targets = None,
    effective_batch: options.EffectiveBatch = None,
    learning_rate: options.LearningRate = None,
    epochs: options.Epochs = None,
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
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="Runs on one GPU are bit-identical; what that costs is measured.",
            rich_help_panel=options.SEARCH,
        ),
    ] = False,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|auto",
            show_default="none",
            help="Also consider computing vision features once and reading them from this folder; auto: one of its own.",
            rich_help_panel=options.SEARCH,
        ),
    ] = None,
    allow_nf4: options.AllowNf4 = False,
    allow_adamw8bit: options.AllowAdamw8bit = False,
    probe: Annotated[
        options.Probe,
        typer.Option(help="Measure settings in trials: auto where a CUDA GPU is here.", rich_help_panel=options.SEARCH),
    ] = "auto",
    max_probes: Annotated[
        int, typer.Option(min=5, help="Most trials, baseline and confirmation included.", rich_help_panel=options.SEARCH)
    ] = 20,
    sampler: Annotated[
        Literal["residual", "tpe", "gp"],
        typer.Option(help="What proposes the next trial.", rich_help_panel=options.SEARCH),
    ] = "residual",
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=f"SQLite {options.CACHED}",
            help="Optuna storage. Several workers may share journal://FILE or a database server.",
            rich_help_panel=options.SEARCH,
        ),
    ] = None,
    ledger: options.Ledger = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="The plan file to write.", rich_help_panel=options.OUTPUT)
    ] = Path("plan.json"),
    quiet: options.Quiet = False,
    json_output: options.Json = False,
) -> None:
    """Plan the fastest LoRA run that stays inside the memory budget, without changing a training setting.

    Without --data and --image it plans for a sample of drawn images. After an interrupt the same command goes on.
    """
    read_settings(os.environ)  # torch would abort as it is loaded
    from budgetft.cache import cache_folder
    from budgetft.cli.datasets import dataset
    from budgetft.cli.progress import planning
    from budgetft.cli.show import print_plan
    from budgetft.gpu import load_gpu
    from budgetft.plan import check_file, write_plan
    from budgetft.search.run import PlanRequest, make_plan

    if data is not None and image is not None:
        raise UsageError("--image is instead of --data: a plan is of one or the other", hint="leave one of them out")
    check_file(out)
    card, architecture, own = load_gpu(gpu), options.model_at(model, revision), cache_folder()
    max_pixels = options.pixels_of(image) if image and max_pixels is None else max_pixels
    contract, ranges = options.contract_from(
        max_pixels=max_pixels,
        max_length=max_length,
        frames_per_example=frames_per_example,
        rank=rank,
        targets=targets,
        effective_batch=effective_batch,
        learning_rate=learning_rate,
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
    data = None if data is None else dataset(data, quiet=quiet)
    with planning(quiet=quiet) as (on_event, say):
        if data is None and image is None:
            data = _sample(own / "sample", say)
        request = PlanRequest(
            gpu=card,
            budget_bytes=options.budget_bytes(budget, card),
            cards=cards,
            model=architecture,
            contract=contract,
            ranges=ranges,
            workload_under=_workloads(data, image, images, text_tokens, supervised_tokens, architecture),
            data=None if data is None else str(data.resolve()),
            cache=cache,
            deterministic=deterministic,
            probe=probe,
            max_probes=max_probes,
            sampler=sampler,
            storage=storage or f"sqlite:///{own / 'studies.sqlite3'}",
            ledger=ledger or own / "ledger.sqlite3",
            on_event=on_event,
        )
        own.mkdir(parents=True, exist_ok=True)
        made = make_plan(request)
    write_plan(made, out)
    print(made.model_dump_json(indent=2)) if json_output else print_plan(made, str(out))


def _sample(folder: Path, say: Callable[[str], None]) -> Path:
    """The drawn sample dataset, made once; a whole one is recognised by being readable."""
    from budgetft.data.examples import read_dataset
    from budgetft.data.sample import write_sample
    from budgetft.errors import UsageError

    try:
        read_dataset(folder)
    except UsageError:
        say(f"no --data and no --image: planning for the drawn sample dataset in {folder}")
        write_sample(folder, overwrite=folder.exists())
    return folder


def _workloads(
    data: Path | None, image: str | None, images: int, text: int, supervised: int, model: "Model"
) -> Callable[["Contract"], "Workload"]:
    """The shapes of the typed image or of the data, under whatever contract they are asked for."""

    def typed(contract: "Contract") -> "Workload":
        from budgetft.workload import Workload

        assert image is not None
        return Workload.uniform(options.typed_shape(image, images, text, supervised, model=model, contract=contract))

    def measured(contract: "Contract") -> "Workload":
        from budgetft.data.examples import read_dataset
        from budgetft.data.processor import load_processor
        from budgetft.data.stats import measure_workload

        assert data is not None
        return measure_workload(read_dataset(data), load_processor(model), model, contract)

    return measured if image is None else typed
