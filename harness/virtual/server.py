"""The rack's one process: every board's SSH server, and the physics of them all.

Input: ``python -m harness.virtual.server FOLDER READY_FD``, FOLDER prepared by rack.up. Output:
{"pid"} or {"error"} on READY_FD once every board listens; then it serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import asyncssh

from harness.virtual import config as files
from harness.virtual import control, processes
from harness.virtual.board import VirtualBoard
from harness.virtual.clock import PAGE_ENV
from harness.virtual.errors import RackError
from harness.virtual.physics import charge_pct
from harness.virtual.session import BoardFiles, BoardServer, Children, run_command
from harness.virtual.watch import WriteWatch

STEP_S = 0.25
_LONGEST_STEP_S = 60.0  # a host that slept did not heat its boards
_LOGIN_TIMEOUT_S = 300


@dataclass
class Slot:
    """A board, its listener, and who is connected to it."""

    board: VirtualBoard
    acceptor: asyncssh.SSHAcceptor
    connections: set[asyncssh.SSHServerConnection] = field(default_factory=set)


class RackServer:
    """All boards of one rack in one event loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = files.read_config(folder)
        self._slots: dict[str, Slot] = {}
        self._children = Children()
        self._watch = WriteWatch()
        self._by_policy_folder: dict[Path, VirtualBoard] = {}
        self._control: asyncio.Server | None = None  # held, or it would be collected

    async def serve(self, ready_fd: int) -> None:
        """Until SIGTERM or SIGINT; every process on the boards has ended when it returns."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        processes.become_subreaper()
        try:
            await self._listen()
            loop.add_reader(self._watch.fd, self._on_written)
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

    def handle(self, request: control.Request) -> control.Reply:
        """One control request. Raises RackError, ValueError or KeyError for a bad one."""
        verb = request["verb"]
        if verb == "status":
            return {"boards": [_board_status(slot) for slot in self._slots.values()]}
        slot = self._slots.get(request["board_id"])
        if slot is None:
            known = ", ".join(self._slots)
            raise RackError(f"no board {request['board_id']!r}. Next: use one of {known}")
        if verb == "reboot":
            self._reboot(slot)
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
        listening = []
        for spec in self.config.spec.boards:
            board = VirtualBoard(spec, self.folder, self.config.python, Path(self.config.library))
            host_key = asyncssh.read_private_key(board.paths.host_key)
            connections: set[asyncssh.SSHServerConnection] = set()
            acceptor = await self._acceptor(
                board, host_key, client_key, connections, ports.get(spec.board_id, 0)
            )
            self._slots[spec.board_id] = Slot(board, acceptor, connections)
            self._watch_policy(board)
            fingerprint = host_key.get_fingerprint("sha256")
            listening.append(files.Listening(spec.board_id, acceptor.get_port(), fingerprint))
        files.write_inventory(self.folder, self.config.spec, tuple(listening))

    async def _acceptor(
        self,
        board: VirtualBoard,
        host_key: asyncssh.SSHKey,
        client_key: asyncssh.SSHKey,
        connections: set[asyncssh.SSHServerConnection],
        port: int,
    ) -> asyncssh.SSHAcceptor:
        """Listens on ``port``, or on a free one when somebody else has it by now."""
        listen = partial(
            asyncssh.listen,
            files.HOST,
            server_factory=partial(BoardServer, connections, client_key),
            server_host_keys=[host_key],
            process_factory=partial(run_command, self._children, board),
            sftp_factory=partial(BoardFiles, home=str(board.paths.home)),
            encoding=None,
            line_editor=False,
            allow_pty=False,
            compression_algs=None,
            login_timeout=_LOGIN_TIMEOUT_S,
        )
        try:
            return await listen(port)
        except OSError:
            return await listen(0)

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

    def _reboot(self, slot: Slot) -> None:
        """Power off and on: connections drop, every process of the board dies, boot_id is new."""
        for connection in list(slot.connections):
            connection.abort()
        page = str(slot.board.paths.clock_page)
        processes.kill_all(
            lambda: [p for p in processes.descendants() if processes.carries(p, PAGE_ENV, page)]
        )
        slot.board.boot()
        self._watch_policy(slot.board)

    def _shut_down(self) -> None:
        for slot in self._slots.values():
            slot.acceptor.close()
            for connection in list(slot.connections):
                connection.abort()
        processes.kill_all(processes.descendants)
        asyncio.get_running_loop().remove_reader(self._watch.fd)
        self._watch.close()
        control.remove_socket(self.folder)


def _board_status(slot: Slot) -> control.Reply:
    board = slot.board
    return {
        "board_id": board.spec.board_id,
        "port": slot.acceptor.get_port(),
        "boot_id": board.boot_id,
        "temp_c": round(board.state.temp_c, 2),
        "reported_freq_khz": board.state.requested_khz,
        "charge_pct": charge_pct(board.spec, board.state),
        "throttle_bits": board.state.throttle_bits,
        "connections": len(slot.connections),
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
    asyncio.run(server.serve(ready_fd))
    os.close(lock_fd)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
