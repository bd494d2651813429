"""What a process comes to hold outside torch's allocator, told from the use of the whole GPU alone."""

from collections import deque

from budgetft.units import MIB

READINGS = 3
"""What is counted was there in so many readings in a row."""
LEAST_ARRIVAL_BYTES, MOST_ARRIVAL_BYTES = 64 * MIB, 256 * MIB


class Outside:
    """Growth since it was made, from readings of what the GPU has in use less what the process's allocator reserves.

    For GPUs whose driver does not say which process holds what: under WSL, in some containers, on MIG slices. Three things are
    used to tell the process's own growth from that of others. A process that comes brings a CUDA context at once,
    about as large as this process's own was; kernels and workspaces that are loaded late are smaller. What such a
    process holds is not counted; what is loaded while it is there counts when it has gone. A process that was there
    before and goes takes as much with it, which lowers where the growth is counted from. And what the process has loaded
    stays, so that only what is there in several readings counts: the lowest of the last ``READINGS``.

    With nobody else on the GPU, or with others who hold what they held, this is what the process has come to hold; what
    came in the last two readings may lack. It cannot tell another process that slowly takes a little more, which counts as the
    process's own, nor one that gives a little back, which hides as much. Where the process takes more than half a context
    within so few readings, that is taken for another process's, until the cap is set again: there all counts as its own.
    """

    def __init__(self, used_bytes: int, *, context_bytes: int) -> None:
        """``used_bytes``: the reading to count from; ``context_bytes``: what the process's own context took."""
        self._from_bytes = used_bytes
        self._arrival_bytes = min(max(context_bytes // 2, LEAST_ARRIVAL_BYTES), MOST_ARRIVAL_BYTES)
        self._grown: deque[int] = deque(maxlen=READINGS)

    @property
    def grown_bytes(self) -> int:
        return max(0, min(self._grown, default=0))

    def see(self, used_bytes: int) -> int:
        """Take a reading; returns what the process has grown by."""
        grown_bytes = used_bytes - self._from_bytes
        if grown_bytes - self.grown_bytes > self._arrival_bytes:
            return self.grown_bytes  # somebody is here
        if self.grown_bytes - grown_bytes > self._arrival_bytes:  # somebody has gone
            self._from_bytes = used_bytes - self.grown_bytes
            grown_bytes = self.grown_bytes
        self._grown.append(grown_bytes)
        return self.grown_bytes
