"""Processes that end with the one that made them, and two kinds that do not.

Input: a function. Output: its process id.
A forked child gives up the locks that it inherited: a flock is only free when every process that
shares its open file has closed it, so a child that outlived the worker would keep the board.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback
from typing import Callable, Iterable, NoReturn, Optional, Set

_PR_SET_PDEATHSIG = 1
_ENDING_S = 10.0
_ENDING_POLL_S = 0.005
BUG_STATUS = 70
"""Exit status of a child that raised: EX_SOFTWARE of sysexits.h."""

_prctl: Optional[Callable[..., int]] = None
with contextlib.suppress(OSError, AttributeError):
    # Looked up here: between fork and exec nothing should be loaded.
    _prctl = ctypes.CDLL(None, use_errno=True).prctl


def die_with_parent(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent ends; at once when it already has.

    Without libc or prctl the child still ends once its pipe closes.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(BUG_STATUS)


def fork(run: Callable[[], None], close_fds: Iterable[int]) -> int:
    """Run in a child with its own process group, which dies with this process."""
    parent_pid = os.getpid()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(run, close_fds, parent_pid)
    # Both sides set it: whichever is first, `kill_group` finds the group.
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)
    return pid


def fork_survivor(run: Callable[[], None], keep_fds: Set[int]) -> int:
    """Run in a child with a session of its own, which outlives this process.

    Of its descriptors it keeps the standard three and keep_fds.
    """
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _survivor(run, keep_fds)
    return pid


def kill_group(pid: int) -> int:
    """End a child of ``fork`` with all its own children. Returns its wait status."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def end_group(pid: int) -> int:
    """The wait status of a child that is ending by itself, and an end to what it left behind.

    A child that closed its pipe but lives on is killed after some seconds.
    """
    deadline_s = time.monotonic() + _ENDING_S
    while time.monotonic() < deadline_s:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found == pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            return status
        time.sleep(_ENDING_POLL_S)
    return kill_group(pid)


def describe_status(status: int) -> str:
    """A wait status in words: "ended by SIGABRT" or "ended with exit status 3"."""
    if os.WIFSIGNALED(status):
        return f"ended by {signal_name(os.WTERMSIG(status))}"
    return f"ended with exit status {os.WEXITSTATUS(status)}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def detach(run: Callable[[int], None], keep_fds: Set[int], log_path: str) -> int:
    """Run in a daemon: own session, no terminal, no inherited pipe. Returns its pid.

    run gets the daemon's pid. Until that pid is known here, this call waits.
    """
    read_fd, write_fd = os.pipe()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _become_daemon(run, keep_fds, log_path, write_fd)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as stream:
        announced = stream.read()
    os.waitpid(child, 0)
    return int(announced)


def _child(run: Callable[[], None], close_fds: Iterable[int], parent_pid: int) -> NoReturn:
    status = BUG_STATUS
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for fd in close_fds:
            os.close(fd)
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        die_with_parent(parent_pid)
        run()
        status = 0
    except BaseException:  # the process ends here; the trace is what is left of it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _survivor(run: Callable[[], None], keep_fds: Set[int]) -> NoReturn:
    status = BUG_STATUS
    try:
        signal.set_wakeup_fd(-1)
        # At shutdown all are told to end at once: what its maker leaves undone is done here.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        _close_others(keep_fds)
        run()
        status = 0
    except BaseException:  # the process ends here; the trace is what is left of it
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _become_daemon(
    run: Callable[[int], None], keep_fds: Set[int], log_path: str, announce_fd: int
) -> NoReturn:
    status = BUG_STATUS
    try:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        # SSH ends a command only when nobody holds its pipes: close all that was inherited.
        _redirect(log_path)
        _close_others(keep_fds | {announce_fd})
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.write(announce_fd, str(os.getpid()).encode("ascii"))
        os.close(announce_fd)
        run(os.getpid())
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _redirect(log_path: str) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)


def _close_others(keep_fds: Set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep_fds:
            with contextlib.suppress(OSError):  # the listing's own, closed by now
                os.close(fd)
