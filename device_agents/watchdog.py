"""A process that waits for its worker's end and then puts the board back.

Input: what to do at the end. Output: it is done, also after SIGKILL and with the SSH connection
gone. It blocks on a pipe that only the worker holds open: no polling, no signal that may be lost.
"""

from __future__ import annotations

import os
from typing import Callable, Optional, Tuple

from device_agents.processes import fork_survivor


class Watchdog:
    """At most one a worker, made when it is first needed and again should it have been killed.

    restore: called in the watchdog, once, after the worker's end; must be idempotent.
    fds: the pipe's ends. No other child of the worker may keep them open.
    """

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore = restore
        self._pid: Optional[int] = None
        self._read_fd, self._hold_fd = os.pipe()

    @property
    def fds(self) -> Tuple[int, int]:
        return self._read_fd, self._hold_fd

    def start(self) -> None:
        """Before the board is touched. Returns at once where it watches already."""
        if self._pid is not None and os.waitpid(self._pid, os.WNOHANG)[0] == 0:
            return
        self._pid = fork_survivor(self._watch, {self._read_fd})

    def end(self) -> None:
        """The worker lets go of it and waits until it is gone."""
        os.close(self._hold_fd)
        os.close(self._read_fd)
        if self._pid is not None:
            os.waitpid(self._pid, 0)
            self._pid = None

    def _watch(self) -> None:
        os.read(self._read_fd, 1)
        self._restore()
