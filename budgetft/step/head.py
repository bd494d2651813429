"""What a model's forward makes of hidden states, found by running it on a few numbers.

Chunked cross-entropy needs the head as a formula. Most types multiply by a matrix, some squeeze the logits
(``cap * tanh(x / cap)``) or scale them, and no field of a config says so for all: some have a scale that their forward
ignores. So the forward of the class runs, with a head of 8 features and 16 words and with hidden states given to it.
"""

from copy import copy
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import _disable_current_modes

from budgetft.step.pointwise import MOST, bare


def cap_of(base: Any) -> float | None:
    """Where ``base`` squeezes its logits by ``cap * tanh(x / cap)``; None where they are its head's matrix times the hidden
    states and nothing else. Raises ``ValueError`` with a reason for any other head."""
    head = base.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if weight is None or getattr(head, "bias", None) is not None:
        raise ValueError("its head has a bias" if weight is not None else "it has no head of one matrix")
    name = next((name for name, module in base.named_children() if module is head), None)
    if name is None:
        raise ValueError("its head is inside another module")
    plain = {key: value for key, value in vars(base).items() if isinstance(value, bool | int | float | str) and key[0] != "_"}
    plain.pop("training", None)
    caps = tuple(sorted({cap for config in (base.config, base.config.get_text_config()) for cap in _caps(config)}))
    with _disable_current_modes(), torch.device("cpu"), torch.no_grad(), torch.autocast("cpu", enabled=False):
        hidden, small = torch.linspace(-9, 7, 24).reshape(1, 3, 8).sin() * 9, nn.Linear(8, 16, bias=False)
        small.weight.copy_(torch.linspace(-5, 8, 128).cos().reshape(16, 8))
        try:
            logits = _tried(base, name, small, hidden, plain)
        except Exception as error:  # a forward may want anything
            raise ValueError("its logits cannot be tried out") from error
        found = linear(hidden, small.weight)
        for cap in (None, *caps):
            wanted = found if cap is None else torch.tanh(found / cap) * cap
            if logits.shape == wanted.shape and bool((logits - wanted).abs().max() <= MOST * wanted.abs().max()):
                return cap
    raise ValueError("its logits are not its head's alone")


def _caps(config: Any) -> list[float]:
    named = {key: value for key, value in vars(config).items() if "softcap" in key}
    return [float(value) for value in named.values() if isinstance(value, int | float) and value]


def _tried(base: Any, name: str, head: nn.Module, hidden_BSD: torch.Tensor, plain: dict[str, Any]) -> torch.Tensor:
    """Logits that the class of ``base`` computes with ``head`` of these hidden states."""
    parts = {name: head, type(base).base_model_prefix: _Core(hidden_BSD)}
    model = bare(type(base), {**plain, "config": copy(base.config)}, {}, parts)
    model.eval()
    ids = torch.zeros(hidden_BSD.shape[:2], dtype=torch.long)
    return type(base).forward(model, input_ids=ids, use_cache=False, return_dict=True).logits


class _Core(nn.Module):
    """Gives the same hidden states whatever it is asked."""

    def __init__(self, hidden_BSD: torch.Tensor) -> None:
        super().__init__()
        self.hidden_BSD = hidden_BSD

    def forward(self, *_: Any, **__: Any) -> Any:
        return _outputs()(last_hidden_state=self.hidden_BSD)


@cache
def _outputs() -> type:
    from transformers.modeling_outputs import BaseModelOutputWithPast

    class Outputs(BaseModelOutputWithPast):
        def __getattr__(self, name: str) -> None:
            """What a type's own outputs have beside hidden states is not there."""
            if name.startswith("__"):
                raise AttributeError(name)

    return Outputs
