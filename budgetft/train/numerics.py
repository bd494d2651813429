"""fp16 before and during a run: what overflows computes in fp32, and what becomes not finite is named."""

from collections import deque
from collections.abc import Callable, Sequence

import torch

from budgetft.errors import BudgetftError
from budgetft.knobs import computed_in
from budgetft.precision import FP16_MAX, LIMIT, Block, Precision, unplanned_text
from budgetft.step.fp32_blocks import Finding, blocks_of, first_nonfinite, is_fp32_block, make_fp32_block, watching
from budgetft.step.step import Step
from budgetft.train.loader import Micro
from budgetft.train.memory import Memory

NONFINITE_LIMIT = 20
"""In a row. A gradient scaler that starts too high finds its place within this many."""
WINDOW = 200
"""Steps whose share of skipped ones is watched."""
SKIPPED_SHARE = 0.25
"""Above it the scale falls more often than a healthy scaler tries a higher one, which is once in 2,000 steps."""


def probe_precision(step: Step, memory: Memory, micros: Sequence[Micro], on_note: Callable[[str], None]) -> Precision:
    """Evaluate ``micros`` once in fp16 and turn the blocks that overflow into fp32 blocks; returns what was found.

    Other precisions hold what fp32 holds, and are left alone. Raises ``BudgetftError`` when the loss is not finite all
    the same, with the first module at fault, and ``torch.OutOfMemoryError``.
    """
    if computed_in(step.knobs.base_precision) != "fp16":
        return Precision()
    planned = _fp32_blocks(step)
    findings: dict[str, Finding] = {}
    with step.even(len(micros), backward=False):
        for micro in micros:
            with memory.working(), watching(step.base, repair=True) as found:
                loss = step.evaluate(step.take(micro.inputs))
            for one in found:
                before = findings.get(one.block, Finding(block=one.block, largest=0.0, nonfinite=0))
                largest, nonfinite = max(before.largest, one.largest), before.nonfinite + one.nonfinite
                findings[one.block] = Finding(block=one.block, largest=largest, nonfinite=nonfinite)
            if not torch.isfinite(loss):
                raise BudgetftError(
                    f"the loss is not finite in fp16 even with {len(_fp32_blocks(step))} blocks in fp32: first in"
                    f" {culprit(step, memory, [micro])} with examples {', '.join(micro.ids[:8])}",
                    hint="plan for a GPU that runs bf16 natively",
                )
    fp32_blocks = _fp32_blocks(step)
    top = max(findings.values(), key=lambda one: one.largest)
    on_note(f"precision: the largest magnitude is {top.largest:.3g} of fp16's {FP16_MAX}, in {top.block}")
    if fp32_blocks:
        known = ", as planned" if fp32_blocks == planned else ""
        found_text = f"{len(fp32_blocks)} blocks exceed {LIMIT:g} on the heaviest examples and run in fp32"
        on_note(f"precision: {found_text}{known}: {', '.join(fp32_blocks)}")
    if more := unplanned_text(planned, fp32_blocks, _added_bytes(step, planned)):
        on_note(more)
    return Precision(
        blocks=tuple(
            Block(name=name, largest=findings[name].largest, nonfinite=findings[name].nonfinite, fp32=name in fp32_blocks)
            for name in blocks_of(step.base)
            if name in findings
        )
    )


def restore_fp32_blocks(step: Step, names: Sequence[str]) -> None:
    """Make the blocks called ``names`` fp32 blocks again, as in the run that found them."""
    for name in names:
        make_fp32_block(step.base.get_submodule(name))


def _added_bytes(step: Step, planned: Sequence[str]) -> int:
    """What the blocks in fp32 that are not ``planned`` take beside their weights in 16 bits."""
    more = (step.base.get_submodule(name) for name in _fp32_blocks(step) if name not in planned)
    return sum(2 * p.numel() for block in more for p in block.parameters() if not p.requires_grad)


def _fp32_blocks(step: Step) -> tuple[str, ...]:
    return tuple(name for name, module in step.base.named_modules() if is_fp32_block(module))


def culprit(step: Step, memory: Memory, micros: Sequence[Micro], passes: int = 0) -> str | None:
    """The first module whose output is not finite on ``micros``; None when a repeated forward is finite.

    Every process that shares layers makes at least ``passes``.
    """
    with step.even(passes, backward=False), memory.working():
        for micro in micros:
            inputs = step.take(micro.inputs)
            found = first_nonfinite(step.base, lambda inputs=inputs: step.evaluate(inputs))
            if found is not None:
                return found
    return None


class FiniteWatch:
    """Counts steps that are not finite, and ends a run in which nothing is learned any more."""

    def __init__(self, limit: int = NONFINITE_LIMIT) -> None:
        self._limit = limit
        self._in_a_row = 0
        self._recent: deque[bool] = deque(maxlen=WINDOW)

    def see(self, *, step: int, finite: bool, scale: float, where: str | None = None) -> None:
        """Raise ``BudgetftError`` when too many were skipped in a row or of late, or the scale fell below 1."""
        self._in_a_row = 0 if finite else self._in_a_row + 1
        self._recent.append(finite)
        skipped = self._recent.count(False)
        first = f"; first in {where}" if where else ""
        if self._in_a_row >= self._limit:
            problem = f"{self._in_a_row} steps in a row were not finite, up to step {step}{first} (gradient scale {scale:g};"
            problem += f" the limit is {self._limit})"
        elif scale < 1:
            problem = f"the gradient scale fell to {scale:g} at step {step}{first}: gradients overflow although they are not"
            problem += " scaled up at all"
        elif len(self._recent) == WINDOW and skipped > SKIPPED_SHARE * WINDOW:
            problem = f"{skipped} of the last {WINDOW} steps were not finite, up to step {step}{first}: the gradient scale"
            problem += f" ({scale:g}) falls as fast as it grows"
        else:
            return
        raise BudgetftError(
            f"{problem}; their updates were skipped",
            hint="lower the learning rate, or plan for a GPU that runs bf16 natively",
        )
