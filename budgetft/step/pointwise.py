"""Norms and gated activations as one kernel each instead of six, exact up to the rounding that the steps between had.

transformers computes an RMSNorm in fp32 by five kernels and a SwiGLU by two, and autograd keeps what lies between; on a fast
GPU these passes over memory take longer than the matrix products. Here both are single operations that keep only their
inputs. No Triton: torch's own norm kernel, and a pointwise kernel that the CUDA driver's compiler makes on first use.

Shapes: T tokens (all leading dimensions), D features.
"""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, Literal

import torch
from torch.nn.functional import linear, silu
from torch.utils._python_dispatch import _disable_current_modes

Norm = Literal["plain", "shifted", "bare"]
"""What stands after ``x / rms(x)``: times the weight, times one and the weight (Gemma 3, Qwen3.5), nothing."""


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """Modules by the names of their classes."""

    fused: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    """Norms and gated activations of a kind that is not computed here; they keep their own forward."""


def make_fused(model: torch.nn.Module) -> Replaced:
    """Replace the forward of every RMSNorm and SwiGLU in ``model``; :func:`make_stock` undoes it. Their weights are frozen.

    What a class computes is tried out on some numbers, once: norms and gated activations of another kind are left alone.
    """
    found = Replaced()
    for module in model.modules():
        forward = _fused_forward(module)
        if forward is not None:
            module.forward = forward
            found.fused[type(module).__name__] += 1
        elif "Norm" in type(module).__name__ or _gated_layout(module) is not None:
            found.left[type(module).__name__] += 1
    return found


def make_stock(model: torch.nn.Module) -> None:
    """Give every RMSNorm and SwiGLU its own forward back."""
    for module in model.modules():
        if _fused_forward(module) is not None:
            module.__dict__.pop("forward", None)


_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_GATED = {
    ("gate_proj", "up_proj", "down_proj"): "act_fn",
    ("gate_up_proj", "down_proj"): "activation_fn",
    ("w1", "w3", "w2"): None,
}
"""Names of the linears of a gated activation, in the order gate, up, down, and of its activation."""
MOST = 1e-5
"""Relative, in fp32: what two orders of the same operations differ by."""
_MOST_IN_16_BITS = 2.0**-6
"""The same in bf16: four roundings."""


def _fused_forward(module: Any) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What stands for the forward of a norm or a gated activation; None for one of another kind, and for any other module."""
    if type(module).__name__.endswith("Norm"):
        name = next((name for name in _EPSILONS if isinstance(getattr(module, name, None), float)), None)
        kind = None if name is None else _norm_kind_of(module, name)
        return None if kind is None else partial(_norm_forward, module, kind, getattr(module, str(name)))
    names = _gated_layout(module)
    if names is None or not _has_silu(module, names) or not _is_plain_swiglu(type(module), names):
        return None
    return partial(_pair_forward, module) if len(names) == 2 else partial(_mlp_forward, module, names)


def _norm_kind_of(module: Any, epsilon: str) -> Norm | None:
    weight = module._parameters.get("weight")
    if set(module._parameters) - {"weight"} or (weight is not None and weight.dim() != 1):
        return None
    others = {key: value for key, value in vars(module).items() if isinstance(value, bool | str) and key[0] != "_"}
    others.pop("training")
    return _norm_kind(type(module), epsilon, tuple(sorted(others.items())), weight is not None)


@cache
def _norm_kind(kind: type, epsilon: str, others: tuple[tuple[str, Any], ...], weighted: bool) -> Norm | None:
    with _disable_current_modes(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
        weight, x = torch.linspace(-1, 2, 8), torch.linspace(-3, 2, 24).reshape(3, 8) ** 3
        norm: Any = bare(kind, {**dict(others), epsilon: 0.5}, {"weight": weight} if weighted else {})

        def wanted(x: torch.Tensor, factor: torch.Tensor | float) -> torch.Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.5) * factor

        kinds: dict[Norm, Any] = {"plain": weight, "shifted": 1 + weight} if weighted else {"bare": 1.0}
        return next((name for name, factor in kinds.items() if _agrees(norm, x, partial(wanted, factor=factor))), None)


def _gated_layout(module: Any) -> tuple[str, ...] | None:
    """The key of ``_GATED`` that has the module's linears; None where it has others, or anything beside them."""
    parts = set(module._modules)
    if module._parameters or not parts:
        return None
    return next((names for names, act in _GATED.items() if {*names} <= parts and parts <= {*names, act}), None)


def _has_silu(module: Any, names: tuple[str, ...]) -> bool:
    activation = _GATED[names]
    return activation is None or "silu" in type(getattr(module, activation, None)).__name__.lower()


@cache
def _is_plain_swiglu(kind: type, names: tuple[str, ...]) -> bool:
    with _disable_current_modes(), torch.device("cpu"), torch.autocast("cpu", enabled=False):
        x = torch.linspace(-3, 2, 8).reshape(2, 4)
        gate, up, down = (torch.linspace(-1, place, 16).reshape(4, 4) for place in (1, 2, 3))
        modules: dict[str, Any] = {} if _GATED[names] is None else {str(_GATED[names]): torch.nn.SiLU()}
        for name, weight in zip(names, [gate, up, down] if len(names) == 3 else [torch.cat([gate, up]), down], strict=True):
            modules[name] = torch.nn.Linear(4, len(weight), bias=False)
            modules[name].weight = torch.nn.Parameter(weight, requires_grad=False)
        return _agrees(bare(kind, {}, {}, modules), x, lambda x: linear(silu(linear(x, gate)) * linear(x, up), down))


def bare(kind: type, fields: dict[str, Any], parameters: dict[str, torch.Tensor], modules: Any = None) -> Any:
    """A module of ``kind`` with these alone, without its own ``__init__``."""
    made: Any = object.__new__(kind)
    torch.nn.Module.__init__(made)
    for name, value in fields.items():
        setattr(made, name, value)
    for name, value in parameters.items():
        setattr(made, name, torch.nn.Parameter(value, requires_grad=False))
    for name, module in (modules or {}).items():
        setattr(made, name, module)
    return made


def _agrees(module: Any, x: torch.Tensor, wanted: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    """Whether ``module`` computes what ``wanted`` does: values and the gradient of ``x`` in fp32, and values in bf16."""
    try:
        pairs = zip(_values_and_gradient(module, x), _values_and_gradient(wanted, x), strict=True)
        narrow = deepcopy(module).to(torch.bfloat16)(x.bfloat16())
        if narrow.dtype != torch.bfloat16 or not _close(narrow.float(), wanted(x.bfloat16().float()), _MOST_IN_16_BITS):
            return False
        return all(_close(ours, theirs, MOST) for ours, theirs in pairs)
    except Exception:  # a class may want anything
        return False


def _values_and_gradient(function: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x.clone().requires_grad_()
        values = function(leaf)
        (gradient,) = torch.autograd.grad((values * torch.linspace(-1, 2, values.numel()).view_as(values)).sum(), leaf)
    return values.detach(), gradient


def _close(ours: torch.Tensor, theirs: torch.Tensor, most: float) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= most * theirs.abs().max())


def _norm_forward(norm: Any, kind: Norm, epsilon: float, x_TD: torch.Tensor) -> torch.Tensor:
    weight_D = norm._parameters.get("weight")
    if weight_D is not None and x_TD.dtype != weight_D.dtype:
        return type(norm).forward(norm, x_TD)
    return _RmsNorm.apply(x_TD, weight_D, epsilon, kind)


def _mlp_forward(mlp: Any, names: tuple[str, ...], x: torch.Tensor) -> torch.Tensor:
    gate, up, down = (mlp._modules[name] for name in names)
    return down(_SwiGlu.apply(gate(x), up(x)))


def _pair_forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    return mlp.down_proj(_SwiGlu.apply(*mlp.gate_up_proj(x).chunk(2, dim=-1)))


class _RmsNorm(torch.autograd.Function):
    """Of a weight that is shifted, 1 + w is never rounded to the type of the step: n + n * w is taken of the norm n."""

    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, weight_D: torch.Tensor | None, epsilon: float, kind: Norm) -> torch.Tensor:
        x_TD = x_TD.contiguous()  # heads that were transposed before; the kernel wants rows
        y_TD, scale_T1 = rms_norm(x_TD, weight_D if kind == "plain" else None, epsilon)
        if kind == "shifted":
            y_TD.addcmul_(y_TD, weight_D)
        ctx.kind = kind
        ctx.save_for_backward(x_TD, scale_T1, weight_D)
        return y_TD

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, None, None, None]:
        x_TD, scale_T1, weight_D = ctx.saved_tensors
        (grad_TD,) = grads
        if ctx.kind == "shifted":
            grad_TD = torch.addcmul(grad_TD, grad_TD, weight_D).contiguous()
        return rms_norm_backward(grad_TD, x_TD, scale_T1, weight_D if ctx.kind == "plain" else None), None, None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TD: torch.Tensor, up_TD: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_TD, up_TD)
        return swiglu(gate_TD, up_TD)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return swiglu_backward(grads[0], *ctx.saved_tensors)


def _wide_type(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(_wide_type(x))


def _rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``x / rms(x) * weight``, or without a weight, with fp32 inside (fp64 of fp64), and 1 / rms of every row."""
    if x.is_cuda and hasattr(torch.ops.aten, "_fused_rms_norm"):
        return torch.ops.aten._fused_rms_norm(x.contiguous(), [x.shape[-1]], weight, epsilon)
    wide = _wide(x)
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    if wide is x:
        return x * scale if weight is None else x * scale * weight, scale
    wide.mul_(scale)
    return (wide if weight is None else wide.mul_(weight)).to(x.dtype), scale


def _fake_rms_norm(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty((*x.shape[:-1], 1), dtype=_wide_type(x))


def _rms_norm_backward(grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """The gradient of ``x``: with n = x * scale and g = grad * weight, scale * (g - n * mean(g * n))."""
    if x.is_cuda and hasattr(torch.ops.aten, "_fused_rms_norm_backward"):
        grads = torch.ops.aten._fused_rms_norm_backward(
            grad.contiguous(), x.contiguous(), [x.shape[-1]], scale, weight, [True, False]
        )
        return grads[0]
    weighted, normed = _wide(grad) if weight is None else _wide(grad) * weight, _wide(x) * scale
    mean = (weighted * normed).mean(-1, keepdim=True)
    return (scale * (weighted - normed * mean)).to(x.dtype)


def _fake_rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor | None
) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up``."""
    kernel = _forward_kernel() if gate.is_cuda else None
    return silu(gate).mul_(up) if kernel is None else kernel(gate, up)


def _fake_swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gate)


def _swiglu_backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of ``gate`` and ``up``; nothing else is allocated."""
    kernel = _backward_kernel() if gate.is_cuda else None
    if kernel is not None:
        return kernel(grad, gate, up)
    of_gate = grad * up
    torch.ops.aten.silu_backward.grad_input(of_gate, gate, grad_input=of_gate)
    return of_gate, silu(gate).mul_(grad)


def _fake_swiglu_backward(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(gate), torch.empty_like(up)


def _operation(name: str, real: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """``real`` as one operation to a meter and to fake tensors; on a GPU it is called directly, which launches sooner."""
    operation: Any = torch.library.custom_op(f"budgetft::{name}", real, mutates_args=())
    operation.register_fake(fake)

    def call(first: torch.Tensor, *others: Any) -> Any:
        return (real if first.is_cuda else operation)(first, *others)

    return call


rms_norm = _operation("rms_norm", _rms_norm, _fake_rms_norm)
rms_norm_backward = _operation("rms_norm_backward", _rms_norm_backward, _fake_rms_norm_backward)
swiglu = _operation("swiglu", _swiglu, _fake_swiglu)
swiglu_backward = _operation("swiglu_backward", _swiglu_backward, _fake_swiglu_backward)


@cache
def _forward_kernel() -> Callable[..., Any] | None:
    return _compiled(
        """
        template <typename T> T swiglu(T gate, T up) {
            float g = static_cast<float>(gate);
            return static_cast<T>(g / (1.0f + exp(-g)) * static_cast<float>(up));
        }""",
        outputs=1,
    )


@cache
def _backward_kernel() -> Callable[..., Any] | None:
    return _compiled(
        """
        template <typename T> void swiglu_backward(T grad, T gate, T up, T& of_gate, T& of_up) {
            float d = static_cast<float>(grad), g = static_cast<float>(gate);
            float s = 1.0f / (1.0f + exp(-g));
            of_gate = static_cast<T>(d * static_cast<float>(up) * s * (1.0f + g * (1.0f - s)));
            of_up = static_cast<T>(d * g * s);
        }""",
        outputs=2,
    )


def _compiled(code: str, *, outputs: int) -> Callable[..., Any] | None:
    """A pointwise CUDA kernel; None where torch cannot make one, and several kernels do the same in the same memory."""
    try:
        if outputs == 1:
            kernel = torch.cuda.jiterator._create_jit_fn(code)
        else:
            kernel = torch.cuda.jiterator._create_multi_output_jit_fn(code, num_outputs=outputs)
        some = torch.ones(2, device="cuda", dtype=torch.float16)
        kernel(*[some] * (outputs + 1))
    except (RuntimeError, AttributeError):
        return None
    return kernel
