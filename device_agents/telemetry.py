"""The board's state while a run is timed, sampled by a thread of the same process.

Input: a platform and a period. Output: a tuple of BoardState in order of time.
No process is spawned; one zone that cannot be read is None in its sample and drops nothing else.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import List, Optional, Tuple, Type

from device_agents.contract import BoardState
from device_agents.platforms import Linux

PERIOD_S = 0.1
_JOIN_S = 2.0


class Sampler:
    """``with Sampler(platform) as sampler``; afterwards ``sampler.states`` holds at least one."""

    def __init__(self, platform: Linux, period_s: float = PERIOD_S) -> None:
        self._platform = platform
        self._period_s = period_s
        self._states: List[BoardState] = []
        self._ended = threading.Event()
        # A daemon: a sensor whose read(2) hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._sample, name="telemetry", daemon=True)

    @property
    def states(self) -> Tuple[BoardState, ...]:
        return tuple(self._states)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._ended.set()
        self._thread.join(_JOIN_S)

    def _sample(self) -> None:
        while True:
            self._states.append(self._platform.observe())
            # Event.wait counts on the monotonic clock: a step of the wall clock moves nothing.
            if self._ended.wait(self._period_s):
                return
