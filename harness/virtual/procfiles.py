"""A board's own /proc/stat and /proc/loadavg: how busy its processes keep it, nobody else's.

Input: CPU time, load, uptime. Output: ProcFiles, two files rewritten in place and never replaced,
for a bind mount shows the file that was there when it was made. Formats: proc(5).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

_USER_HZ = os.sysconf("SC_CLK_TCK")
_LOAD_PERIODS_S = (60.0, 300.0, 900.0)

# More than the texts ever need.
_STAT_BYTES = 128
_CPU_LINE_BYTES = 80
_LOADAVG_BYTES = 64


class ProcFiles:
    """The two files in ``folder``, which is made when it is not there."""

    def __init__(self, folder: Path, cores: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.stat = folder / "stat"
        self.loadavg = folder / "loadavg"
        self._cores = cores
        self._load = (0.0,) * len(_LOAD_PERIODS_S)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._stat_fd = os.open(self.stat, flags, 0o444)
        self._loadavg_fd = os.open(self.loadavg, flags, 0o444)

    def show_stat(self, user_s: float, system_s: float, uptime_s: float, boot_unix_s: int) -> None:
        """CPU seconds of all cores together since boot; what is neither was idle."""
        idle_s = max(0.0, uptime_s * self._cores - user_s - system_s)
        lines = [_cpu_line("cpu ", 1, user_s, system_s, idle_s)]
        lines += [
            _cpu_line(f"cpu{core}", self._cores, user_s, system_s, idle_s)
            for core in range(self._cores)
        ]
        lines += [f"btime {boot_unix_s}", "processes 1", "procs_running 1", "procs_blocked 0"]
        _write(self._stat_fd, "\n".join(lines), _STAT_BYTES + len(lines) * _CPU_LINE_BYTES)

    def add_load(self, busy_cores: float, dt_s: float) -> None:
        """dt_s seconds have passed in which busy_cores cores were busy."""
        self._load = tuple(
            busy_cores + (load - busy_cores) * math.exp(-dt_s / period_s)
            for load, period_s in zip(self._load, _LOAD_PERIODS_S, strict=True)
        )
        running = f"{math.ceil(busy_cores)}/1 1"
        text = " ".join(f"{load:.2f}" for load in self._load) + f" {running}"
        _write(self._loadavg_fd, text, _LOADAVG_BYTES)

    def close(self) -> None:
        os.close(self._stat_fd)
        os.close(self._loadavg_fd)


def _write(fd: int, text: str, length: int) -> None:
    """At once and in one length, so that a reader finds no end between two texts."""
    os.pwrite(fd, f"{text:<{length - 1}}\n".encode(), 0)


def _cpu_line(name: str, share: int, user_s: float, system_s: float, idle_s: float) -> str:
    user, system, idle = (int(seconds / share * _USER_HZ) for seconds in (user_s, system_s, idle_s))
    return f"{name} {user} 0 {system} {idle} 0 0 0 0 0 0"
