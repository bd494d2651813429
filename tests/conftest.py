"""What every test may use."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
):  # equal to the bit needs equal sums: MKL takes fewer threads on a busy machine
    os.environ.setdefault(name, "1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's studies, ledgers or samples."""
    if "BUDGETFT_CACHE" not in os.environ:
        monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path / "cache"))
