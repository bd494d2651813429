"""``budgetft`` in one of several processes, as a test starts it: in fp64 when ``IN_DOUBLES`` is set, with faults by ``FAULTY``.

``FAULTY`` is "step phase count" for each allocation, by commas, that is refused in process ``FAULTY_RANK``. ``OTHER_PROCESS``
is "first last room": in these steps process ``OTHER_PROCESS_RANK`` has room for so many examples beside another. ``DIFFERS``
is what the second process has of its own: another "adapter", or another "folder" of checkpoints.

Fails where something of the connection to the others outlives the run: its threads may abort the interpreter's end. None
ends before the others have come to their end too: the launcher would end them then, and nobody would see that one waits.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import pytest
from beside_another_process import PLANNED, beside
from doubles import in_doubles
from patience import HANG_SECONDS, until
from refusing import refusing

from budgetft.cli import main


def wanted() -> list[tuple[int, str, int]]:
    """What is refused in this process."""
    if os.environ.get("FAULTY_RANK") != os.environ["RANK"]:
        return []
    fields = [place.split() for place in os.environ["FAULTY"].split(",")]
    return [(int(step), phase, int(count)) for step, phase, count in fields]


def beside_another_process() -> AbstractContextManager[object]:
    """The block in which this process has its other process, if it has one."""
    if os.environ.get("OTHER_PROCESS_RANK") != os.environ["RANK"]:
        return nullcontext()
    first, last, room = map(int, os.environ["OTHER_PROCESS"].split())
    return beside(lambda step: room if first <= step <= last else PLANNED)


@contextmanager
def differing() -> Iterator[None]:
    """The block in which this process is not like the first, if it is to be so."""
    from budgetft.train import ranks
    from budgetft.train.folder import RunFolder
    from budgetft.train.loop import Training

    class Elsewhere(RunFolder):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.checkpoints = path / "elsewhere"

    prepare = Training._preflight_heldout

    def learn_alone(training: Training) -> None:
        training.step.parameters[0].data.add_(1e-3)
        prepare(training)

    what = os.environ.get("DIFFERS") if os.environ["RANK"] == "1" else None
    with pytest.MonkeyPatch.context() as patch:
        if what == "adapter":
            patch.setattr(Training, "_preflight_heldout", learn_alone)
        if what == "folder":
            patch.setattr(ranks, "RunFolder", Elsewhere)
        yield


def connection_threads() -> int:
    tasks = Path("/proc/self/task")  # where there is none, nothing is known
    return sum("gloo" in (task / "comm").read_text() for task in tasks.iterdir()) if tasks.is_dir() else 0


def wait_for_the_others() -> None:
    """Until they have left ``main`` as well, however it ended; for HANG_SECONDS when one of them hangs."""
    folder, launcher = Path(os.environ["LAUNCHED_IN"]), os.getppid()  # a test may launch more than once
    ended = [folder / f"ended-{launcher}-{rank}" for rank in range(int(os.environ["WORLD_SIZE"]))]
    ended[int(os.environ["RANK"])].touch()
    until(lambda: all(one.exists() for one in ended), "the other processes' end", seconds=HANG_SECONDS)


if __name__ == "__main__":
    refused = wanted()
    in_fp64 = in_doubles() if "IN_DOUBLES" in os.environ else nullcontext()
    with in_fp64, beside_another_process(), differing(), refusing(*refused) if refused else nullcontext():
        status = main()
    left = connection_threads()
    wait_for_the_others()
    raise SystemExit(f"{left} threads of the connection are left" if left else status)
