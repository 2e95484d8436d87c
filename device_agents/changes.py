"""Waiting for what another process does to files of a folder, without looking at them meanwhile.

Input: a folder. Output: a descriptor to poll, readable after a write or the close of a written
file. Method: inotify(7) by way of the C library; where that has none, nothing tells of changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path
from typing import Iterator, Optional

_IN_MODIFY, _IN_CLOSE_WRITE = 0x2, 0x8
_READ_BYTES = 1 << 16


@contextlib.contextmanager
def changes_in(folder: Path) -> Iterator[Optional[int]]:
    """A descriptor for poll(2) and ``drain``; None where the board offers no such thing."""
    fd = _watch(os.fsencode(str(folder)))
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def drain(fd: int) -> None:
    """Take the events there are, so that the descriptor is readable at the next one only."""
    with contextlib.suppress(BlockingIOError):
        while True:
            os.read(fd, _READ_BYTES)


def _watch(folder: bytes) -> Optional[int]:
    try:
        libc = ctypes.CDLL(None)
        fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, AttributeError):
        return None
    if fd < 0:  # max_user_instances
        return None
    if libc.inotify_add_watch(fd, folder, _IN_MODIFY | _IN_CLOSE_WRITE) < 0:
        os.close(fd)
        return None
    return int(fd)
