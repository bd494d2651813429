"""AdamW in fp32, or with its two moments in eight bits by bitsandbytes (Dettmers et al., 2022)."""

from collections.abc import Sequence
from typing import Any

import torch

from budgetft.contract import Contract
from budgetft.knobs import Optimizer
from budgetft.step.quantise import load_bitsandbytes

MIN_8BIT_SIZE = 4096
"""bitsandbytes keeps the moments of smaller parameters in fp32."""
BLOCK = 256
SHARED = {"qmap1": "dynamic", "qmap2": "udynamic"}
"""States that all parameters of an 8-bit optimizer share: tables of 256 fp32 values, by their name in bitsandbytes."""


def make_optimizer(parameters: Sequence[torch.nn.Parameter], contract: Contract, kind: Optimizer) -> torch.optim.Optimizer:
    """AdamW over ``parameters``. Raises ``UsageError`` when the 8-bit one is asked for and bitsandbytes is absent."""
    rates: dict[str, Any] = {"lr": contract.learning_rate, "weight_decay": contract.weight_decay}
    if kind == "adamw8bit":
        package = load_bitsandbytes("optimizer 'adamw8bit'")
        return package.optim.AdamW8bit(parameters, min_8bit_size=MIN_8BIT_SIZE, **rates)
    # Fused: one kernel that allocates nothing, so that an update happens whole or not at all.
    return torch.optim.AdamW(parameters, fused=True, **rates)


def states_like(parameters: Sequence[torch.Tensor], kind: Optimizer) -> list[torch.Tensor]:
    """Zeros of the sizes and on the devices of all states that the first update makes; scalars are left out."""
    found: list[torch.Tensor] = []
    eight_bit = False
    for parameter in parameters:
        if kind == "adamw" or parameter.numel() < MIN_8BIT_SIZE:
            found += [torch.zeros_like(parameter, dtype=torch.float32) for _ in range(2)]
            continue
        blocks = -(-parameter.numel() // BLOCK)
        found += [torch.zeros_like(parameter, dtype=torch.uint8) for _ in range(2)]
        found += [torch.zeros(blocks, dtype=torch.float32, device=parameter.device) for _ in range(2)]
        eight_bit = True
    if eight_bit:
        found += [torch.zeros(256, dtype=torch.float32, device=parameters[0].device) for _ in SHARED]
    return found


def make_states(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter]) -> None:
    """What AdamW's first update would make, all or none; raises ``torch.OutOfMemoryError``."""
    made = [
        {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        for parameter in parameters
    ]
    optimizer.state.update(zip(parameters, made, strict=True))


def own_states(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """The states of ``parameter`` alone, as tensors; none before the first update."""
    states = optimizer.state.get(parameter, {})
    return {key: torch.as_tensor(value) for key, value in states.items() if key not in SHARED}


def state_shapes(parameter: torch.Tensor) -> tuple[torch.Size, ...]:
    """Those that a state of ``parameter`` may have: a scalar, a moment, or the scales of its blocks."""
    return torch.Size(()), parameter.shape, torch.Size((-(-parameter.numel() // BLOCK),))


def set_states(optimizer: Any, parameter: torch.nn.Parameter, states: dict[str, torch.Tensor]) -> None:
    """Give ``parameter`` of an 8-bit optimizer the ``states`` that :func:`own_states` had."""
    kept: dict[str, Any] = {key: value.to(parameter.device, copy=True) for key, value in states.items() if key != "step"}
    kept["step"] = int(states["step"])
    if states["state1"].dtype == torch.uint8:
        if "dynamic" not in optimizer.name2qmap:
            optimizer.fill_qmap()
        for name in SHARED.values():
            optimizer.name2qmap[name] = optimizer.name2qmap[name].to(parameter.device)
        kept |= {key: optimizer.name2qmap[name] for key, name in SHARED.items()}
    optimizer.state[parameter] = kept
