"""A clock that no busy machine moves: sleeping takes no time, and processes that share the clock run one at a time."""

import heapq
import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection

from patience import HANG_SECONDS


class Clock:
    """In the place of the module ``time``: a sleep is over at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1000, "it is waited for for ever"


class SharedClock(Clock):
    """Of a process that runs while the others sleep, and sleeps while one of them runs."""

    def __init__(self, turns: Connection) -> None:
        super().__init__()
        self._turns = turns

    def sleep(self, seconds: float) -> None:
        self._turns.send(seconds)
        self.now = self._turns.recv()
        assert self.now < 1000, "it is waited for for ever"


def in_turns(works: Sequence[Callable[[Clock], None]]) -> float:
    """When, by their clock, ``works`` have ended, each in a process of its own, woken in the order of that clock.

    They must all succeed.
    """
    fork, processes, ends = multiprocessing.get_context("fork"), [], []
    for work in works:
        ours, theirs = fork.Pipe()
        processes.append(fork.Process(target=_take_turns, args=(work, theirs)))
        ends.append(ours)
        processes[-1].start()
    try:
        now, sleeping = 0.0, [(0.0, number) for number, _ in enumerate(works)]
        while sleeping:
            now, number = heapq.heappop(sleeping)
            ends[number].send(now)
            assert ends[number].poll(HANG_SECONDS), f"process {number} hangs at {now} s"
            seconds = ends[number].recv()
            if seconds is not None:
                heapq.heappush(sleeping, (now + seconds, number))
        for process in processes:
            process.join(HANG_SECONDS)
        assert [process.exitcode for process in processes] == [0] * len(works)
        return now
    finally:
        for process in processes:
            process.kill()
            process.join()


def _take_turns(work: Callable[[Clock], None], turns: Connection) -> None:
    clock = SharedClock(turns)
    clock.now = turns.recv()
    try:
        work(clock)
    finally:
        turns.send(None)
