"""What a run opens before its first step: the model on its device, and accelerate's view of the process."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from budgetft.data.given import Given
from budgetft.data.processor import load_processor
from budgetft.errors import UsageError
from budgetft.outcome import CONNECTION
from budgetft.plan import Plan
from budgetft.step.build import build_model
from budgetft.step.shared import SharedLayers, held_bytes
from budgetft.step.step import Step
from budgetft.train.guard import out_of_memory
from budgetft.train.job import Job
from budgetft.train.memory import Memory
from budgetft.train.ranks import SHARED, Ranks
from budgetft.train.track import chosen_trackers
from budgetft.units import format_gib


def load_step(job: Job, memory: Memory, ranks: Ranks, on_note: Callable[[str], None]) -> tuple[Any, Step]:
    """The processor and the step of the job's model, on the device of ``memory``. Raises ``BudgetftError``, in all processes
    when one has not the memory."""
    plan, device = job.plan, memory.device
    named = "random weights" if job.base is None else job.base.describe()
    on_note(f"loading {job.model.name} ({named}) on {memory.stack.gpu}")
    processor = load_processor(job.model)
    shared = SharedLayers(rank=ranks.rank, world=ranks.world, device=device) if ranks.shared else None
    detail, peft_model = None, None
    try:
        peft_model = build_model(
            job.model,
            plan.contract,
            base_precision=plan.knobs.base_precision,
            device=device,
            weights=job.weights,
            vision=plan.knobs.vision,
            shared=shared,
        )
        memory.count(peft_model.parameters())
        memory.count(peft_model.buffers())
        memory.count(() if shared is None else shared.tensors())
    except torch.OutOfMemoryError as error:
        detail = str(error)
    detail = ranks.first_of(detail, device)
    if detail is not None:
        raise out_of_memory(
            detail,
            phase="load",
            where="building the model",
            ids=(),
            cap_bytes=memory.cap_bytes,
            budget_bytes=plan.gpu.budget_bytes,
            hint="plan again with a larger budget or a smaller model",
        )
    if job.base is not None:  # where they lie here says nothing to others
        config: Any = peft_model.peft_config["default"]  # pyright: ignore[reportOptionalMemberAccess]
        config.base_model_name_or_path, config.revision = job.base.name, job.base.revision
    if shared is not None:
        memory.forget_peaks()  # random weights may have been whole on the GPU
    return processor, Step(peft_model, plan.contract, plan.knobs, device=device, shared=shared)


def check_given(folder: Path, now: Given) -> None:
    """A run goes on with what it was given; raises ``UsageError`` when its model would be given something else."""
    before = Given.read_from(folder)
    differences = [] if before is None else before.differences(now)
    if differences:
        raise UsageError(
            f"cannot resume the run: {'; '.join(differences)}",
            hint="resume with the model folder and the data that it was started with, or start in another folder",
        )


def connect(memory: Memory, ranks: Ranks, trackers: Sequence[Any], out: Path) -> tuple[Any, int]:
    """accelerate's view of the process, and the bytes of the device that the connection to the others takes (measured); the
    cap then allows for them."""
    before = memory.read().process_bytes
    accelerator = open_accelerator(memory, trackers, out)
    if ranks.alone:
        return accelerator, 0
    ranks.connect(memory.device)
    memory.set_cap()
    return accelerator, memory.read().process_bytes - before


def tell_peak(step: Step, plan: Plan, ranks: Ranks, connection_bytes: int, on_note: Callable[[str], None]) -> int | None:
    """Predicted peak of each of several processes: the planned one, with what is held of the layers in the place of what is
    planned to be where they are shared, and with the connection to the others as it is. None for a run in one."""
    if ranks.alone:
        return None
    shared, planned, gpus = step.shared, plan.estimate.process_peak_bytes, plan.gpu.gpus
    saved, held, whom = 0, "each holds the whole base", str(gpus) if gpus > 1 else "one"
    if shared is not None:
        whole = sum(shared.layer_bytes)
        saved = (held_bytes(shared.layer_bytes, gpus) if plan.gpu.shared else whole) - shared.held_bytes
        held = f"each holds {format_gib(shared.held_bytes)} of {len(shared.layer_bytes)} layers of {format_gib(whole)}"
    peak = planned - saved - plan.estimate.term_bytes(CONNECTION) + connection_bytes
    on_note(
        f"{ranks.world} processes: {held}, and {format_gib(connection_bytes)} to connect (measured); peak {format_gib(peak)}"
        f" predicted, planned {format_gib(planned)} for {whom} ({plan.estimate.evidence})"
    )
    return peak


def open_accelerator(memory: Memory, trackers: Sequence[Any], out: Path) -> Any:
    """accelerate's view of the process, and the connection to the others where it is one of several."""
    # Its functions keep the process group that there is when they are defined: torch imports them at some operation or other,
    # and a group of a finished run then has threads that abort the interpreter's end.
    import torch.distributed.nn  # noqa: F401
    from accelerate import Accelerator

    os.environ.pop(SHARED, None)  # accelerate would prepare to share the model in its own way
    trackers = chosen_trackers(trackers)
    return Accelerator(
        cpu=memory.device.type == "cpu",
        mixed_precision="no",  # the step does its own autocast and scaling, the same in a probe and here
        log_with=trackers or None,
        project_dir=str(out),
    )


def start_trackers(accelerator: Any, job: Job) -> None:
    """Only once a run is known to hold: trackers make files, and a refused run leaves none."""
    if accelerator.log_with:
        facts = {**job.plan.contract.model_dump(), **job.plan.knobs.model_dump(), "model": job.model.name}
        listed = {name: ",".join(value) for name, value in facts.items() if isinstance(value, tuple)}
        accelerator.init_trackers("budgetft", config={**facts, **listed})
