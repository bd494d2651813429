"""The same bits in every run on one GPU: torch's deterministic algorithms, where they are asked for.

Without them some kernels add in the order in which their blocks happen to end, the backward pass of memory-efficient attention
among them. On a CPU nothing changes: there a run has the same bits anyway.
"""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = ":4096:8"
"""cuBLAS does not choose its workspaces then, as torch's notes on reproducibility ask: 32 MiB, what a Hopper GPU has anyway."""


def fix_workspace(environment: MutableMapping[str, str]) -> None:
    """Before CUDA starts; a user's own choice stays."""
    environment.setdefault(WORKSPACE, FIXED)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """The block in which torch computes so, or raises where it cannot. Enter it before CUDA starts."""
    if not wanted:
        yield
        return
    import torch
    import torch.utils.deterministic

    options: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), options.fill_uninitialized_memory
    fix_workspace(os.environ)
    torch.use_deterministic_algorithms(True)
    options.fill_uninitialized_memory = False  # nothing reads what nothing wrote
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        options.fill_uninitialized_memory = before[1]
