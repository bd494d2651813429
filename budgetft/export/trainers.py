"""A plan in the words of other trainers: what they share with it, and what they cannot do.

Those trainers run the stock recipe: the whole vocabulary's logits, all layers checkpointed, the vision tower inside the
graph. So the micro-batch is the stock recipe's best that fits, not the plan's, and the peak told is the stock recipe's.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from budgetft.errors import UsageError, unknown_name
from budgetft.knobs import Knobs, differences, stock_knobs
from budgetft.model import Model
from budgetft.outcome import Estimate
from budgetft.plan import Candidate, Plan
from budgetft.units import format_gib
from budgetft.weights import split_revision

Trainer = Literal["transformers", "llamafactory", "swift"]
TEMPLATES = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl_nothink"}
"""LLaMA-Factory's template of each family."""
HALF = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """The trainer's file, and what to know before it is run."""

    trainer: Trainer
    text: str
    knobs: Knobs
    """The stock recipe as that trainer will run it."""
    estimate: Estimate
    """Of those knobs, on the plan's card."""
    lacks: dict[str, Any]
    """The plan's levers that the trainer has not."""
    warnings: tuple[str, ...]
    lora: dict[str, Any] | None = None
    """The fields of peft's LoraConfig, where the trainer's file has no place for them."""


def export_plan(
    plan: Plan, model: Model, trainer: str, *, output: str = "runs/exported", dataset: str | None = None
) -> Exported:
    """``plan`` for ``trainer``; ``dataset`` is what that trainer calls the data. Raises ``UsageError`` for another one."""
    if trainer not in get_args(Trainer):
        raise unknown_name("trainer", trainer, get_args(Trainer))
    stock = _stock(plan, model)
    write: dict[str, Callable[[Plan, Knobs, str, str | None], str]] = {
        "transformers": _transformers,
        "llamafactory": _llamafactory,
        "swift": _swift,
    }
    lacks = {
        name: value
        for name, value in differences(plan.knobs, stock.knobs).items()
        if name not in ("micro_batch", "grad_accum", "base_precision")
    }
    return Exported(
        trainer=trainer,  # pyright: ignore[reportArgumentType]
        text=write[trainer](plan, stock.knobs, output, dataset),
        knobs=stock.knobs,
        estimate=stock.estimate,
        lacks=lacks,
        warnings=tuple(_warnings(plan, stock, trainer, dataset)),
        lora=lora_fields(plan) if trainer == "transformers" else None,
    )


def lora_fields(plan: Plan) -> dict[str, Any]:
    """peft's ``LoraConfig`` as budgetft makes it."""
    contract = plan.contract
    return {
        "r": contract.rank,
        "lora_alpha": contract.alpha,
        "lora_dropout": contract.lora_dropout,
        **_variants(plan, init="init_lora_weights"),
        "target_modules": rf".*language_model.*\.({'|'.join(contract.targets)})",
        "task_type": "CAUSAL_LM",
    }


def _variants(plan: Plan, *, init: str | None) -> dict[str, Any]:
    """What is unusual of the adapter, by the names that peft has for it and the trainers too; ``init``: that of the start."""
    contract = plan.contract
    found: dict[str, Any] = {name: True for name in ("use_rslora", "use_dora") if getattr(contract, name)}
    return found | ({init: contract.init_lora} if init and contract.init_lora != "default" else {})


def _stock(plan: Plan, model: Model) -> Candidate:
    """The plan's baseline; where it has none, the smallest stock setting with its estimate."""
    if plan.baseline is not None:
        return plan.baseline
    from budgetft.measure.job import planned_job
    from budgetft.predict.estimator import Estimator

    knobs = stock_knobs(
        micro_batch=1,
        effective_batch=plan.contract.effective_batch,
        layers=model.layers,
        base_precision=plan.knobs.base_precision,
    )
    job = planned_job(plan, device="cuda", evidence="predicted", model=model)
    return Candidate(knobs=knobs, estimate=Estimator(job).estimate(knobs))


def _warnings(plan: Plan, stock: Candidate, trainer: str, dataset: str | None) -> list[str]:
    said, planned = stock.estimate, plan.estimate
    found = []
    if not said.fits:
        over = said.process_peak_bytes - plan.gpu.budget_bytes
        margin = f"{format_gib(over)} over" if over > 0 else "within the uncertainty of"
        found.append(
            f"{trainer} will not fit: its smallest setting takes {format_gib(said.process_peak_bytes)} ({said.evidence}),"
            f" {margin} the budget of {format_gib(plan.gpu.budget_bytes)}"
        )
    elif said.samples_per_second and planned.samples_per_second:
        found.append(
            f"{planned.samples_per_second / said.samples_per_second:.1f} times slower than the plan"
            f" ({said.samples_per_second:.2f} against {planned.samples_per_second:.2f} samples/s, {said.evidence})"
        )
    found.append("no cap: nothing stops that trainer at the budget, and its own evaluation and saving are not counted")
    if trainer == "transformers":
        found.append(f"load the model in {HALF[stock.knobs.base_precision]} and wrap it with the LoraConfig beside the file")
    elif dataset is None:
        found.append("no dataset is named: give --dataset as that trainer knows it")
    if plan.workload.is_video:
        frames, pixels = plan.workload.most_frames, plan.contract.max_pixels
        found.append(f"examples are videos of up to {frames} frames of {pixels} pixels: its own video settings must say so")
    if trainer == "llamafactory":
        found.append("cutoff_len cuts longer examples; budgetft refuses them")
        if plan.contract.init_lora != "default":
            found.append(
                f"it has no name for the start of the adapter: it will be peft's default, not {plan.contract.init_lora}"
            )
    return found


def _trainer_arguments(plan: Plan, knobs: Knobs, output: str) -> dict[str, Any]:
    """What all three take from transformers' own arguments."""
    contract = plan.contract
    return {
        "output_dir": output,
        "per_device_train_batch_size": knobs.micro_batch,
        "gradient_accumulation_steps": knobs.grad_accum,
        "gradient_checkpointing": True,
        "learning_rate": contract.learning_rate,
        "weight_decay": contract.weight_decay,
        "max_grad_norm": contract.max_grad_norm,
        "num_train_epochs": contract.epochs,
        "lr_scheduler_type": contract.lr_schedule,
        "optim": "adamw_torch",
        "seed": contract.seed,
        "fp16": knobs.base_precision == "fp16",
        "bf16": knobs.base_precision == "bf16",
        "logging_steps": 1,
        "report_to": "none",
    }


def _transformers(plan: Plan, knobs: Knobs, output: str, dataset: str | None) -> str:
    fields = _trainer_arguments(plan, knobs, output)
    fields["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    fields["remove_unused_columns"] = False
    fields["warmup_steps"] = plan.contract.warmup_ratio  # transformers 5: below 1 it is a share of all steps
    return json.dumps(fields, indent=2) + "\n"


def _llamafactory(plan: Plan, knobs: Knobs, output: str, dataset: str | None) -> str:
    contract = plan.contract
    fields = {
        **_weights(plan, "model_name_or_path"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": contract.rank,
        "lora_alpha": contract.alpha,
        "lora_dropout": contract.lora_dropout,
        **_variants(plan, init=None),
        "lora_target": ",".join(contract.targets),
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": True,
        "template": TEMPLATES[plan.model.family],
        "cutoff_len": contract.max_length,
        "image_max_pixels": contract.max_pixels,
        "flash_attn": "sdpa",
        "warmup_ratio": contract.warmup_ratio,
        **_trainer_arguments(plan, knobs, output),
    }
    del fields["gradient_checkpointing"]  # it has a switch of its own, on unless told otherwise
    return _yaml(fields | ({"dataset": dataset} if dataset else {}))


def _swift(plan: Plan, knobs: Knobs, output: str, dataset: str | None) -> str:
    contract = plan.contract
    fields = {
        **_weights(plan, "model"),
        "tuner_type": "lora",
        "lora_rank": contract.rank,
        "lora_alpha": contract.alpha,
        "lora_dropout": contract.lora_dropout,
        **_variants(plan, init="init_weights"),
        "target_modules": list(contract.targets),
        "freeze_vit": True,
        "freeze_aligner": True,
        "torch_dtype": HALF[knobs.base_precision],
        "attn_impl": "sdpa",
        "max_length": contract.max_length,
        "truncation_strategy": "delete",
        "max_pixels": contract.max_pixels,
        "warmup_ratio": contract.warmup_ratio,
        **_trainer_arguments(plan, knobs, output),
        "vit_gradient_checkpointing": False,
    }
    return _yaml(fields | ({"dataset": [dataset]} if dataset else {}))


def _weights(plan: Plan, name: str) -> dict[str, str]:
    """The model, as the field ``name``, and its revision where it is one of the hub's."""
    weights = plan.model.weights or plan.model.hub_id
    if weights is None:
        raise UsageError(f"the plan names no weights for {plan.model.name}", hint="plan for a model with a hub id or a folder")
    bare, revision = split_revision(weights)
    return {name: bare, **({"model_revision": revision} if revision else {})}


def _yaml(fields: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(fields, sort_keys=False)
