"""The CPU's byte meter over one micro-batch of a real step: the truth that a trace is held against."""

from typing import Any

from budgetft.meter.live import LiveBytes
from budgetft.step.step import Step


def peak_of_a_micro_batch(step: Step, inputs: Any, *, accumulating: bool = True) -> int:
    """Peak bytes of the third micro-batch's forward and backward: Adam's states exist, and gradients when accumulating."""
    step.micro(inputs, total_supervised=100)
    step.update()
    if accumulating:
        step.micro(inputs, total_supervised=100)
    model, meter = step.peft_model, LiveBytes()
    meter.count([*model.parameters(), *model.buffers(), *(p.grad for p in step.parameters)])
    meter.count(value for state in step.optimizer.state.values() for key, value in state.items() if key != "step")
    meter.count(inputs.tensors())
    with meter:
        step.micro(inputs, total_supervised=100)
    return meter.peak_bytes
