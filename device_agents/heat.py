"""Bring a board's heat into a band and keep it there: warm it by load, cool it by waiting.

Input: a platform, a band in °C, a way to wait. Output: the hottest zone lies in the band, or
RunFailedError ("condition"). Closed-loop: the sensor says when it is enough, never a fixed sleep.

Beside a band that has been left stands the one that is about to be: near an edge, heat is brought
back to the middle as well. A sensor that does not answer is asked a few times more, and then the
run fails: in a band that nobody can see, nothing is measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from typing import Callable, Iterable, List, Optional

from device_agents.errors import RunFailedError
from device_agents.platforms import Linux
from device_agents.processes import fork, kill_group

POLL_S = 0.2
_LOOKS = 5
_BACK_S = 120.0
_BURN_BYTES = 1 << 16
# Most sensors step by 0.5 to 1 °C; a narrow band must keep most of its width.
_EDGE_C = 0.5
_EDGE_SHARE = 1 / 8
_INSIDE_C = 2.0

Wait = Callable[[float], None]
"""Sleep for seconds. Raises StoppedError when the worker is asked to end."""


class Burners:
    """One process a CPU that computes hashes for nothing, at rest until it is set to work.

    Made before a runtime is loaded: a process that has threads is not to be forked. Whoever
    inherits this object may set them to work and to rest; they end with the process that made
    them, or by its ``end``. close_fds: the worker's locks, which they must not hold.
    """

    def __init__(self, close_fds: Iterable[int]) -> None:
        kept = tuple(close_fds)
        self._pids: List[int] = []
        for _ in os.sched_getaffinity(0):
            pid = fork(_burn, kept)
            # Until it rests: a SIGCONT before its own SIGSTOP would be lost.
            if os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]):
                self._pids.append(pid)

    def work(self) -> None:
        self._signal(signal.SIGCONT)

    def rest(self) -> None:
        self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """By the process that made them only."""
        while self._pids:
            kill_group(self._pids.pop())

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._pids:
            # One that was killed for its memory stays unreaped: its number is nobody else's.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Heat:
    """One band of one board. low_c, high_c: °C, None is open; at least one is given.

    wait: sleeps, and may raise. burners: shared ones; without them, and with low_c, its own are
    made here and ended by ``close``.
    """

    def __init__(
        self,
        platform: Linux,
        low_c: Optional[float],
        high_c: Optional[float],
        wait: Wait,
        close_fds: Iterable[int] = (),
        burners: Optional[Burners] = None,
    ) -> None:
        self._platform = platform
        self._low_c = low_c
        self._high_c = high_c
        self._wait = wait
        self._own = Burners(close_fds) if burners is None and low_c is not None else None
        self._burners = burners or self._own

    def close(self) -> None:
        if self._own is not None:
            self._own.end()

    def in_band(self) -> bool:
        return self._is_within(self._temp_c(), 0.0)

    def reach(self, deadline_s: float) -> None:
        """Return once the heat is well within the band. Raises RunFailedError.

        deadline_s: on time.monotonic().
        """
        self._bring(self._temp_c(), deadline_s)

    def keep(self, deadline_s: Optional[float] = None) -> bool:
        """Whether the heat had left the band, or was about to, and was brought back.

        Then time has passed and caches are cold: the caller warms up again. deadline_s: on
        time.monotonic(); by default two minutes from now. Raises RunFailedError.
        """
        return self._bring(
            self._temp_c(), time.monotonic() + _BACK_S if deadline_s is None else deadline_s
        )

    def _bring(self, temp_c: float, deadline_s: float) -> bool:
        was_within = True
        while not self._is_within(temp_c, self._edge_c()):
            was_within = False
            temp_c = self._go_to_middle(temp_c, deadline_s)
        return not was_within

    def _go_to_middle(self, temp_c: float, deadline_s: float) -> float:
        aim_c = self._aim_c()
        cold = temp_c < aim_c
        try:
            while temp_c < aim_c if cold else temp_c > aim_c:
                if time.monotonic() >= deadline_s:
                    raise self._not_reached(temp_c)
                if cold and self._burners is not None:
                    self._burners.work()
                self._wait(POLL_S)
                temp_c = self._temp_c()
        finally:
            if self._burners is not None:
                self._burners.rest()
        return temp_c

    def _aim_c(self) -> float:
        """Where to go from outside: the edge itself would be left at the first breath."""
        if self._low_c is None:
            assert self._high_c is not None
            return self._high_c - _INSIDE_C
        return self._low_c + _INSIDE_C if self._high_c is None else (self._low_c + self._high_c) / 2

    def _edge_c(self) -> float:
        if self._low_c is None or self._high_c is None:
            return _EDGE_C
        return min(_EDGE_C, (self._high_c - self._low_c) * _EDGE_SHARE)

    def _is_within(self, temp_c: float, edge_c: float) -> bool:
        return (self._low_c is None or temp_c >= self._low_c + edge_c) and (
            self._high_c is None or temp_c <= self._high_c - edge_c
        )

    def _temp_c(self) -> float:
        for look in range(_LOOKS):
            if look:
                self._wait(POLL_S)
            temp_c = self._platform.observe().temp_c()
            if temp_c is not None:
                return temp_c
        raise RunFailedError(
            "condition", "no temperature can be read", "leave temp_c out for this board"
        )

    def _not_reached(self, temp_c: float) -> RunFailedError:
        low = "" if self._low_c is None else f"{self._low_c:g}"
        high = "" if self._high_c is None else f"{self._high_c:g}"
        return RunFailedError(
            "condition",
            f"{low}..{high} °C was not reached in time: it is {temp_c:.1f} °C",
            "raise timeout_s, or ask for a band nearer to the room",
        )


def _burn() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    block = bytes(_BURN_BYTES)
    while True:
        hashlib.sha256(block)
