"""Locks that die with their holder: flock, so that a kill -9 or a power cut frees them.

Input: a path. Output: a held Lock, or None when another process holds it.
The holder's name stands in the file; only the lock says whether it still lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any, Dict, Optional

# `is_held` itself takes the lock for some microseconds; whoever meets that tries again.
_MEETINGS = 25
_MEETING_S = 0.02


class Lock:
    """An open file description that holds a flock. Forked children inherit it: see processes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def sign(self, **holder: Any) -> None:
        """Write who holds the lock, for a reader of the file."""
        text = json.dumps(holder).encode("utf-8")
        # Written over what stands there and only then cut: a full disk has room for that.
        os.pwrite(self.fd, text, 0)
        os.ftruncate(self.fd, len(text))

    def release(self) -> None:
        os.close(self.fd)


def acquire(path: Path) -> Optional[Lock]:
    """The lock, or None when it stays held over half a second."""
    fd = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(_MEETINGS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Lock(fd)
        time.sleep(_MEETING_S)
    os.close(fd)
    return None


def is_held(path: Path) -> bool:
    """Whether a process holds the lock now."""
    try:
        fd = os.open(str(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def holder(path: Path) -> Dict[str, Any]:
    """What the last holder wrote; {} when that cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
