"""What is held fixed while knobs are tried: GPU, budget, model, contract, shapes, and where the probes run."""

import hashlib
import json
from typing import Literal

from pydantic import AliasChoices, Field

from budgetft.contract import Contract
from budgetft.data.bucket import Ceiling, micro_batches
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs, Precision, Vision, computed_in
from budgetft.model import Model
from budgetft.outcome import Evidence, in_former_names
from budgetft.plan import Plan, config_fingerprint, load_planned_model
from budgetft.precision import TOWER
from budgetft.value import Value
from budgetft.workload import Shape, Workload

Device = Literal["cuda", "cpu"]
LEAVES = {"allow_nf4", "allow_adamw8bit"}
"""Fields of a contract that only say which knobs may be tried: an outcome depends on the knobs, not on the leave."""

ADAPTERS = {"rank", "alpha", "targets", "lora_dropout", "seed", "use_rslora", "use_dora", "init_lora"}
"""Fields of a contract that decide how the adapters are made."""


class Job(Value):
    """One planning problem on one machine."""

    gpu: Gpu
    budget_bytes: int = Field(gt=0)
    gpus: int = Field(default=1, ge=1, validation_alias=AliasChoices("gpus", "cards"), exclude_if=lambda gpus: gpus == 1)
    """GPUs that share a step's micro-batches, each with this budget."""
    shared: bool = Field(default=False, exclude_if=lambda shared: not shared)
    """They share the frozen decoder layers out too."""
    model: Model
    weights: str | None = None
    """None: random weights. Memory and time do not depend on their values."""
    contract: Contract
    fp32_blocks: tuple[str, ...] = Field(default=(), exclude_if=lambda names: not names)
    """Blocks of the model's weights that overflow fp16: every setting that computes in fp16 has them in fp32."""
    deterministic: bool = Field(default=False, exclude_if=lambda wanted: not wanted)
    """Every setting computes the same bits each time."""
    workload: Workload
    device: Device = "cuda"
    host: Gpu | None = None
    """The GPU that stands in for ``gpu``, if its profile is known: probes have its speed and its context."""
    evidence: Evidence
    """What a probe on this machine counts as for ``gpu``."""

    def fp32_blocks_of(self, precision: Precision, vision: Vision) -> tuple[str, ...]:
        """Those that a setting has which computes in ``precision``; features that are read from disk need no tower."""
        if computed_in(precision) != "fp16":
            return ()
        return tuple(name for name in self.fp32_blocks if vision != "cached" or not name.startswith(TOWER))

    def worst_micro_batch(self, knobs: Knobs) -> tuple[Shape, ...]:
        """The heaviest examples that can meet in one micro-batch."""
        return self.workload.heaviest(knobs.micro_batch)

    def typical_micro_batches(self, knobs: Knobs) -> list[tuple[Shape, ...]]:
        """The sample of ordinary examples, in micro-batches as training makes them of the examples of a step.

        Where a step takes more than the sample has, as many whole micro-batches as it has stand for the step.
        """
        sample, batch, size = self.workload.typical, self.contract.effective_batch, knobs.micro_batch
        window = batch if batch <= len(sample) else size * max(1, len(sample) // size)
        ceiling = Ceiling.of(self.worst_micro_batch(knobs), self.model.pixel_step)
        found: list[tuple[Shape, ...]] = []
        for start in range(0, max(1, len(sample) // window) * window, window):
            shapes = [sample[i % len(sample)] for i in range(start, start + window)]
            parts = micro_batches(shapes, knobs.batching, ceiling, pixel_step=self.model.pixel_step)
            found += [tuple(shapes[position] for position in part) for part in parts]
        return found

    def build_key(self, knobs: Knobs) -> str:
        """Probes with the same key can share a loaded model."""
        tower = "no tower" if knobs.vision == "cached" else "tower"
        kind = "/deterministic" if knobs.deterministic else ""
        return f"{knobs.base_precision}/{knobs.allocator}/{tower}{kind}"

    def loaded_key(self) -> str:
        """Jobs with the same key can share a loaded model with its adapters: their shapes and effective batches may differ."""
        adapters = self.contract.model_dump(include=ADAPTERS)
        facts = [config_fingerprint(self.model), self.weights, adapters, self.gpu.name, self.budget_bytes, self.device]
        return json.dumps(facts, sort_keys=True, default=str)

    def fingerprint(self) -> str:
        """SHA-256 of everything that an outcome depends on besides knobs and software; sources and titles do not count."""
        aside = {
            "gpu": {"sources", "title", "fp32_tflops"},  # outcomes from before that rate was known count too
            "host": True,
            "model": {"hub_id"},
            "workload": {"fingerprint"},
            "contract": LEAVES,
        }
        text = in_former_names(self.model_dump_json(exclude=aside))
        return hashlib.sha256(text.encode()).hexdigest()


def planned_job(plan: Plan, *, device: Device, evidence: Evidence, host: Gpu | None = None, model: Model | None = None) -> Job:
    """The job that ``plan`` came from, probed on ``device``: what a run of it finds belongs to that job.

    ``model`` spares loading the plan's, where it is at hand.
    """
    return Job(
        gpu=plan.gpu.profile,
        budget_bytes=plan.gpu.budget_bytes,
        gpus=plan.gpu.gpus,
        shared=plan.gpu.shared,
        model=model or load_planned_model(plan),
        contract=plan.contract,
        fp32_blocks=plan.knobs.fp32_blocks,
        deterministic=plan.knobs.deterministic,
        workload=plan.workload,
        device=device,
        host=host,
        evidence=evidence,
    )
