"""The board's state while a run is timed, sampled by a thread of the same process.

Input: a platform and a period. Output: a tuple of BoardState in order of time.
No process is spawned. A zone that cannot be read is None in its sample and drops nothing else; one
whose read does not return is given up, and the others are read on without it.
"""

from __future__ import annotations

import statistics
import threading
import time
from types import TracebackType
from typing import Callable, List, Optional, Tuple, Type

from device_agents.contract import BoardState
from device_agents.platforms import Linux
from device_agents.sysfs import KeptOpen

PERIOD_S = 0.1
_STALL_S = 1.0
_JOIN_S = 2.0


class Sampler:
    """``with Sampler(platform) as sampler``; afterwards ``sampler.states`` holds at least two.

    They are the first and the last of the block, and one every period_s between them, on a schedule
    that does not drift: a late sample is not made up for, and moves none after it. period_s None:
    nothing is observed and no thread is made.
    """

    def __init__(
        self, platform: Linux, period_s: Optional[float] = PERIOD_S, stall_s: float = _STALL_S
    ) -> None:
        self._root = KeptOpen(platform.root)
        self._platform = platform.watching(self._root)
        self._period_s = period_s
        self._stall_s = stall_s
        self._states: List[BoardState] = []
        self._ended = threading.Event()
        self._threads: List[threading.Thread] = []
        # The observer that counts; one that hung and comes back later finds another's number.
        self._turn = 0

    @property
    def states(self) -> Tuple[BoardState, ...]:
        return tuple(self._states)

    def __enter__(self) -> Sampler:
        if self._period_s is not None:
            self._begin(self._observe, self._period_s, 0)
            self._begin(self._look_after, self._period_s)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._ended.set()
        deadline_s = time.monotonic() + _JOIN_S
        for thread in reversed(self._threads):
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if not any(thread.is_alive() for thread in self._threads):
            self._root.close()

    def _begin(self, target: Callable[..., None], *args: float) -> None:
        # A daemon: a sensor whose read(2) hangs must not keep the process from ending.
        thread = threading.Thread(target=target, args=args, name="telemetry", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _observe(self, period_s: float, turn: int) -> None:
        # The monotonic clock: a step of the wall clock moves nothing.
        due_s = time.monotonic()
        is_last = False
        while True:
            state = self._platform.observe()
            if turn != self._turn:
                return
            self._states.append(state)
            if is_last:
                return
            due_s += period_s
            now_s = time.monotonic()
            if due_s < now_s:
                due_s += period_s * ((now_s - due_s) // period_s + 1)
            is_last = self._ended.wait(due_s - now_s)

    def _look_after(self, period_s: float) -> None:
        """Give up a file whose read is still on at the next look, and begin anew without it."""
        seen: Optional[Tuple[str, int]] = None
        while not self._ended.wait(self._stall_s):
            reading = self._root.reading
            if reading is not None and reading == seen:
                self._root.given_up.add(reading[0])
                self._turn += 1
                self._begin(self._observe, period_s, self._turn)
            seen = reading


def observation_cpu_ns(platform: Linux, count: int = 50) -> int:
    """CPU time of one observation as the Sampler makes it, in ns: the median of count."""
    root = KeptOpen(platform.root)
    board = platform.watching(root)
    spent_ns = []
    for _ in range(count):
        start_ns = time.thread_time_ns()
        board.observe()
        spent_ns.append(time.thread_time_ns() - start_ns)
    root.close()
    return round(statistics.median(spent_ns))
