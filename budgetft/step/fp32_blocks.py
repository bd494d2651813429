"""Which parts of a model overflow fp16, and those parts in fp32.

fp16 ends at 65,504. Published overflows of these models sit inside MLPs and attention (the product before ``down_proj``,
the vision MLP) while the residual stream stays in range: so such a block computes in fp32 and hands fp16 on.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from budgetft.errors import UsageError
from budgetft.precision import LIMIT, TOWER
from budgetft.step.quantise import Nf4Linear

BLOCKS = ("mlp", "self_attn", "attn", "merger", "deepstack_merger_list")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The largest magnitude that a block's linears read or wrote, and how many of their numbers were not finite."""

    block: str
    largest: float
    nonfinite: int

    @property
    def overflows(self) -> bool:
        return self.nonfinite > 0 or self.largest > LIMIT


def blocks_of(base: nn.Module) -> dict[str, nn.Module]:
    """The MLPs, attentions and mergers of both towers, by name, in the order of the modules; none inside another."""
    found: dict[str, nn.Module] = {}
    for name, module in base.named_modules():
        parts = [part for part in name.split(".") if not part.isdigit()]
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if parts[-1:] and parts[-1] in BLOCKS and not isinstance(module, nn.ModuleList) and not inside:
            found[name] = module
    return found


def is_fp32_block(module: nn.Module) -> bool:
    return "budgetft_fp32_block" in module.__dict__


def make_fp32_block(module: nn.Module) -> None:
    """Let ``module`` compute in fp32: its frozen weights are kept in fp32 (four-bit ones are read in it), its inputs and
    outputs converted."""
    module.forward = partial(_fp32_block_forward, module)
    if is_fp32_block(module):
        return
    module.float()
    for part in module.modules():
        if isinstance(part, Nf4Linear):
            part.dtype = torch.float32
    module.__dict__["budgetft_fp32_block"] = True


def undo_fp32_block(module: nn.Module, dtype: torch.dtype) -> None:
    """Let ``module`` compute in ``dtype`` again, which its frozen weights came from; adapters stay in fp32."""
    if not is_fp32_block(module):
        return
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    for part in module.modules():
        if isinstance(part, Nf4Linear):
            part.dtype = dtype
    del module.__dict__["budgetft_fp32_block"]
    module.__dict__.pop("forward", None)


def matching_blocks(base: nn.Module, names: Sequence[str]) -> list[str]:
    """The blocks of ``base`` that ``names`` mean, ``*`` being any number; those of a tower that is not there are left out.

    Raises ``UsageError`` for a name that means none.
    """
    blocks = blocks_of(base)
    lost = [name for name in names if not _matches(name, blocks) and not _of_missing_tower(name, base)]
    if lost:
        raise UsageError(
            f"fp32_blocks: the model has no block {lost[0]!r}",
            hint=f"blocks are its MLPs, attentions and mergers, for example {next(iter(blocks), 'none')}",
        )
    return [block for block in blocks if any(_means(name, block) for name in names)]


def _matches(name: str, blocks: Iterable[str]) -> bool:
    return any(_means(name, block) for block in blocks)


def _means(name: str, block: str) -> bool:
    return name == block or ("*" in name and re.fullmatch(re.escape(name).replace(r"\*", r"\d+"), block) is not None)


def _of_missing_tower(name: str, base: nn.Module) -> bool:
    return name.startswith(TOWER) and not any(block.startswith(TOWER) for block in blocks_of(base))


def set_fp32_blocks(base: nn.Module, names: Sequence[str], dtype: torch.dtype) -> None:
    """Let exactly the blocks that ``names`` mean compute in fp32, the others in ``dtype``. Asked once more, it puts their
    forward in front of another that was put into its place."""
    chosen = set(matching_blocks(base, names)) if names else set()
    for name, block in blocks_of(base).items():
        if name in chosen:
            make_fp32_block(block)
        else:
            undo_fp32_block(block, dtype)


def _floating(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _fp32_block_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    entered = next(value for value in (*args, *kwargs.values()) if _floating(value))

    def convert(dtype: torch.dtype) -> Callable[[Any], Any]:
        return lambda value: value.to(dtype) if _floating(value) else value

    with torch.autocast(entered.device.type, enabled=False):
        to_full = convert(torch.float32)
        found = type(module).forward(module, *map(to_full, args), **{name: to_full(v) for name, v in kwargs.items()})
    return tree_map(convert(entered.dtype), found)


@contextmanager
def watching(base: nn.Module, *, repair: bool) -> Iterator[list[Finding]]:
    """Forwards inside the block are looked at; the list has a finding per block afterwards.

    ``repair``: a block that overflows becomes an fp32 block at once and is computed again, so that one forward finds them all.
    """
    findings: dict[str, Finding] = {}
    handles = []
    for name, block in blocks_of(base).items():
        seen = _Seen()
        # A LoRA linear may compute without calling the linear inside it.
        linears = (one for one in block.modules() if isinstance(one, nn.Linear | Nf4Linear) or hasattr(one, "base_layer"))
        handles += [linear.register_forward_hook(seen.see) for linear in linears]
        handles.append(block.register_forward_hook(partial(_settle, name, seen, findings, repair), with_kwargs=True))
    listed: list[Finding] = []
    try:
        yield listed
    finally:
        for handle in handles:
            handle.remove()
        listed += findings.values()


class _Seen:
    """Magnitudes since the last :meth:`take`, kept on the device until then."""

    def __init__(self) -> None:
        self._largest: list[torch.Tensor] = []
        self._nonfinite: list[torch.Tensor] = []

    def see(self, module: nn.Module, args: Any, output: torch.Tensor) -> None:
        for tensor in (args[0], output):
            finite = torch.isfinite(tensor)
            self._nonfinite.append((~finite).sum())
            self._largest.append(torch.where(finite, tensor, 0).abs().max().float())

    def take(self) -> tuple[float, int]:
        largest = max((float(one) for one in self._largest), default=0.0)
        nonfinite = sum(int(one) for one in self._nonfinite)
        self._largest, self._nonfinite = [], []
        return largest, nonfinite


def _settle(
    name: str,
    seen: _Seen,
    findings: dict[str, Finding],
    repair: bool,
    block: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Any,
) -> Any:
    largest, nonfinite = seen.take()
    before = findings.get(name)
    if before is not None:
        largest, nonfinite = max(largest, before.largest), nonfinite + before.nonfinite
    findings[name] = Finding(block=name, largest=largest, nonfinite=nonfinite)
    if not repair or is_fp32_block(block) or not findings[name].overflows:
        return None
    make_fp32_block(block)
    output = block.forward(*args, **kwargs)
    seen.take()
    return output


def first_nonfinite(base: nn.Module, forward: Callable[[], object]) -> str | None:
    """The first module whose output is not finite in ``forward``; None when all are."""
    found: list[str] = []

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) and output else output
        if not found and isinstance(first, torch.Tensor) and first.is_floating_point() and not torch.isfinite(first).all():
            found.append(name)

    leaves = ((name, module) for name, module in base.named_modules() if not any(module.children()) or ".lora_" not in name)
    handles = [module.register_forward_hook(partial(look, name)) for name, module in leaves if name]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None
