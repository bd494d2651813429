"""What every test may use."""

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """No test reads or writes the user's studies, ledgers or samples."""
    if "BUDGETFT_CACHE" not in os.environ:
        monkeypatch.setenv("BUDGETFT_CACHE", str(tmp_path / "cache"))
