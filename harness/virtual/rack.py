"""The virtual rack, up and down: a folder, its keys, and one detached process.

Input: a folder, a RackSpec, the interpreter that the boards call python3. Output: RackStatus.
Raises RackError, which names the folder or board, the fact and the next step.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from harness.virtual import config as files
from harness.virtual import control, processes
from harness.virtual.board import board_paths
from harness.virtual.cgroup import leftover_cgroups, remove_cgroups
from harness.virtual.clock import PAGE_ENV, build_shim, require_touched_pages
from harness.virtual.errors import RackError
from harness.virtual.namespace import require_namespaces
from harness.virtual.spec import RackSpec

_DOWN_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class VirtualBoardStatus:
    """A board as the rack sees it now.

    charge_pct: 0..100, None without a battery. throttle_bits: as ``vcgencmd get_throttled``.
    connections: open SSH connections.
    """

    board_id: str
    port: int
    boot_id: str
    temp_c: float
    reported_freq_khz: int
    charge_pct: float | None
    throttle_bits: int
    connections: int


@dataclass(frozen=True)
class RackStatus:
    """A rack; pid is None and boards is empty while it is down."""

    folder: Path
    pid: int | None = None
    boards: tuple[VirtualBoardStatus, ...] = ()

    @property
    def running(self) -> bool:
        return self.pid is not None

    @property
    def inventory(self) -> Path:
        return self.folder / files.INVENTORY

    @property
    def planted(self) -> Path:
        return self.folder / files.PLANTED


def up(
    folder: Path, spec: RackSpec, python: str = sys.executable, *, sshd: bool = False
) -> RackStatus:
    """Starts the rack, unless this very rack runs already, and returns once every board listens.

    sshd: each board is an OpenSSH server in namespaces of its own, which needs root; otherwise
    they are embedded in one process, which needs nothing.

    Keys, homes and, where they are free, ports are those of the last time. The rack outlives the
    caller and its terminal. Raises RackError, also when another rack runs in this folder.
    """
    if any(board.memory_bytes_per_s for board in spec.boards):
        require_touched_pages()
    if sshd:
        require_namespaces()
    folder = _prepared(folder)
    with _one_at_a_time(folder):
        if control.holder_pid(folder) is not None:
            running = files.read_config(folder)
            if (running.spec, running.sshd) != (spec, sshd):
                raise RackError(f"{folder}: another rack runs here. Next: fleetcut rack down")
            return status(folder)
        _end_leftovers(folder)
        try:
            _write_keys(folder, spec)
            files.write_config(folder, _config(folder, spec, python, sshd))
            _start_server(folder)
        except OSError as error:
            raise RackError(
                f"{folder}: cannot hold a rack ({error}). Next: name an empty folder"
            ) from None
        return status(folder)


def status(folder: Path) -> RackStatus:
    """The rack as it is now; a folder without one is a rack that is down."""
    folder = folder.resolve()
    pid = control.holder_pid(folder)
    if pid is None:
        return RackStatus(folder)
    boards = control.ask(folder, {"verb": "status"})["boards"]
    return RackStatus(folder, pid, tuple(VirtualBoardStatus(**board) for board in boards))


def down(folder: Path) -> RackStatus:
    """Ends the rack and every process on its boards, and returns when all are gone.

    Nothing to do is no error. Raises RackError when the rack does not end.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        return RackStatus(folder)
    with _one_at_a_time(folder):
        _end_server(folder)
        _end_leftovers(folder)
    return RackStatus(folder)


def reboot(folder: Path, board_id: str) -> VirtualBoardStatus:
    """Power off and on: drops connections, kills the board's processes, gives a new boot_id."""
    reply = control.ask(folder.resolve(), {"verb": "reboot", "board_id": board_id})
    return VirtualBoardStatus(**reply)


def set_environment(
    folder: Path,
    board_id: str,
    *,
    ambient_c: float | None = None,
    charge_pct: float | None = None,
) -> VirtualBoardStatus:
    """Changes the room's temperature or the battery's charge (0..100); None leaves it."""
    request: control.Request = {"verb": "set", "board_id": board_id}
    request |= {"ambient_c": ambient_c, "charge_pct": charge_pct}
    return VirtualBoardStatus(**control.ask(folder.resolve(), request))


def _prepared(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder.resolve(strict=True)
    except OSError as error:
        raise RackError(
            f"{folder}: cannot hold a rack ({error.strerror}). Next: name a folder you may write"
        ) from None


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Of several that bring this rack up or down, the others wait."""
    with (folder / "command.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_keys(folder: Path, spec: RackSpec) -> None:
    _key_at(folder / files.CLIENT_KEY)
    for board in spec.boards:
        _key_at(board_paths(folder, board.board_id).host_key)


def _key_at(path: Path) -> None:
    """An ed25519 private key for its owner only; an earlier one stays."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    spooled = path.with_name(f".{path.name}.new")
    spooled.touch(mode=0o600)
    spooled.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key())
    spooled.replace(path)


def _config(folder: Path, spec: RackSpec, python: str, sshd: bool) -> files.RackConfig:
    ports = tuple((board_id, port) for board_id, port in files.read_ports(folder).items())
    return files.RackConfig(spec, python, str(build_shim(folder)), ports, sshd)


def _start_server(folder: Path) -> None:
    """Returns once the rack's own process says that every board listens."""
    with contextlib.suppress(FileNotFoundError):
        (folder / files.LOG).replace(folder / f"{files.LOG}.1")
    ready_fd, server_fd = os.pipe()
    with os.fdopen(ready_fd, "rb") as ready, (folder / files.LOG).open("wb") as log:
        try:
            subprocess.run(
                [sys.executable, "-m", "harness.virtual.server", str(folder), str(server_fd)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(server_fd,),
                check=False,
            )
        finally:
            os.close(server_fd)
        line = ready.readline()
    if not line:
        raise RackError(
            f"{folder}: the rack ended before its boards listened. Next: read {folder / files.LOG}"
        )
    reply = json.loads(line)
    if "error" in reply:
        raise RackError(str(reply["error"]))


def _end_server(folder: Path) -> None:
    pid = control.holder_pid(folder)
    if pid is None:
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if control.holder_pid(folder) != pid:
            return  # it ended before we had hold of it, and its number may be another's by now
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(pidfd, number)
            if processes.wait_ended(pidfd, _DOWN_TIMEOUT_S):
                return
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)
    raise RackError(f"{folder}: process {pid} does not end. Next: read {folder / files.LOG}")


def _end_leftovers(folder: Path) -> None:
    """Ends what a crashed rack left running: what is in its cgroups or carries its clock pages."""
    for cgroup in leftover_cgroups(folder):
        processes.kill_all(cgroup.pids)
    processes.kill_all(lambda: processes.carriers(PAGE_ENV, f"{folder}/boards/"))
    remove_cgroups(folder)
