"""A simulated board under fault: what can be done to it, and whether it is as it was.

Input: a running rack and a board's id. Output: things done; facts. Nothing here talks SSH.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

from harness.inventory import Board
from harness.virtual import processes, rack
from harness.virtual.board import board_paths
from harness.virtual.clock import PAGE_ENV
from harness.virtual.tree import POLICY, WRITABLE

_DISK_MIB = 96
_SETTLED_S = 20.0


class Disk:
    """A folder that is a disk of its own (tmpfs), so that it can be filled; this needs root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={_DISK_MIB}m,mode=700"
        mount = ["mount", "-t", "tmpfs", "-o", options, "fleetcut-faults", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"disks are to be filled: {done.stderr.strip()}. Next: be root")

    def fill(self) -> None:
        """To the last page."""
        fd = os.open(self._folder / "ballast", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, bytes(1 << 16))
        os.close(fd)

    def free(self) -> None:
        (self._folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self._folder)], check=True)


class FaultyBoard:
    """One board of the rack, and the address under which a controller reaches it."""

    def __init__(self, folder: Path, board: Board) -> None:
        self.board = board
        self._rack = folder
        self._paths = board_paths(folder, board.board_id)
        self.home = self._paths.home / ".fleetcut"
        self._disk = Disk(self.home)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self.listener.getsockname()[1])
        self._as_it_was = self._policy()

    def close(self) -> None:
        self.listener.close()
        self._disk.close()

    def listen(self) -> None:
        """Again, at the same port."""
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=64)

    def pids(self) -> list[int]:
        """Of everything that runs on it."""
        return processes.carriers(PAGE_ENV, str(self._paths.clock_page))

    def kill_all(self) -> bool:
        """Whether there was anything to kill; so do the others say whether they struck."""
        return processes.kill_all(self.pids) > 0

    def kill_one(self, rng: random.Random) -> bool:
        """Any process of the agent: the worker, its child, a conversation, the watchdog."""
        pids = self.pids()
        return bool(pids) and _kill(rng.choice(pids))

    def kill_worker(self) -> bool:
        killed = False
        for lock in self.home.glob("sessions/*/worker.lock"):
            with contextlib.suppress(OSError, ValueError):
                pid = json.loads(lock.read_text()).get("pid")
                if pid in self.pids():
                    killed = _kill(pid) or killed
        return killed

    def reboot(self) -> bool:
        was_used = bool(self.pids())
        rack.reboot(self._rack, self.board.board_id)
        return was_used

    def fill_disk(self) -> bool:
        self._disk.fill()
        return bool(self.pids())

    def free_disk(self) -> None:
        self._disk.free()

    def damage(self, pattern: str, rng: random.Random) -> bool:
        """One byte of one file below its home, whatever the file's mode says."""
        found = [path for path in self.home.glob(pattern) if path.is_file() and path.stat().st_size]
        if found:
            with contextlib.suppress(OSError), rng.choice(found).open("r+b") as file:
                at = rng.randrange(os.fstat(file.fileno()).st_size)
                byte = os.pread(file.fileno(), 1, at)
                os.pwrite(file.fileno(), bytes([byte[0] ^ 0xFF]), at)
                return True
        return False

    def forget_files(self) -> None:
        """Agent and models have to be sent anew: so an upload is there to be cut."""
        for path in [*self.home.glob("blobs/*"), *self.home.glob("agents/*")]:
            if path.is_file():
                path.unlink(missing_ok=True)

    def not_restored(self) -> list[str]:
        """What is not as it was before any fault; empty once all is, within some seconds."""
        deadline_s = time.monotonic() + _SETTLED_S
        while (found := self._differences()) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return found

    def _differences(self) -> list[str]:
        now = self._policy()
        found = [f"{k} is {now[k]!r}, was {v!r}" for k, v in self._as_it_was.items() if now[k] != v]
        found += [f"process {pid} lives: {_command(pid)}" for pid in self.pids()]
        if (self.home / "restore.json").exists():
            found.append("restore.json is still there")
        return found

    def _policy(self) -> dict[str, str]:
        folder = self._paths.root / POLICY
        return {name: (folder / name).read_text().strip() for name in WRITABLE}


def ended(pid: int) -> int | None:
    """The exit status of a child of ours, negative for a signal; None while it lives."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def end(pid: int) -> None:
    _kill(pid)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return line.decode("utf-8", "replace")[-120:]
    return "?"
