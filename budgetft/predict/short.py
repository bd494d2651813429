"""The shortened model of a memory model: its traces on fake tensors, and the sizes of what the whole model holds throughout."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from budgetft.contract import Contract
from budgetft.gpu import Gpu
from budgetft.knobs import Knobs
from budgetft.meter.live import granules
from budgetft.model import Model
from budgetft.predict.memory_model import Layout, kind_layers
from budgetft.predict.segments import Trace
from budgetft.predict.trace import build_to_trace, trace_step
from budgetft.step.build import trainable
from budgetft.step.family import family_of
from budgetft.step.optimizer import states_like
from budgetft.workload import Shape

ALL_AT_ONCE = 2**40
"""Patches: every image in one group. A memory model has the tower's groups as a number, not as so many traced ones."""


@dataclass(kw_only=True)
class Short:
    """The shortened model of a memory model, built once for each number of layers."""

    model: Model
    contract: Contract
    knobs: Knobs
    shape: Shape
    gpu: Gpu | None
    built: dict[int, Any] = field(default_factory=dict)

    @cached_property
    def kinds(self) -> tuple[int, ...]:
        """Of every layer of the whole model, as numbers, where they are of several; empty where all are alike."""
        return () if self.model.packed else layer_kinds(build_to_trace(self.model, self.contract, self.knobs))

    def trace(self, micro_batch: int, layout: Layout) -> Trace:
        kind = kind_layers(self.model.deepstack_levels)
        layers, half = (2 * kind if layout == "mixed" else kind), kind
        if self.kinds:
            layers, half = len(self.kinds), len(self.kinds) // 2
        checkpointed = {"plain": 0, "mixed": half, "checkpointed": layers}[layout]
        knobs = self.knobs.replace(checkpointed_layers=checkpointed, grad_accum=2, vision_group=ALL_AT_ONCE)
        if layers not in self.built:
            self.built[layers] = build_to_trace(self.model, self.contract, knobs, layers)
        shapes, built = [self.shape] * micro_batch, self.built[layers]
        return trace_step(self.model, self.contract, knobs, shapes, gpu=self.gpu, layers=layers, built=built)


def layer_kinds(peft_model: Any) -> tuple[int, ...]:
    """Of every decoder layer, the number of its kind; empty where all are alike. What a layer allocates tells its kind.

    That is: its class, its tensors, and what its parts say of windows, of the kind of their attention, and of shared keys.
    """
    base = peft_model.get_base_model()
    told = ("sliding_window", "is_sliding", "layer_type", "attention_type", "is_kv_shared_layer", "kv_shared_layer_index")

    def kind(layer: Any) -> tuple[Any, ...]:
        shapes = tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())
        parts = tuple(str(getattr(part, name, None)) for part in layer.modules() for name in told)
        return type(layer).__name__, shapes, parts

    found = [kind(layer) for layer in family_of(base.config.model_type).layers(base)]
    order = list(dict.fromkeys(found))
    return tuple(order.index(each) for each in found) if len(order) > 1 else ()


def static_sizes(model: Model, contract: Contract, knobs: Knobs, *, built: Any = None) -> dict[str, list[int]]:
    """Bytes of every tensor of the whole model, by category, in the order in which a process allocates them.

    ``built``: what :func:`budgetft.predict.trace.build_to_trace` made of the same; only the optimizer may be another.
    """
    peft_model = build_to_trace(model, contract, knobs) if built is None else built
    adapters = trainable(peft_model)
    ours = {id(parameter) for parameter in adapters}
    weights = [t for t in [*peft_model.parameters(), *peft_model.buffers()] if id(t) not in ours]

    def sizes(tensors: Sequence[torch.Tensor]) -> list[int]:
        return [granules(tensor.numel() * tensor.element_size()) for tensor in tensors]

    adapter = sizes(adapters)
    by_category = {"weights": sizes(weights), "adapter": adapter, "gradients": adapter}
    by_category["optimizer"] = sizes(states_like(adapters, knobs.optimizer))
    return by_category
