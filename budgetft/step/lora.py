"""The LoRA linear with fewer passes over memory, exact, and without a kernel of its own.

peft computes ``base(x) + scale * B(A(x.float()))`` as eight operations, three of them elementwise over the layer's output,
and keeps an fp32 copy of ``x`` for backward. Here the low-rank product is added in place, ``x`` is kept once in its own type
(shared with the other linears that read it), and ``A x`` is recomputed.

Shapes: T tokens, I in features, O out features, R rank.
"""

from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

from budgetft.step.quantise import frozen_weight


def make_lean(peft_model: torch.nn.Module) -> None:
    """Replace the forward of every LoRA linear; :func:`make_stock` undoes it. Needs a LoRA dropout of zero."""
    for layer in lora_linears(peft_model):
        layer.forward = partial(_lean_forward, layer)


def make_stock(peft_model: torch.nn.Module) -> None:
    """Give every LoRA linear peft's own forward back."""
    for layer in lora_linears(peft_model):
        layer.__dict__.pop("forward", None)


def lora_linears(peft_model: torch.nn.Module) -> list[Any]:
    """Every linear that carries an adapter."""
    from peft.tuners.lora import Linear

    return [module for module in peft_model.modules() if isinstance(module, Linear)]


def _lean_forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    if layer.disable_adapters or layer.merged:
        return type(layer).forward(layer, x, *args, **kwargs)
    (name,) = layer.active_adapters
    return _LoraLinear.apply(x, layer.base_layer, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        base: Any,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        weight_OI = frozen_weight(base)
        x = x.to(weight_OI.dtype)
        with torch.autocast(x.device.type, enabled=False):
            x_TI = x.reshape(-1, x.shape[-1])
            y_TO = linear(x_TI, weight_OI, base.bias)
            del weight_OI
            low_TR = x_TI @ a_RI.to(x.dtype).t()
            y_TO.addmm_(low_TR, b_OR.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(x, a_RI, b_OR)
        ctx.base, ctx.scale = base, scale
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, a_RI, b_OR = ctx.saved_tensors
        (grad,) = grads
        x_TI = x.reshape(-1, x.shape[-1])
        grad_TO = grad.reshape(-1, grad.shape[-1])
        a_half_RI = a_RI.to(x.dtype)
        # Scaled before the products are rounded: fp16 has few bits left for the small gradients of a B near 0.
        low_TR = (x_TI @ a_half_RI.t()).mul_(ctx.scale)
        grad_low_TR = grad_TO @ (b_OR.to(x.dtype) * ctx.scale)
        grad_a_RI = (grad_low_TR.t() @ x_TI).to(a_RI.dtype)
        grad_b_OR = (grad_TO.t() @ low_TR).to(b_OR.dtype)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_TO @ frozen_weight(ctx.base)).addmm_(grad_low_TR, a_half_RI).view(x.shape)
        return grad_x, None, grad_a_RI, grad_b_OR, None
