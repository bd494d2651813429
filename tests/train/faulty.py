"""``budgetft`` whose process ``FAULTY_RANK`` has allocations refused: ``FAULTY`` is "step phase count" for each, by commas."""

import os
from contextlib import nullcontext

from refusing import refusing

from budgetft.cli import main


def wanted() -> list[tuple[int, str, int]]:
    fields = [place.split() for place in os.environ["FAULTY"].split(",")]
    return [(int(step), phase, int(count)) for step, phase, count in fields]


if __name__ == "__main__":
    faulty = os.environ["RANK"] == os.environ["FAULTY_RANK"]
    with refusing(*wanted()) if faulty else nullcontext():
        raise SystemExit(main())
