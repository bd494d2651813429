"""Memory models of models some of whose blocks compute in fp32, because they would overflow fp16.

Decoder layers are alike but for the blocks that compute in fp32: a layer of each kind is traced, in a model all of whose layers
are of that kind, and stands for those of its kind in the whole.
"""

import re
from collections.abc import Callable, Sequence

from budgetft.predict.memory_model import MemoryModel, StepSegment, layout_of

FP32_SHARE = 0.85
"""Of a GPU's fp32 rate without tensor cores, what a large product reaches."""
ASSUMED_RATIO = 8.0
"""Of the tensor cores' 16-bit rate to the fp32 rate, where the profile does not say: a V100's and a T4's."""
LAYER = re.compile(r"(model\.language_model\.layers\.)(\d+)(\..+)")


class MixedMemoryModel(MemoryModel):
    """A memory model whose decoder layers are of several kinds."""

    kinds: tuple[MemoryModel, ...]
    of_layer: tuple[int, ...]
    """For each decoder layer, which of ``kinds``."""

    def _sequence(self, checkpointed_layers: int) -> list[StepSegment]:
        """A layer's segments are those of its kind."""
        layout = layout_of(self.layers, checkpointed_layers)
        stands_for = self.stands_for(checkpointed_layers)
        templates = [self.kinds[kind].templates[layout] for kind in self.of_layer]
        whole = super()._sequence(checkpointed_layers)
        own = self.templates[layout]
        between = whole[len(own.head) + sum(len(own.forward[layer]) for layer in stands_for) :]
        sequence = list(own.head)
        for template, layer in zip(templates, stands_for, strict=True):
            sequence += template.forward[layer]
        sequence += between[: len(own.middle)]
        for template, layer in reversed(list(zip(templates, stands_for, strict=True))):
            sequence += template.backward[layer]
        return sequence


def kinds_of(names: Sequence[str], layers: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """(the names outside the decoder layers, for each layer the parts of it that are named, as ``*`` for its number)."""
    parts: list[list[str]] = [[] for _ in range(layers)]
    others = []
    for name in names:
        match = LAYER.fullmatch(name)
        if match is None:
            others.append(name)
        elif int(match[2]) < layers:
            parts[int(match[2])].append(f"{match[1]}*{match[3]}")
    return tuple(others), [tuple(each) for each in parts]


def in_layers(names: Sequence[str]) -> bool:
    """Whether some of ``names`` are of decoder layers by number."""
    return any(LAYER.fullmatch(name) for name in names)


def mixed_memory_model(
    names: Sequence[str], layers: int, memory_model_of: Callable[[tuple[str, ...]], MemoryModel], static: dict[str, int]
) -> MixedMemoryModel:
    """The memory model with the blocks ``names`` in fp32. ``memory_model_of``: the memory model of a model with such blocks,
    in none or all layers; ``static``: bytes of the whole model with exactly these."""
    others, parts = kinds_of(names, layers)
    memory_models = {kind: memory_model_of((*others, *kind)) for kind in dict.fromkeys(parts)}
    order = list(memory_models)
    plain = memory_models.get(()) or memory_model_of(others)
    fields = {name: getattr(plain, name) for name in MemoryModel.model_fields}
    fields |= {"static": static, "kinds": tuple(memory_models.values()), "of_layer": tuple(order.index(each) for each in parts)}
    return MixedMemoryModel(**fields)


def fp32_ratio(tflops: float, product_share: float, fp32_tflops: float | None) -> float:
    """How many times as long an operation takes in fp32 as in 16 bits, in large products."""
    rate = fp32_tflops or tflops / ASSUMED_RATIO
    return max(1.0, tflops * product_share / (rate * FP32_SHARE))
