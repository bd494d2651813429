"""``budgetft plan``: find the fastest setting that stays under the budget, and write it down with its proof."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from budgetft.allocator import read_settings
from budgetft.asked import IMAGE, IMAGES, LABEL_TOKENS, MODEL, TEXT_TOKENS, Typed, sample_data, workload_of
from budgetft.cli import options
from budgetft.duration import parse_hours
from budgetft.errors import UsageError

if TYPE_CHECKING:
    from budgetft.plan import Plan
    from budgetft.search.run import PlanRequest


def plan(
    gpu: options.Gpu_ = None,
    model: options.Model_ = MODEL,
    revision: options.Revision = None,
    budget: options.Budget = None,
    display: options.Display = None,
    gpus: Annotated[
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
    images: options.Images = IMAGES,
    text_tokens: options.TextTokens = TEXT_TOKENS,
    supervised_tokens: options.SupervisedTokens = LABEL_TOKENS,
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
    hours: options.Hours = None,
    prefer: options.Prefer = None,
    sure: options.Sure = False,
    examples: options.ExamplesOf = None,
    price_per_hour: options.PricePerHour = None,
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
        typer.Option(
            "--trials",
            "--probe",
            help="Measure settings in trials: auto where a CUDA GPU is here.",
            rich_help_panel=options.SEARCH,
        ),
    ] = "auto",
    max_probes: Annotated[
        int,
        typer.Option(
            "--max-trials",
            "--max-probes",
            min=5,
            help="Most trials, baseline and confirmation included.",
            rich_help_panel=options.SEARCH,
        ),
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

    Without --data and --image it plans for a sample of drawn images. After an interrupt the same command resumes.
    """
    read_settings(os.environ)  # torch would abort as it is loaded
    from budgetft.cache import cache_folder
    from budgetft.cli.datasets import dataset
    from budgetft.cli.progress import planning
    from budgetft.cli.show import print_plan
    from budgetft.plan import check_file, write_plan
    from budgetft.search.run import PlanRequest, make_plan

    if data is not None and image is not None:
        raise UsageError("--image is instead of --data: a plan is of one or the other", hint="leave one of them out")
    check_file(out)
    goal = _goal(hours, prefer, sure, examples, typed=image is not None)
    profile, architecture, own = options.gpu_of(gpu), options.model_at(model, revision), cache_folder()
    options.note_pixels(architecture, max_pixels)
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
    budget_bytes, display_bytes = options.budget_and_display(budget, profile, display)
    data = None if data is None else dataset(data, quiet=quiet)
    with planning(quiet=quiet) as (on_event, say):
        if data is None and image is None:
            data = sample_data(own, say)
        work = data or Typed(image=image or IMAGE, images=images, text_tokens=text_tokens, label_tokens=supervised_tokens)
        request = PlanRequest(
            gpu=profile,
            budget_bytes=budget_bytes,
            display_bytes=display_bytes,
            gpus=gpus,
            model=architecture,
            contract=contract,
            ranges=ranges,
            workload_under=lambda changed: workload_of(work, architecture, changed),
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
        made = make_plan(request) if goal is None else _towards(goal, request)
    write_plan(made, out)
    print(made.model_dump_json(indent=2)) if json_output else print_plan(
        made, str(out), examples=examples, price_per_hour=price_per_hour
    )


def _goal(hours: str | None, prefer: str | None, sure: bool, examples: int | None, *, typed: bool) -> "Asked | None":
    """What was asked of the time; options that belong to it are refused without it."""
    if not typed and examples is not None:
        raise UsageError("--examples is for a typed shape (--image): the data says how many it has")
    if hours is None:
        given = [name for name, value in (("--prefer", prefer), ("--sure", sure)) if value]
        if given:
            raise UsageError(f"{given[0]} goes with --hours, which was not given", hint="say in what time: --hours 10")
        return None
    if typed and examples is None:
        raise UsageError("how many examples an epoch has is not known of a typed shape", hint="give --examples N")
    return Asked(hours=parse_hours(hours), prefer=prefer, sure=sure, examples=examples)


class Asked(NamedTuple):
    """``--hours`` and what goes with it."""

    hours: float
    prefer: str | None
    sure: bool
    examples: int | None


def _towards(goal: Asked, request: "PlanRequest") -> "Plan":
    """The plan of the largest contract that ends in time; of pixels, steps finer than doublings are tried."""
    from budgetft.goal import pixel_steps
    from budgetft.search.goal import GoalRequest, plan_goal

    ranges, pixels = dict(request.ranges), "max_pixels"
    if pixels in ranges:
        ranges[pixels] = pixel_steps(request.contract.max_pixels, ranges[pixels][-1], request.model.pixel_step)
    return plan_goal(GoalRequest(planning=replace(request, ranges=ranges), **goal._asdict()))
