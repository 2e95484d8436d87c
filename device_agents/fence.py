"""Tokens of leases: who held the board before may no longer change anything on it.

Input: LAB:TOKEN as the harness sends it, and the home. Output: a verb runs, or AgentError.
A controller that was suspended comes back without knowing that its lease has ended; only the board
can refuse it. The tokens of one lab ascend with each lease:
https://martin.kleppmann.com/2016/02/08/how-to-do-distributed-locking.html
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

from device_agents.errors import AgentError
from device_agents.files import fsync_folder
from device_agents.home import Home

FENCED = 4
"""Exit status of a verb that came with a token older than one seen before."""

_FENCE = re.compile(r"([0-9a-f]{16}):([0-9]{1,18})")
_DIGITS = 18
_LABS_MAX = 256


@dataclass(frozen=True)
class Fence:
    """One lease. lab: the database that gave it; two labs' tokens say nothing of each other."""

    lab: str
    token: int

    def __str__(self) -> str:
        return f"{self.lab}:{self.token}"


def parse_fence(text: str) -> Fence:
    """Raises AgentError."""
    found = _FENCE.fullmatch(text)
    if found is None:
        raise AgentError(
            f"{text[:60]!r} is no fence", "give 16 hexadecimal digits, a colon and a number"
        )
    return Fence(found.group(1), int(found.group(2)))


@contextlib.contextmanager
def passed(home: Home, fence: Optional[Fence]) -> Iterator[None]:
    """Holds the fence while a verb runs: no older verb is under way beside it, and none follows.

    Raises AgentError when a newer token was seen. None, for a person at the board, always passes.
    """
    if fence is None:
        yield
        return
    path = home.path / "fences" / fence.lab
    fd = _opened(home, path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        highest = _read(fd)
        if fence.token < highest:
            raise AgentError(
                f"lease {fence.token} of this board has ended, lease {highest} was given since",
                "fleetcut boards, which says who holds it",
                exit_status=FENCED,
            )
        if fence.token > highest:
            # In place and always as long: a full disk must not keep a newer lease from a `stop`.
            os.pwrite(fd, b"%0*d\n" % (_DIGITS, fence.token), 0)
            os.fsync(fd)
        yield
    finally:
        os.close(fd)


def _opened(home: Home, path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.open(str(path), os.O_RDWR | os.O_CLOEXEC)
    home.create()
    path.parent.mkdir(mode=0o700, exist_ok=True)
    _forget_oldest(path.parent)
    fd = os.open(str(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fsync_folder(path.parent)
    return fd


def _read(fd: int) -> int:
    """0 for a new file, and for one whose first writing was cut."""
    text = os.pread(fd, _DIGITS, 0)
    return int(text) if len(text) == _DIGITS and text.isdigit() else 0


def _forget_oldest(folder: Path) -> None:
    """Every database that ever came leaves a file: those unused for longest go."""
    found = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in found[: max(0, len(found) - _LABS_MAX + 1)]:
        path.unlink()
