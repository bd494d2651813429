"""Tests marked ``gpu``: skipped, with the reason, where there is no CUDA GPU or a package that they name is not installed.

``@pytest.mark.gpu`` needs a GPU; ``@pytest.mark.gpu("datasets", "av")`` needs these packages too. ``pytest -m gpu`` takes all
of them and nothing else.
"""

import functools
import os
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from budgetft.host_gpus import first_visible


@functools.cache
def no_gpu() -> str | None:
    """Why no test can use a GPU here; None where one can.

    NVML is asked first, in milliseconds: where it has no GPU, torch is never loaded for this.
    """
    if first_visible(os.environ) is None:
        return "needs a CUDA GPU: NVML lists none that CUDA_VISIBLE_DEVICES leaves"
    import torch

    return None if torch.cuda.is_available() else f"needs a CUDA GPU: torch {torch.__version__} finds none, though NVML does"


def missing_packages(item: pytest.Item) -> Iterator[str]:
    """Those that the marks of ``item`` name and nobody installed; none is imported."""
    for mark in item.iter_markers("gpu"):
        yield from (name for name in mark.args if find_spec(name) is None)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture is made: one that is shared by a module may start CUDA."""
    if item.get_closest_marker("gpu") is None:
        return
    missing = ", ".join(sorted(set(missing_packages(item))))
    reason = no_gpu() or (f"not installed: {missing}" if missing else None)
    if reason is not None:
        item.add_marker(pytest.mark.skip(reason=reason))  # told at the test, not here
