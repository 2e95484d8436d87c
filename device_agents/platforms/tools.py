"""Vendors' programs that are asked before and after a timed phase, never in it.

Input: a command. Output: what it prints; None when it is missing, fails or takes too long.
Each call is a process: 50 a second slow a small board several times over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import subprocess
import time
from dataclasses import dataclass
from typing import Callable, Optional, Sequence

from device_agents import privilege
from device_agents.sysfs import Root

_TIMEOUT_S = 3.0
_LINE_BYTES_MAX = 1 << 16
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C",
}


def ask(argv: Sequence[str], timeout_s: float = _TIMEOUT_S) -> Optional[str]:
    """All that a program prints that ends by itself."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            env=_ENVIRONMENT,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def ask_line(argv: Sequence[str], timeout_s: float = _TIMEOUT_S) -> Optional[str]:
    """The first line of a program that goes on for ever, which is then ended."""
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
        )
    except OSError:
        return None
    with process:
        try:
            assert process.stdout is not None
            return _first_line(process.stdout.fileno(), time.monotonic() + timeout_s)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()


def _first_line(fd: int, deadline_s: float) -> Optional[str]:
    data = b""
    while b"\n" not in data and len(data) < _LINE_BYTES_MAX:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([fd], [], [], left_s)[0]:
            return None
        part = os.read(fd, _LINE_BYTES_MAX)
        if not part:
            return None
        data += part
    return data.split(b"\n", 1)[0].decode("utf-8", "replace")


@dataclass(frozen=True)
class Tools:
    """How a platform asks. set_nvpmodel: by the mode's number; raises OSError."""

    ask: Callable[[Sequence[str]], Optional[str]]
    ask_line: Callable[[Sequence[str]], Optional[str]]
    set_nvpmodel: Callable[[str], None]


def _refuse(number: str) -> None:
    raise OSError(errno.EROFS, "this tree is no machine's own")


MACHINE = Tools(ask, ask_line, privilege.set_nvpmodel)
NOBODY = Tools(lambda argv: None, lambda argv: None, _refuse)
"""For a captured or virtual tree: this machine's programs know nothing of it."""


def tools_of(root: Root) -> Tools:
    """MACHINE where the tree is this machine's own."""
    return MACHINE if privilege.is_machine(root) else NOBODY
