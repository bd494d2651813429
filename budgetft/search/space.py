"""What may be tried: every valid setting of the knobs, and the stock recipe beside them."""

from budgetft.data.bucket import padded_tokens, padding_share
from budgetft.errors import UsageError
from budgetft.knobs import (
    LOSS_CHUNK,
    VISION_GROUP,
    Allocator,
    Batching,
    Knobs,
    Offload,
    Optimizer,
    Precision,
    Vision,
    is_stock,
    stock_knobs,
)
from budgetft.measure.job import Job
from budgetft.plan import Padding, knob_problems
from budgetft.predict.memory_model import LARGEST_MICRO_BATCH, SHALLOW
from budgetft.step.handed import unsupported
from budgetft.workload import Shape

CHECKPOINT_STEPS = 12
"""Checkpointed layers are tried in so many steps between none and all."""
CHUNK_SHARE = 0.05
"""Of the budget that the logits of one chunk may take."""
LOGIT_BYTES = 8
"""A logit of the chunk in work: its log-probability in fp32, and two 16-bit copies."""
SMALLEST_PART = 4
"""Chunks of the loss and groups of the tower are cut to a fourth at most: smaller ones spare next to nothing."""
WORTH_OFFLOADING = 0.05
"""Share of the budget under which the kept inputs of an example's layers are not sent to the host."""
WORTH_SORTING = 0.01
"""Share of the computed tokens under which bucketing is not tried."""


def base_precision(job: Job) -> Precision:
    """The 16-bit type that the GPU runs natively; fp32 where the probes run on the CPU."""
    if job.device == "cpu" and job.evidence == "predicted" and job.model.layers < CHECKPOINT_STEPS:
        return "fp32"
    return job.gpu.base_precision


def divisors(number: int) -> list[int]:
    """The micro-batches that divide an effective batch and that a memory model covers, smallest first."""
    return [candidate for candidate in range(1, min(number, LARGEST_MICRO_BATCH) + 1) if number % candidate == 0]


def micro_batches(job: Job) -> list[int]:
    """Those that divide the effective batch and leave each of the job's GPUs one of a step, smallest first."""
    effective = job.contract.effective_batch
    return [size for size in divisors(effective) if effective // size >= job.gpus]


def checkpoint_choices(layers: int) -> list[int]:
    """All layers, none, and evenly between; the shortest memory models need at least two of each kind."""
    steps = {round(layers * step / CHECKPOINT_STEPS) for step in range(CHECKPOINT_STEPS + 1)}
    if layers < SHALLOW:
        return [0, layers]
    return sorted(count for count in steps if count in (0, layers) or 2 <= count <= layers - 2)


def batches(job: Job, micro_batch: int, batching: Batching) -> list[tuple[Shape, ...]]:
    """The sample of ordinary examples in micro-batches."""
    grad_accum = job.contract.effective_batch // micro_batch
    return job.typical_micro_batches(
        Knobs(micro_batch=micro_batch, grad_accum=grad_accum, checkpointed_layers=0, batching=batching)
    )


def better_batching(job: Job, micro_batch: int) -> Batching:
    """``bucketed`` where it spares at least ``WORTH_SORTING`` of the tokens that are computed, padding included."""

    def tokens(batching: Batching) -> int:
        return sum(padded_tokens(shapes, job.model.pixel_step) for shapes in batches(job, micro_batch, batching))

    return "bucketed" if tokens("bucketed") <= (1 - WORTH_SORTING) * tokens("padded") else "padded"


def padding_of(job: Job, micro_batch: int) -> Padding:
    """How much of what is computed at ``micro_batch`` is padding, with either batching."""
    return Padding(
        padded=padding_share(batches(job, micro_batch, "padded"), job.model.pixel_step),
        bucketed=padding_share(batches(job, micro_batch, "bucketed"), job.model.pixel_step),
        examples=len(job.workload.typical),
    )


def offloads(job: Job, checkpointed_layers: int) -> list[Offload]:
    """Layer inputs go to the host only when all layers are checkpointed and the inputs of one example weigh on the budget."""
    tokens = job.workload.worst[0].total_tokens(job.model.pixel_step)
    kept_bytes = job.model.layers * tokens * int(job.model.text["hidden_size"]) * 2
    heavy = kept_bytes >= WORTH_OFFLOADING * job.budget_bytes
    return ["none", "activations"] if heavy and checkpointed_layers == job.model.layers else ["none"]


def part_sizes(job: Job) -> tuple[int, int]:
    """(loss_chunk, vision_group) for the budget: halved while the chunk's logits would take more than ``CHUNK_SHARE`` of it.

    Larger ones than the defaults only take memory: no estimate of a GPU is faster with them (reports/bench).
    """
    cut, logit_bytes = 1, LOGIT_BYTES * int(job.model.text["vocab_size"])
    while cut < SMALLEST_PART and LOSS_CHUNK // cut * logit_bytes > CHUNK_SHARE * job.budget_bytes:
        cut *= 2
    return LOSS_CHUNK // cut, VISION_GROUP // cut


def settings(job: Job, vision: Vision = "frozen", *, allocator: Allocator = "expandable") -> list[Knobs]:
    """Every setting worth trying under the job's contract on its GPU; none of them changes what is learned.

    ``vision`` is frozen or cached; which of the two is weighed before the search, as it is a matter of the whole run. So is
    ``allocator``: expandable segments are as fast, and over examples of varied sizes they keep to the peak of the worst batch,
    where the default allocator's cached blocks pile up to the cap (reports/guard); another is for platforms without them.

    What another setting beats on bytes and seconds alike is left out: a loss that holds all logits, the tower inside the
    graph, grouped heads on the math kernel, peft's own LoRA forward, norms and activations in many kernels. Of a model's type
    counts what is exact there (:mod:`budgetft.families`).

    Raises ``UsageError`` where none can be run.
    """
    found, family = every_setting(job, vision, allocator=allocator), job.model.family
    able = [knobs for knobs in found if not knob_problems(knobs, job.contract, job.gpu, family)]
    if not able:
        raise UsageError(f"{job.model.name}: " + "; ".join(knob_problems(found[0], job.contract, job.gpu, family)))
    return able


def every_setting(job: Job, vision: Vision = "frozen", *, allocator: Allocator = "expandable") -> list[Knobs]:
    """As :func:`settings`, with those that cannot be run."""
    gpu, contract, facts = job.gpu, job.contract, job.model.facts
    attention = "flash" if gpu.flash_attention else "efficient" if gpu.efficient_attention else "math"
    kernels = facts.kernels and (job.model.packed or unsupported(job.model.text) is None)
    precisions: list[Precision] = [base_precision(job), *(["nf4"] if contract.allow_nf4 else [])]
    optimizers: list[Optimizer] = ["adamw", *(["adamw8bit"] if contract.allow_adamw8bit else [])]
    loss_chunk, vision_group = part_sizes(job)
    chosen: dict[int, Batching] = {size: better_batching(job, size) for size in micro_batches(job)}
    return [
        Knobs(
            micro_batch=micro_batch,
            grad_accum=contract.effective_batch // micro_batch,
            checkpointed_layers=checkpointed,
            loss="chunked",
            vision=vision,
            attention=attention if kernels else "stock",
            lora="stock" if contract.needs_stock_lora else "lean",
            pointwise="fused" if facts.verified else "stock",
            base_precision=precision,
            allocator=allocator if job.device == "cuda" else "default",
            batching=chosen[micro_batch],
            optimizer=optimizer,
            offload=offload,
            loss_chunk=loss_chunk,
            vision_group=vision_group,
            fp32_blocks=job.fp32_blocks_of(precision, vision),
            deterministic=job.deterministic,
        )
        for micro_batch in micro_batches(job)
        for checkpointed in checkpoint_choices(job.model.layers)
        for precision in precisions
        for optimizer in optimizers
        for offload in offloads(job, checkpointed)
    ]


def in_precision(job: Job, knobs: Knobs, precision: Precision) -> Knobs:
    """``knobs`` in another type, with the blocks of the job that it needs in fp32; the stock recipe has none."""
    blocks = () if is_stock(knobs) else job.fp32_blocks_of(precision, knobs.vision)
    return knobs.replace(base_precision=precision, fp32_blocks=blocks)


def stock_settings(job: Job) -> list[Knobs]:
    """The stock recipe at every micro-batch, smallest first."""
    effective = job.contract.effective_batch
    return [
        stock_knobs(
            micro_batch=micro_batch,
            effective_batch=effective,
            layers=job.model.layers,
            base_precision=base_precision(job),
        ).replace(deterministic=job.deterministic)
        for micro_batch in micro_batches(job)
    ]
