"""``budgetft estimate``: what one setting would need, without planning and without a card."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgetft.cli import options

if TYPE_CHECKING:
    from budgetft.knobs import Knobs
    from budgetft.measure.job import Job


def estimate(
    gpu: options.Gpu_,
    model: options.Model_ = options.DEFAULT_MODEL,
    budget: options.Budget = None,
    image: options.Image = "448x448",
    images: options.Images = 1,
    text_tokens: options.TextTokens = 256,
    supervised_tokens: options.SupervisedTokens = 160,
    max_pixels: options.MaxPixels = None,
    max_length: options.MaxLength = None,
    rank: options.Rank = None,
    targets: options.Targets = None,
    effective_batch: options.EffectiveBatch = None,
    allow_nf4: options.AllowNf4 = False,
    allow_adamw8bit: options.AllowAdamw8bit = False,
    knob: Annotated[list[str] | None, typer.Option("--knob", help="A knob's value, NAME=VALUE; repeatable.")] = None,
    json_output: options.Json = False,
) -> None:
    """Estimate the memory and speed of one setting; knobs left out are the fastest that are predicted to fit."""
    from budgetft.cli.show import print_estimate
    from budgetft.gpu import load_gpu
    from budgetft.knobs import parse_knob
    from budgetft.measure.job import Job
    from budgetft.model import load_model
    from budgetft.predict.estimator import Estimator
    from budgetft.units import parse_size
    from budgetft.workload import Workload

    given = dict(parse_knob(text) for text in knob or [])
    card, architecture = load_gpu(gpu), load_model(model)
    width, height = parse_size(image or "448x448")
    contract, _ = options.contract_from(
        max_pixels=max_pixels or str(width * height),
        max_length=max_length,
        rank=rank,
        targets=targets,
        effective_batch=effective_batch,
        allow_nf4=allow_nf4,
        allow_adamw8bit=allow_adamw8bit,
    )
    shape = options.typed_shape(
        f"{width}x{height}", images, text_tokens, supervised_tokens, model=architecture, contract=contract
    )
    job = Job(
        gpu=card,
        budget_bytes=options.budget_bytes(budget, card),
        model=architecture,
        contract=contract,
        workload=Workload.uniform(shape),
        evidence="predicted",
    )
    estimator = Estimator(job)
    rated = [(knobs, estimator.estimate(knobs)) for knobs in _wanted(job, given)]
    fitting = [pair for pair in rated if pair[1].fits]
    best = (
        max(fitting, key=lambda pair: pair[1].samples_per_second or 0)
        if fitting
        else min(rated, key=lambda pair: pair[1].process_peak_bytes)
    )
    print_estimate(*best, job=job, calibration=estimator.calibration, json_output=json_output)


def _wanted(job: "Job", given: dict[str, Any]) -> "list[Knobs]":
    """Every setting of the grid with the ``given`` knobs in place of its own."""
    from budgetft.errors import UsageError
    from budgetft.knobs import Knobs
    from budgetft.plan import knob_problems
    from budgetft.search.space import settings

    grid, contract, layers = settings(job), job.contract, job.model.layers
    if "micro_batch" in given:
        given.setdefault("grad_accum", contract.effective_batch // max(1, given["micro_batch"]))
    Knobs.make(**{**dict(grid[0]), **given})
    wanted = list(dict.fromkeys(knobs.replace(**given) for knobs in grid))
    wanted = [knobs for knobs in wanted if not knob_problems(knobs, contract, job.gpu)]
    if not wanted or any(knobs.checkpointed_layers > layers for knobs in wanted):
        problems = knob_problems(grid[0].replace(**given), contract, job.gpu)
        problems.append(f"checkpointed_layers is 0 to {layers}")
        raise UsageError("; ".join(problems))
    return wanted
