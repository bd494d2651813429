"""What every test may use."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
):  # equal to the bit needs equal sums: MKL takes fewer threads on a busy machine
    os.environ.setdefault(name, "1")


@pytest.fixture(scope="session")
def new_cache(tmp_path_factory) -> Callable[[], Path]:
    """A cache folder of its own each time, but for the laws: what one test has traced the others need not."""
    laws = tmp_path_factory.mktemp("laws")

    def make() -> Path:
        cache = tmp_path_factory.mktemp("cache")
        (cache / "laws").symlink_to(laws, target_is_directory=True)
        return cache

    return make


@pytest.fixture(autouse=True)
def _own_cache(new_cache, monkeypatch):
    """No test reads or writes the user's studies, ledgers or samples."""
    if "BUDGETFT_CACHE" not in os.environ:
        monkeypatch.setenv("BUDGETFT_CACHE", str(new_cache()))
