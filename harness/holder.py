"""Who asks for a board, and whether who holds it still lives.

Input: /proc of this machine. Output: Holder, as text that another process can judge.
A process on this machine that is gone is known to be gone; of another machine only its silence is.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """A process. boot_id and start_ticks tell it from a later one that got its number."""

    user: str
    host: str
    boot_id: str
    pid: int
    start_ticks: int

    def __str__(self) -> str:
        return f"{self.user}@{self.host}"

    def to_text(self) -> str:
        return json.dumps(asdict(self))


def me() -> Holder:
    """The process that asks."""
    pid = os.getpid()
    return Holder(_user(), _host(), _boot_id(), pid, _start_ticks(pid) or 0)


def is_gone(process: str | None) -> bool:
    """Whether that process is known to have ended: False where it cannot be known."""
    try:
        holder = Holder(**json.loads(process or ""))
    except (ValueError, TypeError):
        return False
    if holder.host != _host():
        return False
    return holder.boot_id != _boot_id() or _start_ticks(holder.pid) != holder.start_ticks


def lives_here(process: str | None) -> bool:
    """Whether it is a process of this machine that has not ended."""
    try:
        holder = Holder(**json.loads(process or ""))
    except (ValueError, TypeError):
        return False
    return holder.host == _host() and not is_gone(process)


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc_pid_stat(5)); None for one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@cache
def _host() -> str:
    return socket.gethostname()[:64]


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
