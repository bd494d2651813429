"""Which norms and gated activations are fused, and that those compute what their class does."""

from collections import Counter

import pytest
import torch
from families import build
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import gelu, silu

from budgetft.step import pointwise

EXPECTED = {
    "qwen3_vl": ({"Qwen3VLTextRMSNorm", "Qwen3VLTextMLP"}, {"LayerNorm"}),
    "gemma3": ({"Gemma3RMSNorm"}, {"LayerNorm", "Gemma3MLP"}),
    "gemma4": ({"Gemma4RMSNorm"}, {"Gemma4VisionMLP", "Gemma4TextMLP"}),
    "qwen3_5": ({"Qwen3_5RMSNorm", "Qwen3_5MLP"}, {"LayerNorm", "Qwen3_5RMSNormGated"}),
    "glm4v": ({"Glm4vRMSNorm", "Glm4VisionMlp", "Glm4vTextMLP"}, {"LayerNorm"}),
    "lfm2_vl": ({"Lfm2RMSNorm", "Lfm2MLP"}, {"LayerNorm"}),
}
"""Classes that are fused, and those that are left alone."""


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def values_and_gradient(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    (y * numbers(*y.shape).to(y.dtype)).sum().backward()
    assert leaf.grad is not None
    return y.detach(), leaf.grad


def fusable(name: str, dtype: torch.dtype) -> list[nn.Module]:
    """One module of each class that is fused, with weights that are not what they start as."""
    model = build(name, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * numbers(*parameter.shape).to(parameter.dtype))
        parameter.requires_grad_(False)
    found = {type(module).__name__: module for module in model.modules() if type(module).__name__ in EXPECTED[name][0]}
    return [module.to(dtype) for module in found.values()]


def width(module: nn.Module) -> int:
    shapes = [parameter.shape[-1] for key, parameter in module.named_parameters() if not key.startswith(("down", "w2"))]
    return shapes[0] if shapes else 16


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_fused_and_what_is_left_alone_is_counted_by_class(name):
    model = build(name)
    replaced = pointwise.make_fused(model)
    classes = Counter(type(module).__name__ for module in model.modules())
    assert (set(replaced.fused), set(replaced.left)) == EXPECTED[name]
    assert all(classes[each] == count for part in (replaced.fused, replaced.left) for each, count in part.items())
    pointwise.make_stock(model)
    assert not any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", EXPECTED)
def test_values_and_gradients_are_those_of_the_class_in_fp32(name):
    for module in fusable(name, torch.float32):
        x = numbers(2, 3, width(module)).float()
        theirs = values_and_gradient(module, x)
        pointwise.make_fused(module)
        for ours, wanted in zip(values_and_gradient(module, x), theirs, strict=True):
            assert ours.shape == wanted.shape
            assert (ours - wanted).norm() <= 1e-6 * (wanted.norm() + x.norm()), type(module).__name__


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EXPECTED)
def test_in_16_bits_they_are_as_near_to_fp64_as_the_class_itself(name, dtype):
    for module in fusable(name, dtype):
        x = numbers(4, 32, width(module)).to(dtype)
        theirs = values_and_gradient(module, x)
        pointwise.make_fused(module)
        ours = values_and_gradient(module, x)
        assert all(each.dtype == dtype for each in ours)
        pointwise.make_fused(module.double())
        exact = values_and_gradient(module, x.double())
        for our, their, right in zip(ours, theirs, exact, strict=True):
            # Twice as many roundings as the least that a result in this type has.
            room = 2 * torch.finfo(dtype).eps * right.norm()
            assert (our - right).norm() <= 1.5 * (their - right).norm() + 0.25 * room, type(module).__name__


def test_heads_that_were_transposed_are_normalised_as_they_lie():
    (norm,) = fusable("gemma3", torch.float32)
    x = numbers(2, 5, 3, width(norm)).float().transpose(1, 2)
    theirs = values_and_gradient(norm, x)
    pointwise.make_fused(norm)
    for ours, wanted in zip(values_and_gradient(norm, x), theirs, strict=True):
        assert (ours - wanted).norm() <= 1e-6 * wanted.norm()


class MeanNorm(nn.Module):
    """Looks like an RMSNorm, and takes the mean of magnitudes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(4)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / (x.abs().mean(-1, keepdim=True) + self.eps) * self.weight


class ThroughDetachedNorm(MeanNorm):
    """The values of an RMSNorm, and another gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.detach().pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class WideningNorm(MeanNorm):
    """Hands on fp32 whatever it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight.float()


class BiasedNorm(MeanNorm):
    """An RMSNorm and something added."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight + self.bias


class SwappedMLP(nn.Module):
    """The names of a gated activation, with the gate on the other side."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (nn.Linear(4, 4, bias=False) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(self.w1(x) * silu(self.w3(x)))


class GeluMLP(SwappedMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(gelu(self.w1(x)) * self.w3(x))


@pytest.mark.parametrize("kind", [MeanNorm, ThroughDetachedNorm, WideningNorm, BiasedNorm, SwappedMLP, GeluMLP])
def test_a_module_of_another_kind_keeps_its_forward(kind):
    module = kind()
    replaced = pointwise.make_fused(module)
    assert (replaced.fused, replaced.left) == (Counter(), Counter([kind.__name__]))
    assert "forward" not in vars(module)


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "glm4v"])
def test_fake_tensors_choose_as_real_ones_do(name):
    real = pointwise.make_fused(build(name))
    pointwise._norm_kind.cache_clear()
    pointwise._is_plain_swiglu.cache_clear()
    model = build(name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert pointwise.make_fused(model) == real
