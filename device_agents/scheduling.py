"""How long processes ran and waited for a CPU, and how long all CPUs were busy for whomever.

Input: process ids and the board's root. Output: Meter; CpuTimes, None where the kernel does not
say. Format of schedstat: run ns, wait ns and time slices of each thread
(https://docs.kernel.org/scheduler/sched-stats.html). Of the processes the real /proc is read, of
the board's CPUs /proc/stat below its root.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Iterable, List, Optional, Sequence, Tuple

from device_agents.platforms.procstat import parse_busy_ns
from device_agents.sysfs import Root

_PROC_STAT = "proc/stat"


@dataclass(frozen=True)
class CpuTimes:
    """Sums over threads since they began. wait_ns: ready to run, and another had the CPU."""

    run_ns: int
    wait_ns: int


def cpu_times(pids: Iterable[int]) -> Optional[CpuTimes]:
    """Of all the threads of these processes together; None where one of them does not tell."""
    run_ns = wait_ns = 0
    for pid in sorted(set(pids)):
        threads = _threads(pid)
        if not threads:
            return None
        for run, wait in threads:
            run_ns += run
            wait_ns += wait
    return CpuTimes(run_ns, wait_ns)


class Meter:
    """What was used between each ``start`` and ``stop``, summed.

    own_ns, wait_ns: of the processes. busy_ns: of all CPUs, in steps of one tick. None as soon as
    one look told nothing. A thread that ends between two looks takes its part along.
    """

    def __init__(self, pids: Iterable[int], root: Root) -> None:
        self._pids = tuple(pids)
        self._root = root
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._started: Sequence[Optional[int]] = ()
        self._sums: List[Optional[int]] = [0, 0, 0]

    @property
    def own_ns(self) -> Optional[int]:
        return self._sums[0]

    @property
    def wait_ns(self) -> Optional[int]:
        return self._sums[1]

    @property
    def busy_ns(self) -> Optional[int]:
        return self._sums[2]

    def start(self) -> None:
        self._started = self._look()

    def stop(self) -> None:
        looks = zip(self._sums, self._started, self._look())
        self._sums = [_plus(total, before, after) for total, before, after in looks]

    def _look(self) -> Tuple[Optional[int], Optional[int], Optional[int]]:
        busy_ns = parse_busy_ns(self._root.read_text(_PROC_STAT), self._ticks_per_s)
        times = cpu_times(self._pids)
        return (None, None, busy_ns) if times is None else (times.run_ns, times.wait_ns, busy_ns)


def _plus(total: Optional[int], before: Optional[int], after: Optional[int]) -> Optional[int]:
    if total is None or before is None or after is None:
        return None
    return total + max(0, after - before)


def _threads(pid: int) -> List[Tuple[int, int]]:
    found: List[Tuple[int, int]] = []
    try:
        names = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for name in names:
        try:
            with open(f"/proc/{pid}/task/{name}/schedstat", encoding="ascii") as file:
                parts = file.read().split()
        except OSError:
            continue  # a thread that ended between the two looks
        # A kernel before 5.14 that was told not to count says "0 0 0" of everybody.
        if len(parts) == 3 and all(part.isdigit() for part in parts) and parts != ["0"] * 3:
            found.append((int(parts[0]), int(parts[1])))
    return found
