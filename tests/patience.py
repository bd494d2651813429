"""Waiting in tests: for something to happen and never for a time, with a bound that only a hang meets.

How long things take is for reports/checks/timings.py to tell; tests are about what makes them slow.
"""

import time
from collections.abc import Callable

HANG_SECONDS = 600.0
"""Whatever takes longer hangs: a hundred times what the slowest wait takes on a quiet machine. Never a measure of speed."""


def until(happened: Callable[[], object], what: str, *, seconds: float = HANG_SECONDS) -> None:
    """Wait until ``happened()`` is true; after ``seconds`` the test fails and says that ``what`` never came."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still waiting for {what}"
        time.sleep(0.01)
