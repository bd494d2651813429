"""The process's random number generators: what a step draws follows from the run's seed and the step's number alone.

So a resumed run, and one that had to do a step again, draw what an undisturbed one draws.
"""

import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed every generator of the process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**63)


def seed_step(seed: int, number: int, rank: int = 0) -> None:
    """Seed every generator for step ``number`` (from 1) of a run with ``seed``, in process ``rank`` of it."""
    seed_all((seed * 1_000_003 + number) * 1009 + rank)
