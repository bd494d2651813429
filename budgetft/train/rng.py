"""The process's random number generators as a value: a resumed run draws what an uninterrupted one draws."""

import base64
import random

import numpy as np
import torch

from budgetft.value import Value


class Rng(Value):
    """States; bytes are base64."""

    torch_cpu: str
    torch_cuda: str | None
    """Of the current device; None when CUDA is not in use."""
    python: tuple[int, tuple[int, ...], float | None]
    numpy_keys: str
    numpy_position: int
    numpy_has_gauss: int
    numpy_cached_gaussian: float


def capture() -> Rng:
    """The states now."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return Rng(
        torch_cpu=_encoded(torch.get_rng_state().numpy()),
        torch_cuda=_encoded(torch.cuda.get_rng_state().numpy()) if torch.cuda.is_initialized() else None,
        python=(version, tuple(numbers), gauss),
        numpy_keys=_encoded(np.asarray(keys, dtype=np.uint32)),
        numpy_position=int(position),
        numpy_has_gauss=int(has_gauss),
        numpy_cached_gaussian=float(cached),
    )


def restore(rng: Rng) -> None:
    """Set the states; that of CUDA only where CUDA is in use and was then."""
    random.setstate(rng.python)
    keys = np.frombuffer(base64.b64decode(rng.numpy_keys), dtype=np.uint32)
    np.random.set_state(("MT19937", keys, rng.numpy_position, rng.numpy_has_gauss, rng.numpy_cached_gaussian))
    torch.set_rng_state(_state(rng.torch_cpu))
    if rng.torch_cuda is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(_state(rng.torch_cuda))


def seed_all(seed: int) -> None:
    """Seed every generator of the process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _state(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
