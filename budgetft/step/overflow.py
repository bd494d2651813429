"""Which blocks would overflow fp16: a forward of the whole model in fp32 with the weights of one module in memory at a time.

Needs no GPU, and as much memory as the largest weight and the activations of a batch take. Magnitudes in fp32 are those that
fp16 would have to hold.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from budgetft.contract import Contract
from budgetft.data.collate import Batch
from budgetft.errors import BudgetftError, UsageError
from budgetft.model import Model
from budgetft.precision import LIMIT, Block, Precision, Stream
from budgetft.step.build import model_class, model_config
from budgetft.step.family import Family, family_of
from budgetft.step.fp32_blocks import watching
from budgetft.step.inputs import prepare

CPU = torch.device("cpu")
_PREFIXES = ("model", "language_model")


def find_overflows(
    model: Model,
    contract: Contract,
    folder: Path,
    batch: Batch,
    *,
    device: torch.device = CPU,
    on_layer: Callable[[int, int], None] = lambda done, all: None,
) -> Precision:
    """The magnitudes inside every block of ``model`` with the weights in ``folder`` on ``batch``, and between them.

    ``on_layer`` is told of every decoder layer, out of how many. Raises ``UsageError`` when the weights cannot be read, and
    ``BudgetftError`` when they make numbers that are not finite even in fp32.
    """
    from accelerate import init_empty_weights

    family, config = family_of(model.family), model_config(model)
    with init_empty_weights(include_buffers=False):
        base: Any = model_class(config).from_config(config, dtype=torch.float32)
    base.requires_grad_(False).eval()
    for module in base.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)
    inputs = prepare(batch, base, vision="stock")
    stream: dict[str, torch.Tensor] = {}
    layers = family.layers(base)
    hooks = [
        layer.register_forward_hook(lambda *_, number=i: on_layer(number + 1, len(layers))) for i, layer in enumerate(layers)
    ]
    hooks += _stream_hooks(base, family, stream)
    try:
        with torch.no_grad(), _one_at_a_time(base, folder, device), watching(base, repair=False) as found:
            moved = inputs.to(device)
            others = {
                name: torch.from_numpy(value).to(device) if isinstance(value, np.ndarray) else value
                for name, value in moved.others.items()
            }
            family.core(base)(input_ids=moved.input_ids_BS, attention_mask=moved.attention_mask_BS, use_cache=False, **others)
    finally:
        for hook in hooks:
            hook.remove()
    widest = max(stream, key=lambda name: float(stream[name]))
    if any(one.nonfinite for one in found) or not torch.isfinite(stream[widest]):
        first = next((one.block for one in found if one.nonfinite), widest)
        raise BudgetftError(
            f"{first} makes numbers that are not finite even in fp32", hint=f"are the weights in {folder} whole?"
        )
    blocks = tuple(Block(name=one.block, largest=one.largest, nonfinite=0, fp32=one.overflows) for one in found)
    return Precision(
        limit=LIMIT, blocks=blocks, stream=Stream(module=widest, largest=float(stream[widest])), examples=batch.ids
    )


def _stream_hooks(base: Any, family: Family, largest: dict[str, torch.Tensor]) -> list[Any]:
    """Keep the largest magnitude that each layer of either tower hands on."""

    def keep(name: str) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            found = first.detach().abs().max().float().cpu()
            largest[name] = torch.maximum(largest[name], found) if name in largest else found

        return see

    layers = {id(layer) for layer in (*family.vision_blocks(base), *family.layers(base))}
    return [module.register_forward_hook(keep(name)) for name, module in base.named_modules() if id(module) in layers]


@contextmanager
def _one_at_a_time(base: nn.Module, folder: Path, device: torch.device) -> Iterator[None]:
    """Modules inside the block get their own weights before their forward, and lose them after it."""
    with _Files(folder) as files:
        hooks = []
        for name, module in base.named_modules():
            own = {key: f"{name}.{key}" if name else key for key, value in module._parameters.items() if value is not None}
            if own:
                empty = dict(module._parameters)
                hooks.append(module.register_forward_pre_hook(_reader(files, own, device)))
                hooks.append(module.register_forward_hook(_dropper(empty), always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _reader(files: "_Files", own: Mapping[str, str], device: torch.device) -> Callable[..., None]:
    def read(module: nn.Module, args: Any) -> None:
        for key, name in own.items():
            shape, tensor = module._parameters[key].shape, files.read(name)  # pyright: ignore[reportOptionalMemberAccess]
            if tensor.shape != shape:
                raise UsageError(f"{files.folder}: {name} is {tuple(tensor.shape)}, the configuration has {tuple(shape)}")
            module._parameters[key] = nn.Parameter(tensor.to(device, torch.float32), requires_grad=False)

    return read


def _dropper(empty: Mapping[str, Any]) -> Callable[..., None]:
    def drop(module: nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(empty)

    return drop


class _Files:
    """The tensors of a checkpoint by the names that the model has for them, whatever prefixes the files have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: list[Any] = []
        self._of: dict[str, tuple[Any, str]] = {}

    def __enter__(self) -> "_Files":
        from safetensors import safe_open

        from budgetft.weights import weight_files

        for path in weight_files(self.folder):
            try:
                opened = safe_open(path, framework="pt").__enter__()
                names = list(opened.keys())
            except Exception as error:  # safetensors' own error has no common base with the others
                raise UsageError(f"{path} is not a whole safetensors file: {str(error)[:200]}") from None
            self._opened.append(opened)
            self._of.update({_bare(name): (opened, name) for name in names})
        return self

    def __exit__(self, *_: object) -> None:
        for opened in self._opened:
            opened.__exit__(None, None, None)

    def read(self, name: str) -> torch.Tensor:
        """The tensor that the model calls ``name``. Raises ``UsageError`` where there is none."""
        opened, stored = self._of.get(_bare(name), (None, ""))
        if opened is None:
            raise UsageError(f"{self.folder} has no weights for {name}", hint="is the checkpoint whole, and of this model?")
        return opened.get_tensor(stored)


def _bare(name: str) -> str:
    """``name`` without the prefixes by which checkpoints of one model differ."""
    return ".".join(part for part in name.split(".") if part not in _PREFIXES)
