"""Norms and gated activations as one kernel each instead of six, exact up to the rounding that the steps between had.

transformers computes an RMSNorm in fp32 by five kernels and a SwiGLU by two, and autograd keeps what lies between; on a fast
GPU these passes over memory take longer than the matrix products. Here both are single operations that keep only their
inputs. No Triton: torch's own norm kernel, and a pointwise kernel that the CUDA driver's compiler makes on first use.

Shapes: T tokens (all leading dimensions), D features.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch.nn.functional import silu
from torch.utils._python_dispatch import _disable_current_modes


def make_fused(model: torch.nn.Module) -> None:
    """Replace the forward of every RMSNorm and SwiGLU in ``model``; :func:`make_stock` undoes it. Their weights are frozen.

    What a class computes is tried out on some numbers, once: norms and gated activations of another kind are left alone.
    """
    for module in model.modules():
        epsilon = _epsilon_of(module)
        if epsilon is not None:
            module.forward = partial(_norm_forward, module, epsilon)
        elif _is_swiglu(module):
            module.forward = partial(_mlp_forward, module)


def make_stock(model: torch.nn.Module) -> None:
    """Give every RMSNorm and SwiGLU its own forward back."""
    for module in model.modules():
        if _epsilon_of(module) is not None or _is_swiglu(module):
            module.__dict__.pop("forward", None)


_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_LINEARS = ("gate_proj", "up_proj", "down_proj")
_MOST = 1e-5
"""Relative, in fp32: what two orders of the same operations differ by."""


def _epsilon_of(module: Any) -> float | None:
    """What a norm that computes ``x / rms(x) * weight`` adds under the root; None for any other module."""
    weight = module._parameters.get("weight")
    if not type(module).__name__.endswith("Norm") or weight is None or weight.dim() != 1 or len(module._parameters) != 1:
        return None
    name = next((name for name in _EPSILONS if isinstance(getattr(module, name, None), float)), None)
    if name is None:
        return None
    others = {key: value for key, value in vars(module).items() if isinstance(value, bool | str) and key[0] != "_"}
    return getattr(module, name) if _is_plain_norm(type(module), name, tuple(sorted(others.items()))) else None


@cache
def _is_plain_norm(kind: type, epsilon: str, others: tuple[tuple[str, Any], ...]) -> bool:
    with _disable_current_modes(), torch.device("cpu"), torch.no_grad():
        weight, x = torch.linspace(-1, 2, 8), torch.linspace(-3, 2, 24).reshape(3, 8) ** 3
        norm: Any = _bare(kind, {**dict(others), epsilon: 0.5}, {"weight": weight})
        wanted = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.5) * weight
        return _agrees(norm, x, wanted)


def _is_swiglu(module: Any) -> bool:
    names = (*_LINEARS, "act_fn")
    if not all(hasattr(module, name) for name in names) or "silu" not in type(module.act_fn).__name__.lower():
        return False
    return len(module._parameters) == 0 and set(module._modules) <= {*names} and _is_plain_swiglu(type(module))


@cache
def _is_plain_swiglu(kind: type) -> bool:
    with _disable_current_modes(), torch.device("cpu"), torch.no_grad():
        x = torch.linspace(-3, 2, 8).reshape(2, 4)
        weights = {name: torch.linspace(-1, place, 16).reshape(4, 4) for place, name in enumerate(_LINEARS, start=1)}
        linears = {name: torch.nn.Linear(4, 4, bias=False) for name in _LINEARS}
        for name, linear in linears.items():
            linear.weight.copy_(weights[name])
        gate, up, down = (weights[name] for name in _LINEARS)
        wanted = (silu(x @ gate.T) * (x @ up.T)) @ down.T
        return _agrees(_bare(kind, {}, {}, {**linears, "act_fn": torch.nn.SiLU()}), x, wanted)


def _bare(kind: type, fields: dict[str, Any], parameters: dict[str, torch.Tensor], modules: Any = None) -> Any:
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


def _agrees(module: Any, x: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether ``module`` gives ``wanted`` for ``x``; one that cannot be run so is another."""
    try:
        found = module(x)
    except Exception:  # a class may want anything
        return False
    same_kind = isinstance(found, torch.Tensor) and found.shape == wanted.shape
    return same_kind and bool((found - wanted).abs().max() <= _MOST * wanted.abs().max())


def _norm_forward(norm: Any, epsilon: float, x_TD: torch.Tensor) -> torch.Tensor:
    if x_TD.dtype != norm.weight.dtype:
        return type(norm).forward(norm, x_TD)
    return _RmsNorm.apply(x_TD, norm.weight, epsilon)


def _mlp_forward(mlp: Any, x: torch.Tensor) -> torch.Tensor:
    return mlp.down_proj(_SwiGlu.apply(mlp.gate_proj(x), mlp.up_proj(x)))


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
        y_TD, scale_T1 = rms_norm(x_TD, weight_D, epsilon)
        ctx.save_for_backward(x_TD, scale_T1, weight_D)
        return y_TD

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[torch.Tensor, None, None]:
        return rms_norm_backward(grads[0], *ctx.saved_tensors), None, None


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


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """``x / rms(x) * weight`` with fp32 inside (fp64 of fp64), and 1 / rms of every row."""
    if x.is_cuda and hasattr(torch.ops.aten, "_fused_rms_norm"):
        return torch.ops.aten._fused_rms_norm(x.contiguous(), [x.shape[-1]], weight, epsilon)
    wide = _wide(x)
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
    return wide.mul_(scale).mul_(weight).to(x.dtype) if wide is not x else x * scale * weight, scale


def _fake_rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), x.new_empty((*x.shape[:-1], 1), dtype=_wide_type(x))


def _rms_norm_backward(grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The gradient of ``x``: with n = x * scale and g = grad * weight, scale * (g - n * mean(g * n))."""
    if x.is_cuda and hasattr(torch.ops.aten, "_fused_rms_norm_backward"):
        grads = torch.ops.aten._fused_rms_norm_backward(
            grad.contiguous(), x.contiguous(), [x.shape[-1]], scale, weight, [True, False]
        )
        return grads[0]
    weighted, normed = _wide(grad) * weight, _wide(x) * scale
    mean = (weighted * normed).mean(-1, keepdim=True)
    return (scale * (weighted - normed * mean)).to(x.dtype)


def _fake_rms_norm_backward(grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
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
