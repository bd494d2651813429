"""The other stages of a run than its training steps, and what each takes: evaluation, and the merge into the base.

Evaluation is traced as the step is (:meth:`budgetft.step.step.Step.evaluate` on fake tensors); the merge goes weight by
weight on the host (:mod:`budgetft.export.merge`), and the largest adapted one decides.
"""

import torch
from torch import nn

from budgetft.contract import Contract
from budgetft.knobs import Knobs
from budgetft.measure.job import Job
from budgetft.model import Model
from budgetft.outcome import Estimate
from budgetft.plan import StagePeak
from budgetft.predict.allocator import CachingAllocator
from budgetft.predict.sharing import saved_bytes
from budgetft.predict.trace import trace_step
from budgetft.step.build import build_model

MERGED_BYTES = 14
"""Of a 16-bit weight while it is merged: itself, the update in fp32, and the two fp32 copies that the CPU's addition makes."""


def stage_peaks(job: Job, knobs: Knobs, estimate: Estimate) -> tuple[StagePeak, ...]:
    """Highest bytes of training, which ``estimate`` has, of evaluation by the same micro-batches, and of the merge.

    Raises ``BudgetftError`` when the model cannot be traced.
    """
    return (
        StagePeak(stage="train", process_peak_bytes=estimate.process_peak_bytes, evidence=estimate.evidence),
        StagePeak(stage="evaluation", process_peak_bytes=evaluation_bytes(job, knobs, estimate), evidence="predicted"),
        StagePeak(
            stage="merge",
            process_peak_bytes=0,
            host_peak_bytes=merge_host_bytes(job.model, job.contract),
            evidence="predicted",
        ),
    )


def evaluation_bytes(job: Job, knobs: Knobs, estimate: Estimate) -> int:
    """Process peak of evaluating the worst micro-batch of ``job`` between two steps, with the context of ``estimate``.

    Of this stage by itself: in a run, the blocks that the allocator has kept from training are used again.
    """
    on_gpu = job.device == "cuda"
    shapes = job.worst_micro_batch(knobs)
    trace = trace_step(job.model, job.contract, knobs, shapes, gpu=job.gpu if on_gpu else None, evaluating=True)
    context = estimate.process_peak_bytes - estimate.reserved_peak_bytes
    saved = saved_bytes(job, knobs.base_precision)
    if not on_gpu:  # the CPU's byte meter counts tensors, not blocks
        return trace.peak_bytes + context - saved
    allocator = CachingAllocator(knobs.allocator)
    allocator.run(trace.static_events)
    allocator.run(trace.events)
    return allocator.reserved_peak_bytes + estimate.term_bytes("workspace") + context - saved


def merge_host_bytes(model: Model, contract: Contract) -> int:
    """Tensor bytes on the host while the largest adapted weight of a 16-bit checkpoint is merged."""
    adapted = build_model(model, contract, base_precision="fp16", device=torch.device("meta"), layers=1, vision="cached")
    linears = [module.get_base_layer() for module in adapted.modules() if hasattr(module, "lora_A")]
    return MERGED_BYTES * max(linear.weight.numel() for linear in linears if isinstance(linear, nn.Linear))
