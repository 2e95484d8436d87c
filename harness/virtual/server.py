"""The rack's one process: every board's SSH server, and the physics of them all.

Input: ``python -m harness.virtual.server FOLDER READY_FD``, FOLDER prepared by rack.up. Output:
{"pid"} or {"error"} on READY_FD once every board listens; then it serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from harness.virtual import config as files
from harness.virtual import control, processes
from harness.virtual.access import Access, EmbeddedAccess, Keys
from harness.virtual.board import VirtualBoard, board_paths
from harness.virtual.cgroup import remove_cgroups
from harness.virtual.errors import RackError
from harness.virtual.namespace import NamespaceBoard
from harness.virtual.physics import charge_pct
from harness.virtual.session import Children
from harness.virtual.spec import VirtualBoardSpec
from harness.virtual.sshd import SshdAccess
from harness.virtual.watch import OpenWatch, WriteWatch

STEP_S = 0.25
_FILES = 65536
_LONGEST_STEP_S = 60.0  # a host that slept did not heat its boards


@dataclass(frozen=True)
class Slot:
    """A board, and how it is reached."""

    board: VirtualBoard
    access: Access


class RackServer:
    """All boards of one rack in one event loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = files.read_config(folder)
        self._slots: dict[str, Slot] = {}
        self._children = Children()
        self._watch = WriteWatch()
        self._opens = OpenWatch() if self.config.sshd else None
        self._by_policy_folder: dict[Path, VirtualBoard] = {}
        self._control: asyncio.Server | None = None  # held, or it would be collected

    async def serve(self, ready_fd: int) -> None:
        """Until SIGTERM or SIGINT; every process on the boards has ended when it returns.

        Raises RackError when a board cannot listen.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        _allow_many_files()
        processes.become_subreaper()
        try:
            await self._listen()
            loop.add_reader(self._watch.fd, self._on_written)
            if self._opens is not None:
                loop.add_reader(self._opens.fd, self._opens.answer)
            self._control = await control.answer(self.folder, self.handle)
            _tell(ready_fd, {"pid": os.getpid()})
            physics = asyncio.create_task(self._run_physics())
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({physics, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if physics.done():
                physics.result()
            physics.cancel()
        finally:
            self._shut_down()

    async def handle(self, request: control.Request) -> control.Reply:
        """One control request. Raises RackError, ValueError or KeyError for a bad one."""
        verb = request["verb"]
        if verb == "status":
            return {"boards": [_board_status(slot) for slot in self._slots.values()]}
        slot = self._slots.get(request["board_id"])
        if slot is None:
            known = ", ".join(self._slots)
            raise RackError(f"no board {request['board_id']!r}. Next: use one of {known}")
        if verb == "reboot":
            await slot.access.restart(slot.board.boot)
            self._watch_policy(slot.board)
        elif verb == "set":
            slot.board.set_environment(
                ambient_c=request["ambient_c"], charge_pct=request["charge_pct"]
            )
        else:
            raise RackError(f"no verb {verb!r}. Next: use status, reboot or set")
        return _board_status(slot)

    async def _listen(self) -> None:
        client_key = asyncssh.read_private_key(self.folder / files.CLIENT_KEY).convert_to_public()
        ports = dict(self.config.ports)
        opening, listening = [], []
        for spec in self.config.spec.boards:
            host_key = asyncssh.read_private_key(board_paths(self.folder, spec.board_id).host_key)
            slot = self._slot(spec, Keys(client_key, host_key))
            self._slots[spec.board_id] = slot
            self._watch_policy(slot.board)
            opening.append(slot.access.open(ports.get(spec.board_id, 0)))
        await asyncio.gather(*opening)
        for board_id, slot in self._slots.items():
            fingerprint = slot.access.keys.host.get_fingerprint("sha256")
            listening.append(files.Listening(board_id, slot.access.port, fingerprint))
        files.write_inventory(self.folder, self.config.spec, tuple(listening))

    def _slot(self, spec: VirtualBoardSpec, keys: Keys) -> Slot:
        python, library = self.config.python, Path(self.config.library)
        if self._opens is None:
            board = VirtualBoard(spec, self.folder, python, library)
            return Slot(board, EmbeddedAccess(board, keys, self._children))
        own = NamespaceBoard(spec, self.folder, python, library)
        own.watch_stat(self._opens)
        return Slot(own, SshdAccess(own, keys, self._children))

    async def _run_physics(self) -> None:
        last_s = time.monotonic()
        while True:
            await asyncio.sleep(STEP_S)
            now_s = time.monotonic()
            for slot in self._slots.values():
                slot.board.tick(min(now_s - last_s, _LONGEST_STEP_S))
            last_s = now_s
            if not self._children.starting:
                processes.reap_adopted(self._children.pids)

    def _watch_policy(self, board: VirtualBoard) -> None:
        self._watch.add(board.policy_folder)
        self._by_policy_folder[board.policy_folder] = board

    def _on_written(self) -> None:
        for folder, name in self._watch.written():
            self._by_policy_folder[folder].policy_written(name)

    def _shut_down(self) -> None:
        for slot in self._slots.values():
            slot.access.close()
        processes.kill_all(processes.descendants)
        asyncio.get_running_loop().remove_reader(self._watch.fd)
        self._watch.close()
        if self._opens is not None:
            self._opens.close()
            remove_cgroups(self.folder)
        control.remove_socket(self.folder)


def _allow_many_files() -> None:
    """A board takes a few descriptors, and a shell's usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _board_status(slot: Slot) -> control.Reply:
    board = slot.board
    return {
        "board_id": board.spec.board_id,
        "port": slot.access.port,
        "boot_id": board.boot_id,
        "temp_c": round(board.state.temp_c, 2),
        "reported_freq_khz": board.state.requested_khz,
        "charge_pct": charge_pct(board.spec, board.state),
        "throttle_bits": board.state.throttle_bits,
        "connections": slot.access.connections(),
    }


def _tell(ready_fd: int, message: control.Reply) -> None:
    with contextlib.suppress(BrokenPipeError):  # who started us is gone; the rack stays
        os.write(ready_fd, json.dumps(message).encode() + b"\n")
    os.close(ready_fd)


def main(argv: list[str]) -> int:
    """Detaches, then serves. Returns 0 in the parent at once, and in the rack when it is down."""
    folder, ready_fd = Path(argv[0]), int(argv[1])
    if os.fork():
        return 0
    os.setsid()
    os.chdir(folder)
    try:
        lock_fd = control.hold_lock(folder)
        server = RackServer(folder)
    except (RackError, OSError) as error:
        _tell(ready_fd, {"error": str(error)})
        return 1
    try:
        asyncio.run(server.serve(ready_fd))
    except RackError as error:
        os.close(lock_fd)  # first, so that who is told finds no rack here
        _tell(ready_fd, {"error": str(error)})
        return 1
    os.close(lock_fd)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
