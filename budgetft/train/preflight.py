"""The heaviest batch of the data before the first step: what cannot fit is known in a minute, not in the ninth hour."""

from collections.abc import Callable, Sequence

import torch

from budgetft.data.bucket import padded_tokens, split
from budgetft.data.stats import check_lengths, measure_shapes
from budgetft.errors import BudgetftError
from budgetft.step.optimizer import states_like
from budgetft.step.step import Step
from budgetft.train.job import Job
from budgetft.train.loader import Micro, step_micro_batches
from budgetft.train.memory import Memory
from budgetft.train.readings import Held
from budgetft.workload import Shape

MICRO_STEPS = 2
"""The second finds the gradients of the first in place."""
MOST_OFF = {"fp32": 1e-4, "bf16": 0.02, "fp16": 0.02, "nf4": 0.02}
"""Relative, of two losses that differ by rounding: in 16 bits logits have two or three digits."""
LOOK_AHEAD = 200
"""Steps whose buckets are looked through for the fullest."""


def checked_shapes(job: Job, processor: object) -> list[Shape]:
    """The shape of every example: reads every text and every image's header.

    Raises one ``UsageError`` for all examples that cannot be encoded, and for those above the contract's length.
    """
    contract, pixel_step = job.plan.contract, job.model.pixel_step
    shapes = measure_shapes(job.examples, processor, job.model, contract)  # pyright: ignore[reportArgumentType]
    if any(shape.total_tokens(pixel_step) > contract.max_length for shape in shapes):
        check_lengths([example.id for example in job.examples], shapes, job.model, contract)
    return shapes


def heaviest_batches(job: Job, shapes: Sequence[Shape]) -> list[tuple[int, ...]]:
    """Micro-batches, as indices into ``shapes``, of the most demanding examples.

    Those with the most tokens (then visual ones) make ``MICRO_STEPS`` micro-batches, or as many as a step has. Those
    with the longest answers make one more: their logits can outweigh everything else. So does the fullest bucket of
    the first ``LOOK_AHEAD`` steps, when there is one of more examples than the planned micro-batch.
    """
    knobs, pixel_step = job.plan.knobs, job.model.pixel_step

    def longest(shape: Shape) -> tuple[int, int]:
        return shape.total_tokens(pixel_step), shape.visual_tokens(pixel_step)

    def longest_answer(shape: Shape) -> tuple[int, int]:
        return shape.supervised_tokens, shape.total_tokens(pixel_step)

    def tokens(bucket: Sequence[int]) -> int:
        return padded_tokens([shapes[index] for index in bucket], pixel_step)

    wanted = knobs.micro_batch * min(MICRO_STEPS, knobs.grad_accum)
    by_length = split(_largest(shapes, longest, wanted), knobs.micro_batch)
    by_answer = split(_largest(shapes, longest_answer, knobs.micro_batch), knobs.micro_batch)
    steps = range(1, min(job.steps, LOOK_AHEAD) + 1)
    crowded = [part for step in steps for part in step_micro_batches(step, job, shapes) if len(part) > knobs.micro_batch]
    fullest = sorted(crowded, key=tokens, reverse=True)[:1]
    return by_length + [batch for batch in (*by_answer, *fullest) if sorted(batch) != sorted(by_length[0])]


def _largest(shapes: Sequence[Shape], key: Callable[[Shape], tuple[int, int]], wanted: int) -> list[int]:
    """Indices of the ``wanted`` largest; with too few, the largest again, as a batch wraps around the data too."""
    order = sorted(range(len(shapes)), key=lambda index: key(shapes[index]), reverse=True)
    return [order[number % len(order)] for number in range(wanted)]


def check_unverified(step: Step, micro: Micro, on_note: Callable[[str], None]) -> None:
    """Hold the loss of a type that is not verified against transformers' own on ``micro``, and say what came of it.

    Raises ``BudgetftError`` where they differ by more than rounding.
    """
    family = step.base.config.model_type
    if step.family.facts.verified:
        return
    labels = max(1.0, micro.inputs.supervised_tokens)
    try:
        ours, theirs = (
            float(found) / labels for found in (step.evaluate(micro.inputs), step.loss_as_transformers(micro.inputs))
        )
    except torch.OutOfMemoryError:
        on_note(
            f"{family} is not verified, and memory is short for all logits: its loss was not held against transformers' own"
        )
        return
    if not abs(ours - theirs) <= MOST_OFF[step.knobs.base_precision] * abs(theirs):
        raise BudgetftError(
            f"{family} is not verified, and its loss is {ours:.4f} where transformers' own is {theirs:.4f}: its head or its"
            " attention is of a kind that is not known",
            hint="plan with transformers' own loss: --setting loss=full",
        )
    on_note(f"{family} is not verified: its loss on the heaviest examples is transformers' own, {theirs:.4f}")


def fly(step: Step, memory: Memory, micros: Sequence[Micro], run_micro: Callable[[Micro, float], torch.Tensor]) -> Held:
    """Run ``micros`` forward and backward, with room taken for the optimizer's states; returns what was held.

    Leaves no trace: parameters, optimizer and scaler are as before, and steps seed the generators. The cap is set again
    afterwards, because by then the kernels and workspaces that lie outside torch's allocator are loaded. Raises
    ``torch.OutOfMemoryError``.
    """
    total = sum(micro.inputs.supervised_tokens for micro in micros)
    try:
        with step.even(len(micros), backward=True), memory.working():
            # The optimizer's states are there from its first step on.
            room = [] if step.optimizer.state else states_like(step.parameters, step.knobs.optimizer)
            for micro in micros:
                if step.knobs.grad_accum == 1:
                    step.optimizer.zero_grad(set_to_none=True)
                run_micro(micro, total)
            del room
    finally:
        step.optimizer.zero_grad(set_to_none=True)
    held = memory.read()
    memory.set_cap()
    memory.forget_peaks()
    return held
