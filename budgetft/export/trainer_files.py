"""The files of trainers that are set up by fields: transformers' TrainingArguments, LLaMA-Factory's and ms-swift's YAML."""

import json
import math
from dataclasses import dataclass
from typing import Any

from budgetft.duration import time_under
from budgetft.errors import UsageError
from budgetft.knobs import Knobs
from budgetft.model import Model
from budgetft.plan import Plan
from budgetft.weights import split_revision

TEMPLATES = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl_nothink"}
"""LLaMA-Factory's template of each family."""
HALF = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}
CHECKPOINTS = 10
"""Of a run whose length is known, this many are saved, the newest ``KEPT`` of them kept."""
KEPT = 2


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a writer is given."""

    plan: Plan
    knobs: Knobs
    """The trainer's own."""
    model: Model
    output: str
    dataset: str | None

    @property
    def four_bit(self) -> bool:
        """Whether the base model is in 4 bits."""
        return self.knobs.base_precision == "nf4"

    @property
    def precision(self) -> str:
        """What it computes in: of 4-bit weights, what the GPU runs natively."""
        return self.plan.gpu.profile.base_precision if self.four_bit else self.knobs.base_precision

    @property
    def pixels(self) -> tuple[int, int]:
        """Fewest and most of an image."""
        most = min(self.model.max_pixels, self.plan.contract.max_pixels)
        return min(self.model.min_pixels, most), most

    @property
    def steps(self) -> int | None:
        """Of the whole run; None where the number of examples is not known."""
        contract = self.plan.contract
        time = time_under(contract, self.plan.estimate, self.plan.workload.examples)
        return None if time is None else time.steps

    def weights(self, name: str) -> dict[str, str]:
        """The model, as the field ``name``, and its revision where it is one of the hub's."""
        weights = self.plan.model.weights or self.plan.model.hub_id
        if weights is None:
            raise UsageError(
                f"the plan names no weights for {self.plan.model.name}", hint="plan for a model with a hub id or a folder"
            )
        bare, revision = split_revision(weights)
        return {name: bare, **({"model_revision": revision} if revision else {})}

    def arguments(self) -> dict[str, Any]:
        """What all take from transformers' TrainingArguments; the warm-up and the saving in steps where these are known."""
        contract, steps = self.plan.contract, self.steps
        saving = {"save_strategy": "epoch"}
        if steps is not None:
            saving = {"save_strategy": "steps", "save_steps": max(1, math.ceil(steps / CHECKPOINTS))}
        return {
            "output_dir": self.output,
            "per_device_train_batch_size": self.knobs.micro_batch,
            "gradient_accumulation_steps": self.knobs.grad_accum,
            "gradient_checkpointing": True,
            "learning_rate": contract.learning_rate,
            "weight_decay": contract.weight_decay,
            "max_grad_norm": contract.max_grad_norm,
            "num_train_epochs": contract.epochs,
            "lr_scheduler_type": contract.lr_schedule,
            "optim": "adamw_torch",
            "seed": contract.seed,
            "fp16": self.precision == "fp16",
            "bf16": self.precision == "bf16",
            "logging_steps": 1,
            "report_to": "none",
            **saving,
            "save_total_limit": KEPT,
            "eval_strategy": "no",
            "per_device_eval_batch_size": self.knobs.micro_batch,
        }

    def warmup(self, share_name: str) -> dict[str, float]:
        """The warm-up in whole steps where the length of the run is known, which every release takes; else as a share."""
        share = self.plan.contract.warmup_ratio
        return {share_name: share} if self.steps is None else {"warmup_steps": math.ceil(share * self.steps)}


def variants(plan: Plan, *, init: str | None) -> dict[str, Any]:
    """What is unusual of the adapter, by the names that peft has for it and the trainers too; ``init``: that of the start."""
    contract = plan.contract
    found: dict[str, Any] = {name: True for name in ("use_rslora", "use_dora") if getattr(contract, name)}
    return found | ({init: contract.init_lora} if init and contract.init_lora != "default" else {})


def lora_fields(plan: Plan) -> dict[str, Any]:
    """peft's ``LoraConfig`` as budgetft makes it."""
    contract = plan.contract
    return {
        "r": contract.rank,
        "lora_alpha": contract.alpha,
        "lora_dropout": contract.lora_dropout,
        **variants(plan, init="init_lora_weights"),
        "target_modules": rf".*language_model.*\.({'|'.join(contract.targets)})",
        "task_type": "CAUSAL_LM",
    }


def transformers_file(draft: Draft) -> str:
    """TrainingArguments as JSON."""
    fields = draft.arguments()
    fields["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    fields["remove_unused_columns"] = False
    fields |= draft.warmup("warmup_steps")  # transformers 5: below 1 it is a share of all steps
    return json.dumps(fields, indent=2) + "\n"


def llamafactory_file(draft: Draft) -> str:
    """A YAML for ``llamafactory-cli train``."""
    contract = draft.plan.contract
    fields = {
        **draft.weights("model_name_or_path"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        **({"quantization_bit": 4, "quantization_method": "bnb"} if draft.four_bit else {}),
        "lora_rank": contract.rank,
        "lora_alpha": contract.alpha,
        "lora_dropout": contract.lora_dropout,
        **variants(draft.plan, init=None),
        "lora_target": ",".join(contract.targets),
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": True,
        "template": TEMPLATES[draft.plan.model.family],
        "cutoff_len": contract.max_length,
        "image_max_pixels": contract.max_pixels,
        "flash_attn": "sdpa",
        **draft.warmup("warmup_ratio"),
        **draft.arguments(),
    }
    del fields["gradient_checkpointing"]  # it has a switch of its own, on unless told otherwise
    return _yaml(fields | ({"dataset": draft.dataset} if draft.dataset else {}))


def swift_file(draft: Draft) -> str:
    """A YAML for ``swift sft``."""
    contract = draft.plan.contract
    fields = {
        **draft.weights("model"),
        "tuner_type": "lora",
        **({"quant_method": "bnb", "quant_bits": 4} if draft.four_bit else {}),
        "lora_rank": contract.rank,
        "lora_alpha": contract.alpha,
        "lora_dropout": contract.lora_dropout,
        **variants(draft.plan, init="init_weights"),
        "target_modules": list(contract.targets),
        "freeze_vit": True,
        "freeze_aligner": True,
        "torch_dtype": HALF[draft.precision],
        "attn_impl": "sdpa",
        "max_length": contract.max_length,
        "truncation_strategy": "delete",
        "max_pixels": contract.max_pixels,
        **draft.warmup("warmup_ratio"),
        **draft.arguments(),
        "vit_gradient_checkpointing": False,
    }
    return _yaml(fields | ({"dataset": [draft.dataset]} if draft.dataset else {}))


def _yaml(fields: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(fields, sort_keys=False)
