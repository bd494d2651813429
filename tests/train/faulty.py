"""``budgetft`` whose process ``FAULTY_RANK`` has allocations refused: ``FAULTY`` is "step phase count" for each, by commas.

Fails where something of the connection to the others outlives the run: its threads may abort the interpreter's end.
"""

import os
from contextlib import nullcontext
from pathlib import Path

from refusing import refusing

from budgetft.cli import main


def wanted() -> list[tuple[int, str, int]]:
    fields = [place.split() for place in os.environ["FAULTY"].split(",")]
    return [(int(step), phase, int(count)) for step, phase, count in fields]


def connection_threads() -> int:
    tasks = Path("/proc/self/task")  # where there is none, nothing is known
    return sum("gloo" in (task / "comm").read_text() for task in tasks.iterdir()) if tasks.is_dir() else 0


if __name__ == "__main__":
    faulty = os.environ["RANK"] == os.environ["FAULTY_RANK"]
    with refusing(*wanted()) if faulty else nullcontext():
        status = main()
    left = connection_threads()
    raise SystemExit(f"{left} threads of the connection are left" if left else status)
