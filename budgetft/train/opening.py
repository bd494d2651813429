"""What a run opens before its first step: the model on its device, and accelerate's view of the process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from budgetft.data.processor import load_processor
from budgetft.step.build import build_model
from budgetft.step.step import Step
from budgetft.train.guard import out_of_memory
from budgetft.train.job import Job
from budgetft.train.memory import Memory
from budgetft.train.track import chosen_trackers


def load_step(job: Job, memory: Memory, on_note: Callable[[str], None]) -> tuple[Any, Step]:
    """The processor and the step of the job's model, on the device of ``memory``. Raises ``BudgetftError``."""
    plan = job.plan
    on_note(f"loading {job.model.name} ({job.weights or 'random weights'}) on {memory.stack.card}")
    processor = load_processor(job.model)
    try:
        peft_model = build_model(
            job.model,
            plan.contract,
            base_precision=plan.knobs.base_precision,
            device=memory.device,
            weights=job.weights,
            vision=plan.knobs.vision,
        )
        memory.count(peft_model.parameters())
        memory.count(peft_model.buffers())
    except torch.OutOfMemoryError as error:
        raise out_of_memory(
            error,
            phase="load",
            where="building the model",
            ids=(),
            cap_bytes=memory.cap_bytes,
            budget_bytes=plan.gpu.budget_bytes,
            hint="plan again with a larger budget or a smaller model",
        ) from error
    return processor, Step(peft_model, plan.contract, plan.knobs, device=memory.device)


def open_accelerator(memory: Memory, trackers: Sequence[Any], out: Path) -> Any:
    """accelerate's view of the process, and the connection to the others where it is one of several."""
    from accelerate import Accelerator

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
        accelerator.init_trackers("budgetft", config={**facts, "targets": ",".join(job.plan.contract.targets)})
