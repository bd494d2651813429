"""Everything a run needs to go on as if nothing had happened, in plain formats: safetensors and JSON, no pickle."""

import shutil
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import torch

from budgetft.errors import BudgetftError
from budgetft.step.optimizer import own_states, set_states, state_shapes
from budgetft.step.step import Step
from budgetft.train.folder import ADAPTER_WEIGHTS, write_folder
from budgetft.value import Value, read_json
from budgetft.weights import file_sha256

KEPT = 2
ADAPTER, OPTIMIZER, STATE = "adapter", "optimizer.safetensors", "state.json"


class State(Value):
    """``state.json``: written last, with the other files' contents, so a cut checkpoint is told from a whole one."""

    step: int
    """Finished optimizer steps."""
    examples_seen: int
    """The sampler's position: in the endless row of permutations."""
    plan_fingerprint: str
    scaler: dict[str, int | float]
    """The gradient scaler's scale, growth tracker and constants; empty without a scaler."""
    rng: dict[str, Any] | None = None
    """Of older versions; what a step draws follows from its number now."""
    sha256: dict[str, str]


def write_adapter(step: Step, folder: Path) -> None:
    """The adapter as peft writes it. No embedding is trained, and looking for one could ask the hub."""
    step.peft_model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)


def write_checkpoint(checkpoints: Path, step: Step, *, finished_steps: int, plan_fingerprint: str) -> Path:
    """Write ``step-N`` whole or not at all, then drop all but the newest two.

    Raises ``BudgetftError`` when the disk refuses.
    """
    target = checkpoints / f"step-{finished_steps}"

    def fill(folder: Path) -> None:
        from safetensors.torch import save_file

        write_adapter(step, folder / ADAPTER)
        save_file(_optimizer_tensors(step), folder / OPTIMIZER)
        state = State(
            step=finished_steps,
            examples_seen=finished_steps * step.contract.effective_batch,
            plan_fingerprint=plan_fingerprint,
            scaler=step.scaler.state_dict(),
            sha256={name: file_sha256(folder / name) for name in _data_files(folder)},
        )
        (folder / STATE).write_text(state.model_dump_json(indent=2) + "\n", encoding="utf-8")

    write_folder(target, fill)
    for _, old in _numbered(checkpoints)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest_checkpoint(checkpoints: Path, on_note: Callable[[str], None]) -> tuple[Path, State] | None:
    """The newest whole checkpoint, or None when none was ever written; damaged ones are told and removed. Of several
    processes one alone may call it.

    Raises ``BudgetftError`` when there are some and all are damaged: starting over is for the user to decide.
    """
    for leftover in checkpoints.glob(".step-*.part"):
        shutil.rmtree(leftover, ignore_errors=True)
    damaged: list[tuple[Path, str]] = []
    for number, folder in _numbered(checkpoints):
        found = _examined(folder, number)
        if isinstance(found, State):
            for broken, why in damaged:
                on_note(f"warning: checkpoint {broken.name} is damaged ({why}); going back to {folder.name}")
                shutil.rmtree(broken, ignore_errors=True)
            return folder, found
        damaged.append((folder, found))
    if damaged:
        told = "; ".join(f"{folder.name}: {why}" for folder, why in damaged)
        raise BudgetftError(f"no checkpoint in {checkpoints} is whole: {told}", hint="start again in another folder")
    return None


def same_checkpoint(checkpoints: Path, chosen: State) -> Path:
    """The checkpoint that another process has ``chosen``, as this one finds it; nothing is removed.

    Raises ``BudgetftError`` when it is not there, damaged, or another one.
    """
    folder = checkpoints / f"step-{chosen.step}"
    found = _examined(folder, chosen.step) if folder.is_dir() else "it is not there"
    if isinstance(found, State) and found != chosen:
        found = "it is another one of that step"
    if not isinstance(found, State):
        raise BudgetftError(
            f"the run goes on from {folder} for process 0, and here {found}",
            hint="let all processes see the same run folder, on a disk that they share",
        )
    return folder


def step_of(folder: Path) -> int | None:
    """Of which step the checkpoint ``folder`` is; None when there is none, or it is not whole."""
    try:
        state = State.read(read_json(folder / STATE), source=str(folder / STATE))
    except BudgetftError:
        return None
    return state.step if _damage(folder, state.step, state) is None else None


def restore_checkpoint(folder: Path, state: State, step: Step) -> None:
    """Load adapter, optimizer and scaler into ``step``.

    Raises ``BudgetftError`` when they are not of this step.
    """
    try:
        _restore(folder, state, step)
    except BudgetftError:
        raise
    except Exception as error:  # safetensors and torch have their own kinds
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise BudgetftError(
            f"the checkpoint {folder} cannot be restored: {(str(error).splitlines() or [''])[0]}",
            hint="remove it to go on from the one before",
        ) from None


def _restore(folder: Path, state: State, step: Step) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    loaded = set_peft_model_state_dict(step.peft_model, load_file(folder / ADAPTER / ADAPTER_WEIGHTS))
    absent = [name for name in loaded.missing_keys if ".lora_" in name]
    if absent or loaded.unexpected_keys:
        raise BudgetftError(
            f"the adapter in {folder} does not fit the model: {len(absent)} tensors missing,"
            f" {len(loaded.unexpected_keys)} unexpected"
        )
    _load_optimizer(step, load_file(folder / OPTIMIZER))
    if state.scaler:
        step.scaler.load_state_dict(state.scaler)


def _numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint, newest first."""
    found = [(folder.name.removeprefix("step-"), folder) for folder in checkpoints.glob("step-*")]
    return sorted(((int(number), folder) for number, folder in found if number.isdigit()), reverse=True)


def _examined(folder: Path, number: int) -> State | str:
    """What a whole checkpoint says of itself, or what is wrong with it."""
    try:
        state = State.read(read_json(folder / STATE), source=str(folder / STATE))
        return _damage(folder, number, state) or state
    except BudgetftError as error:
        return error.message


def _damage(folder: Path, number: int, state: State) -> str | None:
    if state.step != number:
        return f"{STATE} is of step {state.step}"
    for name, expected in state.sha256.items():
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            return f"{STATE} names {name!r}, which is outside it"
        if not (folder / name).is_file():
            return f"{name} is missing"
        if file_sha256(folder / name) != expected:
            return f"{name} is not what was written"
    return None


def _data_files(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name.endswith((".safetensors", ".json")))


def _names(step: Step) -> list[str]:
    """Of the trainable parameters, in the optimizer's order."""
    return [name for name, parameter in step.peft_model.named_parameters() if parameter.requires_grad]


def _optimizer_tensors(step: Step) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": tensor
        for name, parameter in zip(_names(step), step.parameters, strict=True)
        for key, tensor in own_states(step.optimizer, parameter).items()
    }


def _load_optimizer(step: Step, tensors: dict[str, torch.Tensor]) -> None:
    positions = {name: index for index, name in enumerate(_names(step))}
    states: dict[int, dict[str, Any]] = {}
    parameters = dict(step.peft_model.named_parameters())
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        if parameter not in positions or tensor.shape not in state_shapes(parameters[parameter]):
            raise BudgetftError(f"the optimizer's {name!r} {tuple(tensor.shape)} is not of this model")
        states.setdefault(positions[parameter], {})[key] = tensor
    if step.knobs.optimizer == "adamw8bit":
        for position, state in states.items():
            set_states(step.optimizer, step.parameters[position], state)
        return
    # The groups stay as the contract made them; torch moves each state to where its optimizer wants it.
    step.optimizer.load_state_dict({"state": states, "param_groups": step.optimizer.state_dict()["param_groups"]})
