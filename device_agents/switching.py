"""The clock watched, and the sub-network that it asks for.

Input: a board's file tree and a Policy. Output: when to switch to what, and a log of it.
"""

from __future__ import annotations

import time
from typing import Callable, List, Optional, Sequence, Tuple

from device_agents.contract import Switch
from device_agents.contract.switching import Policy
from device_agents.sysfs import KeptOpen, Root

LOOK_NS = 5_000_000
"""Between two looks at the clock. Governors decide every 10 ms or more seldom (kernel:
admin-guide/pm/cpufreq.rst, sampling_rate), and a look costs 2 to 50 µs."""

MOST_LOGGED = 10_000
"""Switches kept: a board that wavers for ever must not fill its memory with telling so."""


class ClockWatch:
    """What the kernel says of the clock, asked seldom enough to cost nothing.

    cpufreq_policies: their folders below root. The highest of several counts: the work goes to the
    fast cores. While none can be read nothing is switched.
    """

    def __init__(
        self,
        root: Root,
        cpufreq_policies: Sequence[str],
        policy: Policy,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._root = KeptOpen(root)
        self._folders = tuple(cpufreq_policies)
        self._policy = policy
        self._clock_ns = clock_ns
        self._next_ns = 0
        self._log: List[Switch] = []

    @property
    def log(self) -> Tuple[Switch, ...]:
        return tuple(self._log)

    def khz(self) -> Optional[int]:
        """As scaling_cur_freq says: what drivers that know report, else what was asked for."""
        read = [self._root.read_int(f"{folder}/scaling_cur_freq") for folder in self._folders]
        return max((khz for khz in read if khz), default=None)

    def follow(self, present: int, switch: Callable[[int], None]) -> int:
        """Look, unless that was done just now, and switch where the policy says so.

        switch(position) makes it ready. Returns the position that runs from now on.
        """
        now_ns = self._clock_ns()
        if now_ns < self._next_ns:
            return present
        self._next_ns = now_ns + LOOK_NS
        khz = self.khz()
        if khz is None:
            return present
        wanted = self._policy.choose(khz, present)
        if wanted != present:
            switch(wanted)
            if len(self._log) < MOST_LOGGED:
                took_ns = self._clock_ns() - now_ns
                self._log.append(Switch(now_ns, khz, present, wanted, took_ns))
        return wanted

    def close(self) -> None:
        self._root.close()
