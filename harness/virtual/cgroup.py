"""Which processes are a board's and how long they have run: a cgroup of version 2 for each.

Input: the rack's folder and a board. Output: BoardCgroup. Raises OSError, and RackError where the
kernel offers none. No controller is needed: every such cgroup counts CPU time.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from harness.virtual.errors import RackError

_MOUNTS = Path("/proc/self/mountinfo")


class BoardCgroup:
    """One board's. Made by ``create``; ``remove`` once nothing runs in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def procs(self) -> Path:
        """The file into which a process writes its number, or 0, to belong to the board."""
        return self.path / "cgroup.procs"

    def create(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def pids(self) -> list[int]:
        """Every living process of the board, by this machine's numbers."""
        try:
            return [int(line) for line in self.procs.read_text().split()]
        except OSError:
            return []

    def cpu_s(self) -> tuple[float, float]:
        """CPU seconds of all processes that ever were in it: in user mode, in the kernel."""
        found = dict(line.split() for line in (self.path / "cpu.stat").read_text().splitlines())
        return int(found["user_usec"]) / 1e6, int(found["system_usec"]) / 1e6

    def remove(self) -> None:
        with contextlib.suppress(OSError):  # gone already, or a process in it is not yet reaped
            self.path.rmdir()


def rack_cgroup(folder: Path) -> Path:
    """The cgroup that holds those of a rack's boards; it need not exist. Raises RackError."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    return _hierarchy() / f"fleetcut-rack-{digest}"


def leftover_cgroups(folder: Path) -> list[BoardCgroup]:
    """Those that a rack in ``folder`` left behind; none where there are no cgroups."""
    try:
        below = rack_cgroup(folder)
        return [BoardCgroup(path) for path in below.iterdir() if path.is_dir()]
    except (RackError, OSError):
        return []


def remove_cgroups(folder: Path) -> None:
    """Removes what is left of a rack's cgroups, once all its processes have ended."""
    for cgroup in leftover_cgroups(folder):
        cgroup.remove()
    with contextlib.suppress(RackError, OSError):
        rack_cgroup(folder).rmdir()


def _hierarchy() -> Path:
    for line in _MOUNTS.read_text(encoding="utf-8").splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.split()[0] == "cgroup2":
            return Path(mount.split()[4].encode().decode("unicode_escape"))
    raise RackError(
        "no cgroup v2 hierarchy is mounted, which tells what a board's processes cost. "
        "Next: mount -t cgroup2 none /sys/fs/cgroup/unified, or leave --sshd out"
    )
