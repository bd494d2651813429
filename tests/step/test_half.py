"""In half precision no way to compute a gradient is further from the exact one than the stock recipe's."""

import pytest
import torch
from rounding import UNITS, distance
from torch.nn.functional import cross_entropy, linear

from budgetft.step import lora
from budgetft.step.loss import chunked_loss

MOST = 1.1
"""Times as far from fp64 as stock: the two round the same numbers as often, but not in the same places."""


class Layer(torch.nn.Module):
    """What the lean forward asks of peft's LoRA linear."""

    def __init__(self, base, a, b, scale):
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = ({"default": type("Half", (), {"weight": each})()} for each in (a, b))
        self.scaling, self.active_adapters, self.disable_adapters, self.merged = {"default": scale}, ("default",), False, False


def lora_gradients(x, weight, a, b, scale, grad, *, lean):
    """The gradients of A, B and x; stock as peft computes them under autocast."""
    a, b, x = (each.clone().requires_grad_() for each in (a, b, x))
    if lean:
        base = torch.nn.Linear(*weight.shape[::-1], bias=False)
        base.weight = torch.nn.Parameter(weight, requires_grad=False)
        lora._lean_forward(Layer(base, a, b, scale), x).backward(grad)
    else:
        low = linear(linear(x, a.to(x.dtype)), b.to(x.dtype))
        (linear(x, weight) + low * scale).backward(grad)
    return a.grad, b.grad, x.grad


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("scale", [0.5, 2.0, 8.0])
@pytest.mark.parametrize(("grad_size", "b_size"), [(1e-2, 1e-2), (1e-3, 1e-4), (1e-4, 1e-5), (1e-5, 1e-4)])
def test_the_lean_lora_keeps_as_many_bits_of_small_gradients_as_peft(precision, scale, grad_size, b_size):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape, size=1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * size

    x, weight, grad = (each.to(dtype) for each in (draw(256, 96), draw(128, 96, size=0.1), draw(256, 128, size=grad_size)))
    a, b = draw(16, 96, size=0.1).float(), draw(128, 16, size=b_size).float()
    truth = lora_gradients(x.double(), weight.double(), a.double(), b.double(), scale, grad.double(), lean=False)
    errors = [
        [
            distance(found, exact)
            for found, exact in zip(lora_gradients(x, weight, a, b, scale, grad, lean=lean), truth, strict=True)
        ]
        for lean in (True, False)
    ]
    for ours, theirs in zip(*errors, strict=True):
        assert ours <= MOST * theirs + UNITS[precision] / 8


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("divisor", [1, 100, 777.5, 4096])
@pytest.mark.parametrize("gradient_scale", [1.0, 65536.0])
def test_the_chunked_loss_rounds_its_gradient_as_often_as_the_stock_recipe(precision, divisor, gradient_scale):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(96, 64, generator=generator).to(dtype)
    head = (torch.randn(1000, 64, generator=generator) * 0.1).to(dtype)
    targets = torch.randint(0, 1000, (96,), generator=generator)

    def gradient(loss_of, hidden):
        hidden = hidden.clone().requires_grad_()
        loss = loss_of(hidden)
        (loss * gradient_scale).backward()
        return float(loss.detach()), hidden.grad.double() / gradient_scale

    def stock(hidden, head=head):
        logits = linear(hidden, head)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return cross_entropy(wide, targets, reduction="sum") / divisor

    exact_loss, exact = gradient(lambda hidden: stock(hidden, head.double()), hidden.double())
    _, theirs = gradient(stock, hidden)
    loss, ours = gradient(lambda hidden: chunked_loss(hidden, head, targets, chunk=40, divisor=divisor), hidden)
    assert loss == pytest.approx(exact_loss, rel=UNITS[precision])
    assert distance(ours, exact) <= MOST * distance(theirs, exact)
