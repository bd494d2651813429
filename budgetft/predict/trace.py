"""THE step on fake tensors: every allocation, free and floating-point operation of any setting, without memory or GPU.

The trace is cut into segments at phase and decoder-layer boundaries. A segment's allocations are those of
``budgetft.meter.live``, so on a model small enough to run for real the peak equals the CPU meter's to the byte.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import flop_registry

from budgetft.contract import Contract
from budgetft.data.collate import Batch
from budgetft.errors import BudgetftError
from budgetft.gpu import Gpu
from budgetft.knobs import Attention, Knobs
from budgetft.meter.live import TO_HOST, LiveBytes, granules
from budgetft.model import Model
from budgetft.predict.known import KnownValues
from budgetft.predict.segments import Label, Segment, Trace
from budgetft.step.attention import FUSED_KERNEL, implementation
from budgetft.step.build import DTYPES, build_model, trainable
from budgetft.step.fp32_blocks import set_fp32_blocks
from budgetft.step.inputs import Inputs, prepare
from budgetft.step.offload import FROM_HOST
from budgetft.step.optimizer import states_like
from budgetft.step.step import Step
from budgetft.workload import Shape


@dataclass(kw_only=True)
class _Recorder:
    on_gpu: bool
    half: bool = False
    """Whether the step computes in 16 bits, so that products in fp32 are those of blocks that would overflow."""
    segments: list[Segment] = field(default_factory=lambda: [Segment(label=("load", -1))])
    layer_of: dict[int, int] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    counter: Iterator[int] = field(default_factory=count)
    over: bool = False
    """What dies after the step, the model too, is none of its segments'."""

    def enter(self, label: Label) -> None:
        if self.segments[-1].label != label:
            self.segments.append(Segment(label=label))

    def change(self, key: int, size: int) -> None:
        if size == 0 or self.over:
            return
        if size > 0:
            self.numbers[key] = next(self.counter)  # keys are addresses and used again; tensors are numbered
        segment = self.segments[-1]
        segment.events.append((self.numbers[key], size))
        segment.net_bytes += size
        if size > 0:
            self.layer_of[key] = segment.label[1] if segment.label[0] == "forward" else -1
        elif (layer := self.layer_of.pop(key, -1)) >= 0:
            segment.freed_of_layer[layer] = segment.freed_of_layer.get(layer, 0) - size
        segment.peak_bytes = max(segment.peak_bytes, segment.net_bytes)

    def _temporary(self, size: int) -> None:
        """What a kernel holds beside its results while it runs."""
        self.change(-1, size)
        self.change(-1, -size)

    def operation(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        segment = self.segments[-1]
        if self.on_gpu and func is torch.ops.aten._softmax_backward_data.default:
            self._temporary(granules(_nbytes(out)))  # CUDA's kernel multiplies gradient and output into a buffer of its own
        if func.namespace == "budgetft" and func.name() in (TO_HOST, FROM_HOST):
            segment.host_bytes += _nbytes(out) if func.name() == FROM_HOST else 0
            return
        if _is_view(func):
            return
        segment.kernels += 1
        segment.python_kernels += segment.label[0] != "backward"
        moved = _nbytes(args) + _nbytes(out) + _more_of_positions(func, args, out)
        formula = flop_registry.get(func.overloadpacket)
        if formula is None and "attention" not in func.overloadpacket.__name__:
            segment.moved_bytes += moved
            return
        segment.product_bytes += moved
        flops = _attention_flops(func, args) if formula is None else formula(*args, **kwargs, out_val=out)
        segment.flops += flops
        segment.fp32_flops += flops if self.half and _type_of(out) == torch.float32 else 0
        segment.attention_flops += flops if "attention" in func.overloadpacket.__name__ else 0


def build_to_trace(model: Model, contract: Contract, knobs: Knobs, layers: int | None = None) -> Any:
    """The model without memory, in the precision and with the tower of ``knobs``; ``layers`` as of :func:`trace_step`."""
    peft_model = build_model(
        model,
        contract,
        base_precision=knobs.base_precision,
        device=torch.device("meta"),
        layers=layers,
        vision=knobs.vision,
    )
    set_fp32_blocks(peft_model.get_base_model(), knobs.fp32_blocks, DTYPES[knobs.base_precision])
    return peft_model


def trace_step(
    model: Model,
    contract: Contract,
    knobs: Knobs,
    shapes: Sequence[Shape],
    *,
    gpu: Gpu | None,
    layers: int | None = None,
    evaluating: bool = False,
    built: Any = None,
    batch: Batch | None = None,
) -> Trace:
    """Trace one micro-batch of ``shapes``, with the attention kernels of ``gpu``, or the CPU's for None.

    ``layers`` shortens the language model; ``evaluating`` traces :meth:`Step.evaluate`, between two steps. ``built``: what
    :func:`build_to_trace` made of the same; traces one after the other may share it. ``batch``: instead of one of ``shapes``.

    Raises ``BudgetftError`` naming the operation when the model cannot be traced.
    """
    from budgetft.data.collate import synthetic_batch

    peft_model = build_to_trace(model, contract, knobs, layers) if built is None else built
    base = peft_model.get_base_model()
    batch = synthetic_batch(shapes, model, seed=0, vision=knobs.vision) if batch is None else batch
    inputs = prepare(batch, base, vision=knobs.vision, vision_group=knobs.vision_group)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            _to_fake(peft_model)
            with KnownValues(mode) as known, _as_real_tensors():
                return _run(peft_model, contract, knobs, inputs.map(known.fake), gpu, evaluating)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise BudgetftError(
            f"{model.name} cannot be traced without a GPU: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint="probe it on a GPU instead: --trials always",
        ) from error


@contextmanager
def _as_real_tensors() -> Iterator[None]:
    """Transformers leaves out what it would read back from a fake tensor, and so makes masks that a real step does without."""
    from transformers.utils import import_utils

    own = getattr(import_utils, "is_fake_tensor", None)
    if own is None:
        yield
        return
    import_utils.is_fake_tensor = lambda tensor: False
    try:
        yield
    finally:
        import_utils.is_fake_tensor = own


def _run(peft_model: Any, contract: Contract, knobs: Knobs, inputs: Inputs, gpu: Gpu | None, evaluating: bool) -> Trace:
    recorder = _Recorder(on_gpu=gpu is not None, half=knobs.base_precision != "fp32")
    step = Step(peft_model, contract, knobs.replace(optimizer="adamw"), device=torch.device("cpu"))  # it is not stepped
    accumulating = knobs.grad_accum > 1 and not evaluating
    parameters = trainable(peft_model)
    states = states_like(parameters, knobs.optimizer)  # alive throughout
    if accumulating:
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
    meter = LiveBytes(on_change=recorder.change, on_operation=recorder.operation)
    static = _static_bytes(meter, peft_model, parameters, states, inputs)
    already = tuple(recorder.segments[0].events)
    recorder.segments = [Segment(label=("forward", -1))]
    step.on_phase = lambda phase: recorder.enter((phase, -1))
    gc.disable()  # reference cycles in stock code are freed whenever Python likes; a peak must not depend on when
    try:
        with _layer_marks(step, recorder), _kernels_of(gpu, knobs, step), meter:
            if evaluating:
                step.evaluate(inputs)
            else:
                step.micro(inputs, total_supervised=max(1, inputs.supervised_tokens) * knobs.grad_accum)
    finally:
        recorder.over = True
        gc.enable()
    _count_recomputed(recorder.segments, knobs)
    return Trace(static_bytes=static, segments=tuple(recorder.segments), static_events=already)


def _count_recomputed(segments: list[Segment], knobs: Knobs) -> None:
    """Python launches in backward what a checkpointed layer, and the stock recipe's tower, computes again."""
    forward: dict[int, int] = {}
    for segment in segments:
        if segment.label[0] in ("forward", "vision"):
            forward[segment.label[1]] = forward.get(segment.label[1], 0) + segment.kernels
    for segment in segments:
        phase, layer = segment.label
        if phase == "backward" and 0 <= layer < knobs.checkpointed_layers:
            segment.python_kernels = min(segment.kernels, forward.get(layer, 0))
    if knobs.vision == "stock" and knobs.checkpointed_layers and segments[-1].label[0] == "backward":
        last, tower = segments[-1], forward.get(-1, 0)
        last.python_kernels = min(last.kernels, last.python_kernels + tower)


def _static_bytes(
    meter: LiveBytes, peft_model: Any, parameters: list[nn.Parameter], states: list[torch.Tensor], inputs: Inputs
) -> dict[str, int]:
    adapters = {id(parameter) for parameter in parameters}
    parts: dict[str, list[torch.Tensor | None]] = {
        "weights": [p for p in [*peft_model.parameters(), *peft_model.buffers()] if id(p) not in adapters],
        "adapter": list(parameters),
        "gradients": [parameter.grad for parameter in parameters],
        "optimizer": list(states),
        "inputs": list(inputs.tensors()),
    }
    sizes = {}
    for name, tensors in parts.items():
        before = meter.live_bytes
        meter.count(tensors)
        sizes[name] = meter.live_bytes - before
    return sizes


@contextmanager
def _layer_marks(step: Step, recorder: _Recorder) -> Iterator[None]:
    """Tell the recorder which decoder layer runs: forward by module hooks, backward by hooks on the layers' outputs."""

    def before(number: int) -> Any:
        def mark(module: nn.Module, args: Any) -> None:
            if step.phase == "forward":
                recorder.enter(("forward", number))

        return mark

    def after(number: int) -> Any:
        def mark(module: nn.Module, args: Any, output: Any) -> None:
            if step.phase == "forward":
                if output.requires_grad:
                    output.register_hook(lambda grad: recorder.enter(("backward", number)))
                recorder.enter(("forward", -1))

        return mark

    layers = step.family.layers(step.base)
    hooks = [layer.register_forward_pre_hook(before(i)) for i, layer in enumerate(layers)]
    hooks += [layer.register_forward_hook(after(i)) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _kernels_of(gpu: Gpu | None, knobs: Knobs, step: Step) -> Iterator[None]:
    """Attention and dropout as ``gpu`` would run them; None leaves the CPU's own kernels.

    Stock attention hands grouped heads to torch: without flash they fall to the math kernel on torch before 2.14. The
    V100's last default build is 2.10, so the older rule is traced for every GPU without flash.
    """
    if gpu is None:
        yield
        return
    fused: Attention = "flash" if gpu.flash_attention else "efficient" if gpu.efficient_attention else "math"
    token = FUSED_KERNEL.set(fused)
    text, tower = step.family.decoder(step.base).config, step.family.tower(step.base)
    configs = [text] if tower is None else [text, tower.config]
    before = [config._attn_implementation for config in configs]
    if knobs.attention == "stock" and before[0] == "sdpa":
        text._attn_implementation = implementation("flash" if gpu.flash_attention else "math", stock=True)
    if tower is not None and before[1] == "sdpa":
        tower.config._attn_implementation = implementation(fused, stock=True)
    dropouts = [module for module in step.base.modules() if isinstance(module, nn.Dropout)]
    for module in dropouts:
        module.forward = partial(_fused_dropout, module)
    try:
        yield
    finally:
        for module in dropouts:
            module.__dict__.pop("forward", None)
        FUSED_KERNEL.reset(token)
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _fused_dropout(module: nn.Dropout, input: torch.Tensor) -> torch.Tensor:
    """CUDA's kernel keeps a byte for each number; the CPU's several operations keep as much as ``input`` takes."""
    return torch.ops.aten.native_dropout.default(input, module.p, True)[0] if module.training else input


def _to_fake(model: nn.Module) -> None:
    """Swap every parameter and buffer for a fake CPU tensor, tied ones for the same."""
    memo: dict[int, tuple[Any, Any]] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in list(table.items()):
                if tensor is None:
                    continue
                if id(tensor) not in memo:
                    empty: Any = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    if isinstance(tensor, nn.Parameter):
                        empty = nn.Parameter(empty, requires_grad=tensor.requires_grad)
                    memo[id(tensor)] = (empty, tensor)  # the original is kept so that its id stays taken
                table[name] = memo[id(tensor)][0]


def _type_of(out: Any) -> torch.dtype | None:
    """The type of an operation's first result."""
    first = out[0] if isinstance(out, tuple | list) and out else out
    return first.dtype if isinstance(first, torch.Tensor) else None


def _nbytes(values: Any) -> int:
    if isinstance(values, torch.Tensor):
        return values.numel() * values.element_size()
    if isinstance(values, tuple | list):
        return sum(_nbytes(value) for value in values)
    return 0


def _more_of_positions(func: Any, args: tuple[Any, ...], out: torch.Tensor) -> int:
    """Bytes beyond those of masks among indices: a kernel reads the positions that they select, 8 bytes a dimension."""
    if func.overloadpacket not in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return 0
    taken = out if func.overloadpacket is torch.ops.aten.index else args[2]
    more = 0
    for mask in args[1]:
        if isinstance(mask, torch.Tensor) and mask.dtype == torch.bool:
            selected = taken.numel() // max(1, math.prod(args[0].shape[mask.dim() :]))
            more += 8 * mask.dim() * selected - _nbytes(mask)
    return more


@cache
def _is_view(func: Any) -> bool:
    return (
        func.namespace == "prim"
        or func.overloadpacket.__name__ in ("detach", "_unsafe_view", "empty", "empty_like")
        or any(argument.alias_info is not None and not argument.alias_info.is_write for argument in func._schema.arguments)
    )


def _attention_flops(func: Any, args: tuple[Any, ...]) -> int:
    """The CPU's fused kernel has no entry in torch's table: two products forward, five backward, causality not subtracted."""
    backward = "backward" in func.overloadpacket.__name__
    query, key = (args[1], args[2]) if backward else (args[0], args[1])
    batch, heads, length, size = query.shape
    return (5 if backward else 2) * 2 * batch * heads * length * key.shape[2] * size
