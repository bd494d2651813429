"""Other processes on the GPU: noticed when they come, and named, because their bytes are not in the plan."""

from collections.abc import Callable, Sequence

from budgetft.train.readings import OtherProcess
from budgetft.units import format_gib


class OtherProcesses:
    """Who else is on the GPU; ``list_others`` is asked at every look."""

    def __init__(self, list_others: Callable[[], Sequence[OtherProcess]], on_note: Callable[[str], None]) -> None:
        self._list_others = list_others
        self._on_note = on_note
        self._seen: dict[int, OtherProcess] = {}

    @property
    def seen(self) -> tuple[OtherProcess, ...]:
        """Everyone so far, each with the most bytes it was seen to hold."""
        return tuple(self._seen.values())

    def look(self, when: str) -> tuple[OtherProcess, ...]:
        """Those that are there now; each newcomer is told once, with ``when``."""
        here = tuple(self._list_others())
        for one in here:
            before = self._seen.get(one.pid)
            if before is None:
                self._on_note(f"warning: {describe(one)} is on the GPU {when}; its bytes are not in the plan")
            if before is None or (one.memory_bytes or 0) > (before.memory_bytes or 0):
                self._seen[one.pid] = one
        return here


def describe(one: OtherProcess) -> str:
    """Its number, name and bytes."""
    held = "an unknown number of bytes" if one.memory_bytes is None else format_gib(one.memory_bytes)
    return f"process {one.pid} ({one.name}, {held})"
