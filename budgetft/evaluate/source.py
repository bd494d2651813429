"""What generates: base weights with or without an adapter, under which budget, contract and knobs."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from budgetft.contract import Contract
from budgetft.errors import BudgetftError, UsageError
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs, Precision
from budgetft.model import Model, load_model
from budgetft.plan import Plan, Target, read_plan
from budgetft.step.build import build_model
from budgetft.step.step import Step
from budgetft.train.folder import ADAPTER_WEIGHTS, RunFolder
from budgetft.train.job import RANDOM, check_architecture, weighted_model
from budgetft.train.memory import Memory
from budgetft.train.numerics import restore_fp32_blocks
from budgetft.train.provenance import adapter_sha256
from budgetft.value import read_json
from budgetft.weights import BaseWeights, checkpoint_folder, open_checkpoint, refuse_other


@dataclass(frozen=True, kw_only=True)
class Source:
    """Everything that generation depends on but the data."""

    model: Model
    weights: str | None
    """Their folder; None for random ones, seeded by the contract as in training."""
    adapter: Path | None
    """A folder as ``budgetft train`` leaves it; None for the base alone."""
    target: Target
    contract: Contract
    knobs: Knobs
    base: BaseWeights | None = None
    """What the weights are; None for random ones."""
    fp32_blocks: tuple[str, ...] = ()
    """Blocks that the run computed in fp32."""


def source_of_run(run: Path, *, weights: str | None = None, use_adapter: bool = True) -> Source:
    """What the run in ``run`` trained, on the weights it started from unless others are given.

    Raises ``UsageError`` when it holds no run, or no adapter yet and one is wanted.
    """
    folder = RunFolder(run)
    if not folder.holds_run:
        raise UsageError(f"{run} holds no run", hint="give --run the folder that budgetft train --out wrote")
    if use_adapter and not (folder.adapter / ADAPTER_WEIGHTS).is_file():
        raise UsageError(
            f"the run in {run} has no adapter: it has not come to its end",
            hint=f"finish it: budgetft train --plan {folder.plan} --out {run} --resume; or add --no-adapter",
        )
    plan, identity = read_plan(folder.plan), folder.read_identity()
    source = source_of_plan(plan, weights=weights or identity.given_weights, adapter=folder.adapter if use_adapter else None)
    if use_adapter:
        hint = "give the weights that it was started from, or --no-adapter"
        refuse_other(identity.base, source.base, f"the run in {run} was started from", hint=hint)
    summary = read_json(folder.summary) if folder.summary.is_file() else {}
    fp32_blocks = summary.get("fp32_blocks", summary.get("islands", ()))  # the second name is that of before 0.2
    return replace(source, fp32_blocks=tuple(fp32_blocks))


def source_of_plan(plan: Plan, *, weights: str | None = None, adapter: Path | None = None) -> Source:
    """The model of ``plan``; weights (a folder, a hub id or ``random``) default to the plan's."""
    model, checkpoint = weighted_model(plan, weights)
    return Source(
        model=model,
        weights=None if checkpoint is None else str(checkpoint.folder),
        base=None if checkpoint is None else checkpoint.base,
        adapter=adapter,
        target=plan.gpu,
        contract=plan.contract,
        knobs=plan.knobs,
    )


def source_of_model(
    name: str,
    *,
    gpu: Gpu,
    budget_bytes: int,
    contract: Contract,
    weights: str | None = None,
    precision: Precision | None = None,
) -> Source:
    """A model alone, under ``budget_bytes`` on ``gpu``; its type is the GPU's best half precision unless given."""
    model = load_model(name)
    chosen = weights or model.weights or model.hub_id
    if chosen is None:
        raise UsageError(
            f"{model.name} has no weights of its own", hint="give --weights FOLDER or a hub id, or --weights random"
        )
    checkpoint = None
    if chosen != RANDOM:
        check_architecture(str(checkpoint_folder(chosen)), model)
        checkpoint = open_checkpoint(chosen)
    ours = "efficient" if gpu.efficient_attention else "math"
    knobs = Knobs(
        micro_batch=1,
        grad_accum=1,
        checkpointed_layers=0,
        attention=ours if model.facts.kernels else "stock",
        base_precision=precision or gpu.base_precision,
    )
    return Source(
        model=model if checkpoint is None else model.replace(weights=str(checkpoint.folder)),
        weights=None if checkpoint is None else str(checkpoint.folder),
        base=None if checkpoint is None else checkpoint.base,
        adapter=None,
        target=Target(name=gpu.name, budget_bytes=budget_bytes, profile=gpu),
        contract=contract,
        knobs=knobs,
    )


def build_step(source: Source, memory: Memory) -> Step:
    """The model of ``source`` on the device of ``memory``, with the kernels and the precision of training, for inference.

    Raises ``torch.OutOfMemoryError`` above the cap, and ``BudgetftError`` for an adapter that does not fit the model.
    """
    peft_model = build_model(
        source.model,
        source.contract,
        base_precision=source.knobs.base_precision,
        device=memory.device,
        weights=source.weights,
    )
    if source.adapter is not None:
        _load_adapter(peft_model, source.adapter)
    memory.count(peft_model.parameters())
    memory.count(peft_model.buffers())
    knobs = source.knobs.replace(checkpointed_layers=0, optimizer="adamw")
    if knobs.vision == "cached":  # features are of the training images
        knobs = knobs.replace(vision="frozen")
    step = Step(peft_model, source.contract, knobs, device=memory.device)
    with memory.working():
        restore_fp32_blocks(step, source.fp32_blocks)
    if source.adapter is None:
        peft_model.disable_adapter_layers()  # after the step, which wants something to train
    return step


def adapter_fingerprint(adapter: Path | None) -> str | None:
    """SHA-256 of the tensors in the adapter folder; None without one."""
    return None if adapter is None else adapter_sha256(adapter)


def _load_adapter(peft_model: Any, folder: Path) -> None:
    from peft import set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        loaded = set_peft_model_state_dict(peft_model, tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BudgetftError(f"cannot load the adapter in {folder}: {(str(error).splitlines() or [''])[0]}") from None
    absent = [name for name in loaded.missing_keys if ".lora_" in name]
    if absent or loaded.unexpected_keys:
        raise BudgetftError(
            f"the adapter in {folder} does not fit the model: {len(absent)} tensors missing,"
            f" {len(loaded.unexpected_keys)} unexpected"
        )
