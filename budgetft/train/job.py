"""What a plan and the operational flags come to: model, weights, data and steps, all checked before any work."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from budgetft.data.examples import Examples, read_dataset
from budgetft.errors import UsageError
from budgetft.model import Model
from budgetft.outcome import in_former_names
from budgetft.plan import Plan, load_planned_model
from budgetft.train.folder import Identity
from budgetft.train.schedule import total_steps
from budgetft.weights import BaseWeights, Checkpoint, checkpoint_folder, open_checkpoint, refuse_other

RANDOM = "random"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a run depends on."""

    plan: Plan
    model: Model
    """As planned; its ``weights`` are those that are loaded, so that their processor is too."""
    weights: str | None
    """Their folder; None for random ones."""
    base: BaseWeights | None = None
    """What they are; None for random ones."""
    examples: Examples
    steps: int

    @property
    def identity(self) -> Identity:
        return Identity(
            plan_fingerprint=plan_fingerprint(self.plan),
            data_fingerprint=self.examples.fingerprint,
            weights=self.base.name if self.base else RANDOM,
            base=self.base,
            steps=self.steps,
        )


def plan_fingerprint(plan: Plan) -> str:
    """SHA-256 of the whole plan; the same as ever for a plan from before there were features."""
    text = in_former_names(plan.model_dump_json(exclude=None if plan.features else {"features"}))
    return hashlib.sha256(text.encode()).hexdigest()


def weighted_model(plan: Plan, weights: str | None) -> tuple[Model, Checkpoint | None]:
    """The plan's model and its weights (None: random), checked to be of its architecture, and those that it was made for,
    before they are read. Raises ``UsageError`` when they are not."""
    chosen = weights or plan.model.weights or plan.model.hub_id
    if chosen is None:
        raise UsageError(
            f"the plan names no weights for {plan.model.name}",
            hint="give --weights FOLDER or a hub id, or --weights random to try the machinery",
        )
    model = planned_model(plan, chosen)
    if chosen == RANDOM:
        return model, None
    folder = checkpoint_folder(chosen)
    check_architecture(str(folder), model)
    checkpoint = open_checkpoint(chosen)
    hint = "give the weights that it was made for, or plan again for these: budgetft plan --model ..."
    refuse_other(plan.model.base, checkpoint.base, "the plan was made for the weights", hint=hint, folder=folder)
    return model.replace(weights=str(folder)), checkpoint


def settle(plan: Plan, *, data: Path | None, weights: str | None, steps: int | None) -> Job:
    """The job. Raises ``UsageError`` when something is missing or is not what the plan was made for."""
    model, checkpoint = weighted_model(plan, weights)
    examples = _examples(plan, data)
    if steps is not None and steps < 1:
        raise UsageError(f"--steps must be at least 1, not {steps}")
    return Job(
        plan=plan,
        model=model,
        weights=None if checkpoint is None else str(checkpoint.folder),
        base=None if checkpoint is None else checkpoint.base,
        examples=examples,
        steps=steps or total_steps(plan.contract, len(examples)),
    )


def planned_model(plan: Plan, chosen: str) -> Model:
    if chosen == RANDOM:
        return load_planned_model(plan)
    if plan.model.weights is not None:
        return load_planned_model(plan, name=chosen)
    # A bundled description stands for the published weights; their own config.json has more keys than it.
    return load_planned_model(plan).replace(weights=chosen)


def check_architecture(weights: str, model: Model) -> None:
    """Refuse weights of another architecture before gigabytes of them are read."""
    from transformers import AutoConfig

    from budgetft.step.build import model_config

    try:
        found = AutoConfig.from_pretrained(weights, trust_remote_code=False)
    except Exception as error:  # each configuration class checks its fields in its own way
        raise UsageError(
            f"cannot read the config of the weights {weights!r}: {(str(error).splitlines() or [''])[0]}",
            hint="give --weights FOLDER with config.json and *.safetensors, or --weights random to try the machinery",
        ) from None
    planned = model_config(model)
    differing = _differences(found.get_text_config(), planned.get_text_config(), _TEXT_SIZES)
    differing += _differences(found.vision_config, planned.vision_config, _VISION_SIZES) if not differing else []
    if found.model_type != planned.model_type or differing:
        raise UsageError(
            f"the weights {weights!r} ({found.model_type}) are not of the planned model"
            f" {model.name} ({planned.model_type})" + "".join(f"; {line}" for line in differing),
            hint="plan again for these weights: budgetft plan --model ...",
        )


_TEXT_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
_VISION_SIZES = (
    "depth",
    "hidden_size",
    "embed_dim",
    "intermediate_size",
    "num_heads",
    "patch_size",
    "spatial_merge_size",
)


def _differences(found: Any, planned: Any, names: tuple[str, ...]) -> list[str]:
    pairs = ((name, getattr(found, name, None), getattr(planned, name, None)) for name in names)
    return [f"{name} is {there}, planned {here}" for name, there, here in pairs if there != here]


def _examples(plan: Plan, data: Path | None) -> Examples:
    if data is None and plan.data is None:
        raise UsageError("the plan names no data", hint="give --data FOLDER")
    examples = read_dataset(data or Path(plan.data or ""))
    planned = plan.workload.fingerprint
    if planned is not None and examples.fingerprint != planned:
        named = f"the data {plan.data} (fingerprint {planned})" if plan.data else f"data with fingerprint {planned}"
        raise UsageError(
            f"the plan was made for {named}; {examples.folder} has fingerprint {examples.fingerprint}",
            hint=f"plan again for this data: budgetft plan --data {examples.folder}",
        )
    return examples
