"""How long a process ran and how long it waited for a CPU, as the scheduler counted it.

Input: a process id. Output: CpuTimes; None where the kernel does not say. Format: run ns, wait ns
and time slices of each thread (https://docs.kernel.org/scheduler/sched-stats.html).
The real /proc is read, not the board's root: it is the process that is asked about.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Iterable, List, Optional


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


def _threads(pid: int) -> List[List[int]]:
    found: List[List[int]] = []
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
        if len(parts) >= 2 and all(part.isdigit() for part in parts[:2]):
            found.append([int(parts[0]), int(parts[1])])
    return found
