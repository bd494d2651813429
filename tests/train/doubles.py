"""Whole runs in fp64: what two ways to the same result differ by is then no rounding of fp32."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext

import pytest
from rounding import doubled


@contextmanager
def in_doubles() -> Iterator[None]:
    """Runs inside that are planned in fp32 compute in fp64, adapter, optimizer and caches included.

    Pictures are decoded to fp32 by a thread of the run or by the run itself: to the same numbers in both.
    """
    import torch

    from budgetft.data import collate
    from budgetft.step.build import DTYPES
    from budgetft.step.step import Step

    see = collate.with_patches

    def see_as_ever(*given, **named):  # what torch is told to do holds for this thread alone
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(see, *given, **named).result()

    with pytest.MonkeyPatch.context() as patch, doubled():
        patch.setattr(collate, "with_patches", see_as_ever)
        patch.setitem(DTYPES, "fp32", torch.float64)
        patch.setattr(Step, "autocast", lambda self: nullcontext())  # there is none for fp64
        yield
