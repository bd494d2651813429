"""What is held fixed while knobs are tried: card, budget, model, contract, shapes, and where the probes run."""

import hashlib
from typing import Literal

from pydantic import Field

from budgetft.contract import Contract
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.model import Model
from budgetft.outcome import Evidence
from budgetft.plan import Plan, load_planned_model
from budgetft.value import Value
from budgetft.workload import Shape, Workload

Device = Literal["cuda", "cpu"]


class Job(Value):
    """One planning problem on one machine."""

    gpu: Gpu
    budget_bytes: int = Field(gt=0)
    model: Model
    weights: str | None = None
    """None: random weights. Memory and time do not depend on their values."""
    contract: Contract
    workload: Workload
    device: Device = "cuda"
    host: Gpu | None = None
    """The card that stands in for ``gpu``, if its profile is known: probes have its speed and its context."""
    evidence: Evidence
    """What a probe on this machine counts as for ``gpu``."""

    def micro_batch_shapes(self, knobs: Knobs, *, worst: bool) -> tuple[Shape, ...]:
        """The shapes of one micro-batch: the heaviest that can meet, or ordinary ones."""
        shapes = self.workload.worst if worst else self.workload.typical
        return tuple(shapes[i % len(shapes)] for i in range(knobs.micro_batch))

    def build_key(self, knobs: Knobs) -> str:
        """Probes with the same key can share a loaded model."""
        tower = "no tower" if knobs.vision == "cached" else "tower"
        return f"{knobs.base_precision}/{knobs.allocator}/{tower}"

    def fingerprint(self) -> str:
        """SHA-256 of everything that an outcome depends on besides knobs and software; sources and titles do not count."""
        text = self.model_dump_json(
            exclude={"gpu": {"sources", "title"}, "host": True, "model": {"hub_id"}, "workload": {"fingerprint"}}
        )
        return hashlib.sha256(text.encode()).hexdigest()


def planned_job(plan: Plan, *, device: Device, evidence: Evidence) -> Job:
    """The job that ``plan`` came from, probed on ``device``: what a run of it finds belongs to that job."""
    return Job(
        gpu=plan.gpu.profile,
        budget_bytes=plan.gpu.budget_bytes,
        model=load_planned_model(plan),
        contract=plan.contract,
        workload=plan.workload,
        device=device,
        evidence=evidence,
    )
