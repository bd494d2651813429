"""The fused operations on a GPU against fp32 arithmetic, and what they allocate."""

import pytest
import torch
from rounding import UNITS
from torch.nn.functional import silu

from budgetft.step import pointwise

pytestmark = pytest.mark.gpu
SHAPE = (4, 300, 2048)


def near(result: torch.Tensor, exact: torch.Tensor) -> bool:
    """Within four roundings of fp16, of the number or, where large ones cancel, of a tenth of the largest."""
    bound = 4 * UNITS["fp16"]
    return torch.allclose(result.float(), exact.float(), rtol=bound, atol=bound / 10 * float(exact.abs().max()))


def numbers(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, device="cuda", dtype=torch.float16, generator=generator)


def gradient(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


@pytest.mark.parametrize("kind", ["plain", "shifted", "bare"])
def test_the_fused_norm_and_its_gradient_are_those_of_fp32(kind):
    x, grad = numbers(*SHAPE, seed=0), numbers(*SHAPE, seed=1)
    weight = numbers(SHAPE[-1], seed=2)
    wide = x.float().requires_grad_()
    factor = {"plain": weight.float(), "shifted": 1 + weight.float(), "bare": 1.0}[kind]
    exact = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * factor
    exact.backward(grad.float())
    narrow = x.clone().requires_grad_()
    result = pointwise._RmsNorm.apply(narrow, None if kind == "bare" else weight, 1e-6, kind)
    result.backward(grad)
    assert near(result.detach(), exact.detach())
    assert near(gradient(narrow), gradient(wide))


def test_the_fused_swiglu_and_its_gradients_are_those_of_fp32():
    gate, up, grad = (numbers(*SHAPE, seed=seed) for seed in range(3))
    gate[0, 0, :3] = torch.tensor([0.0, 60000.0, -60000.0])
    wide = [gate.float().requires_grad_(), up.float().requires_grad_()]
    exact = silu(wide[0]) * wide[1]
    exact.backward(grad.float())
    narrow = [gate.clone().requires_grad_(), up.clone().requires_grad_()]
    result = pointwise._SwiGlu.apply(*narrow)
    result.backward(grad)
    finite = exact.detach().abs() < 60000
    assert near(result.detach()[finite], exact.detach()[finite])
    for one, other in zip(narrow, wide, strict=True):
        finite = gradient(other).abs() < 60000
        assert near(gradient(one)[finite], gradient(other)[finite])


def test_two_halves_of_one_product_are_gated_as_they_lie():
    both = numbers(*SHAPE[:2], 2 * SHAPE[2], seed=0)
    parts = [each.requires_grad_() for each in both.chunk(2, dim=-1)]
    whole = [each.detach().contiguous().requires_grad_() for each in parts]
    grad = numbers(*SHAPE, seed=1)
    ours, theirs = pointwise._SwiGlu.apply(*parts), pointwise._SwiGlu.apply(*whole)
    ours.backward(grad)
    theirs.backward(grad)
    assert torch.equal(ours, theirs)
    assert all(torch.equal(gradient(one), gradient(other)) for one, other in zip(parts, whole, strict=True))


def test_the_kernels_are_made_on_the_gpu_and_allocate_only_their_results():
    assert pointwise._forward_kernel() is not None
    assert pointwise._backward_kernel() is not None
    gate, up, grad = (numbers(*SHAPE, seed=seed) for seed in range(3))
    size = gate.numel() * 2
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = pointwise._swiglu_backward(grad, gate, up)
    assert len(results) == 2
    assert torch.cuda.max_memory_allocated() - before == 2 * size
