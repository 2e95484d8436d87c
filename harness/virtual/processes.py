"""Which processes are a rack's, and their end; never anybody else's.

Input: this process's descendants, or the clock page that a board's programs carry in their
environment. Output: process ids, and processes gone. Linux only (/proc, prctl).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
from collections.abc import Callable, Container, Iterable
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Orphans among this process's descendants become its own children. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl: {os.strerror(number)}")


def reap_adopted(own_pids: Container[int]) -> None:
    """Collects ended orphans; the children in own_pids are left to whoever waits for them."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in own_pids:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


def descendants() -> list[int]:
    """Every living process below this one, zombies excepted."""
    children: dict[int, list[int]] = {}
    zombies = set()
    for pid, parent, state in _process_table():
        children.setdefault(parent, []).append(pid)
        if state == "Z":
            zombies.add(pid)
    found: list[int] = []
    todo = [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return [pid for pid in found if pid not in zombies]


def carries(pid: int, variable: str, value_prefix: str) -> bool:
    """Whether a process was started with variable=value_prefix… and is ours to read and end."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    prefix = os.fsencode(f"{variable}={value_prefix}")
    return any(entry.startswith(prefix) for entry in entries)


def carriers(variable: str, value_prefix: str) -> list[int]:
    """Every process on this machine that carries it: what a crashed rack left behind."""
    return [
        pid
        for pid, _, state in _process_table()
        if state != "Z" and pid != os.getpid() and carries(pid, variable, value_prefix)
    ]


def count_named(pids: Iterable[int], prefix: str) -> int:
    """How many of ``pids`` live under a name that begins with ``prefix``."""
    found = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").startswith(prefix)
    return found


def kill_all(find: Callable[[], list[int]]) -> int:
    """Kills what ``find`` finds until it finds nothing; returns how many were killed.

    Each is held by a pidfd before it is looked at a second time, so that no other process that
    was given its number is hit, and stopped before any is killed, so that none forks away.
    """
    killed: set[int] = set()
    while pids := find():
        with contextlib.ExitStack() as stack:
            held = {pid: fd for pid in pids if (fd := _hold(stack, pid)) is not None}
            sure = [held[pid] for pid in find() if pid in held]
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for fd in sure:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(fd, number)
            for fd in sure:
                wait_ended(fd, timeout_s=10.0)
        killed |= set(pids)
    return len(killed)


def wait_ended(pidfd: int, timeout_s: float) -> bool:
    """Whether the process has ended within timeout_s; its zombie is left to its parent."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _hold(stack: contextlib.ExitStack, pid: int) -> int | None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    stack.callback(os.close, fd)
    return fd


def _process_table() -> list[tuple[int, int, str]]:
    """(pid, parent's pid, state letter) of every process."""
    table = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
            state, parent = stat.rpartition(")")[2].split()[:2]
            table.append((int(entry), int(parent), state))
    return table
