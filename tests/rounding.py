"""How far apart two correct computations of one thing may be: derived, not chosen.

Sums in another order, in blocks, in other threads or by another library give other roundings, and which ones a machine makes
depends on its processor. Three sources for a bound:

- ``sum_error``: the error of a sum or dot product of n terms in any order. Rounding errors behave like independent random
  numbers of zero mean, so n of them add up like sqrt(n) and not like n (Higham and Mary, A new approach to probabilistic
  rounding error analysis, SIAM J. Sci. Comput. 41(5), 2019, theorem 2.4: lambda * sqrt(n) * u * sum|terms|).
- ``noise``: for a whole step or run, where errors pass through many layers. The same computation is done again with every
  result moved at random by as much as its rounding may be (Monte Carlo arithmetic: Parker, Pierce and Eggert, Computing in
  Science and Engineering 2(4), 2000; each sum of n terms by sqrt(n) units), and the distance that this makes is measured.
- ``arithmetic``: for Python's own floats, a count of operations.

All are for one machine alone as for any other: none is a figure that was once seen.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

SIGMAS = 6.0
"""lambda of the bounds: errors of independent signs pass six standard deviations once in 5e8 draws."""
UNITS = {"fp64": 2.0**-53, "fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
"""Unit roundoffs: half the distance from 1 to the next number."""


def sum_error(terms: int, precision: str = "fp32") -> float:
    """Relative to the sum of magnitudes, how far two orders of summing ``terms`` numbers may end apart."""
    return 2 * SIGMAS * math.sqrt(terms) * UNITS[precision]


def arithmetic(value: Any, operations: int = 8, precision: str = "fp64", scale: float = 0.0) -> Any:
    """``value`` as it may come out of ``operations`` roundings in each of two ways: each moves it by a unit at most.

    ``scale``: of the largest number on the way, where differences of large numbers may be small.
    """
    bound = 2 * operations * UNITS[precision]
    return pytest.approx(value, rel=bound, abs=bound * scale)


def distance(found: Any, expected: Any) -> float:
    """Norm of the difference over the norm of ``expected``: tensors, or sequences of them or of numbers."""
    import torch

    first, second = (_flat(torch, each) for each in (found, expected))
    return float((first - second).norm() / second.norm())


def farthest(found: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference of two sequences of numbers, one by one."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def _flat(torch: Any, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().double().flatten()
    if isinstance(value, dict):
        value = [value[name] for name in sorted(value)]
    if isinstance(value, float | int):
        return torch.tensor([value], dtype=torch.float64)
    return torch.cat([_flat(torch, each) for each in value])


def noise(run: Callable[[], Any], expected: Any, measure: Callable[[Any, Any], float] = distance, draws: int = 1) -> float:
    """How far from ``expected`` roundings alone may bring ``run``, by ``measure``: the bound for another order of its sums.

    One draw is enough where ``measure`` is a norm over many numbers; of a few numbers it could be small by chance.
    """
    found = []
    for seed in range(draws):
        with reordered(seed):
            result = run()
        found.append(measure(result, expected))
    assert all(found), "roundings that change nothing bound nothing"
    return SIGMAS * math.sqrt(sum(one**2 for one in found) / draws)


@contextmanager
def doubled() -> Iterator[None]:
    """Inside, torch computes in fp64 where it is asked for fp32: a model made or run here has no coarser rounding.

    Libraries widen to fp32 by name (norms, rotary angles, the loss); what is wide already would be narrowed by that.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Doubled(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False  # a guard around every call, against a compiler that is not there

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if kwargs and kwargs.get("dtype") is torch.float32:
                kwargs = {**kwargs, "dtype": torch.float64}
            return func(*args, **(kwargs or {}))

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Doubled():
            yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def reordered(seed: int) -> Iterator[None]:
    """Inside, the result of every sum, product of matrices, norm, softmax and attention is moved as another order may move it.

    One rounding of one number is the same in every order, so operations element by element are left alone.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    generator = torch.Generator().manual_seed(seed)

    def move(result: Any, terms: int) -> None:
        unit = torch.finfo(result.dtype).eps / 2
        wide = result.float() if result.dtype in (torch.float16, torch.bfloat16) else result
        known = wide.nan_to_num(0.0, 0.0, 0.0)  # kernels pad what nobody reads with whatever was there
        size = known.pow(2).mean(-1, keepdim=True).sqrt() if result.dim() else known.abs()
        draw = torch.rand(result.shape, generator=generator, dtype=wide.dtype).mul_(2).sub_(1)
        scale = size * (unit * math.sqrt(3 * terms))  # a uniform draw has variance 1/3
        result.add_(draw.to(result.device).mul_(scale).to(result.dtype))

    class Reordered(TorchDispatchMode):
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            return False

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            terms = _terms(func, args, result)
            if terms > 1:
                for each in result if isinstance(result, tuple | list) else (result,):
                    if isinstance(each, torch.Tensor) and each.is_floating_point() and each.numel():
                        move(each, terms)
            return result

    with Reordered():
        yield


def _terms(func: Any, args: Any, result: Any) -> int:
    """How many terms the sums of an operation have; 1 where it makes none."""
    import torch

    name = func.overloadpacket.__name__
    tensors = [one for one in args if isinstance(one, torch.Tensor)]
    if func.namespace == "budgetft" or name in ("native_layer_norm", "native_layer_norm_backward"):
        return tensors[0].shape[-1] if tensors else 1
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        return tensors[-1].shape[-2]
    if "scaled_dot_product" in name:  # (B, H, S, D) of query, key and value, the gradient first in a backward
        return max(tensors[1].shape[-2:])
    if name in ("convolution", "convolution_backward"):
        return tensors[-1].numel() // tensors[-1].shape[0]
    if name.startswith(("_softmax", "_log_softmax")):
        return tensors[0].shape[-1]
    if name.startswith("nll_loss"):
        return tensors[-1].numel() if "forward" in name else 1
    if name in ("sum", "mean"):
        return tensors[0].numel() // max(1, result.numel())
    return 1
