"""A board reached by an OpenSSH server of its own, in the namespaces of namespace.py.

Input: a NamespaceBoard and the keys. Output: SshdAccess. Raises RackError when sshd does not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.virtual import config as files
from harness.virtual import processes
from harness.virtual.access import Keys
from harness.virtual.errors import RackError
from harness.virtual.namespace import NamespaceBoard
from harness.virtual.session import Children

_STARTS = 5
"""Between choosing a free port and listening on it, somebody else may take it."""

_SAID_CHARS = 200


class SshdAccess:
    """sshd and everything below it are one tree of processes that ends with the rack's."""

    def __init__(self, board: NamespaceBoard, keys: Keys, children: Children) -> None:
        self._board = board
        self.keys = keys
        self._children = children
        self._process: Process | None = None
        self._port = 0

    @property
    def port(self) -> int:
        return self._port

    def connections(self) -> int:
        # One listens, and each connection has one of its own.
        return max(0, processes.count_named(self._board.cgroup.pids(), "sshd") - 1)

    async def open(self, port: int) -> None:
        for _ in range(_STARTS):
            self._port = _free_port(port)
            if await self._start():
                return
            await self._end()
        log = self._board.folder / "sshd.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or ["nothing"]
        raise RackError(
            f"{self._board.spec.board_id}: sshd does not start and says "
            f"{lines[-1][:_SAID_CHARS]!r}. Next: read {log}"
        )

    async def restart(self, boot: Callable[[], None]) -> None:
        await self._end()
        boot()
        await self.open(self._port)

    def close(self) -> None:
        processes.kill_all(self._board.cgroup.pids)

    async def _start(self) -> bool:
        """Whether it listens; False when it has ended instead."""
        board = self._board
        client_key = self.keys.client.export_public_key()
        board.write_launch_files(files.HOST, self._port, client_key)
        log_path = board.folder / "sshd.log"
        with _ready_pipe(board.folder / "ready") as ready, log_path.open("wb") as log:
            self._children.starting += 1
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *board.launch_command(),
                    cwd=board.folder,
                    env=board.launch_environment(),
                    stdin=DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                self._children.pids.add(self._process.pid)
            finally:
                self._children.starting -= 1
            listens = asyncio.create_task(_readable(ready))
            ended = asyncio.create_task(self._process.wait())
            await asyncio.wait({listens, ended}, return_when=asyncio.FIRST_COMPLETED)
            for task in (listens, ended):
                task.cancel()
            await asyncio.gather(listens, ended, return_exceptions=True)
            return self._process.returncode is None

    async def _end(self) -> None:
        processes.kill_all(self._board.cgroup.pids)
        if self._process is not None:
            await self._process.wait()
            self._children.pids.discard(self._process.pid)
            self._process = None


@contextlib.contextmanager
def _ready_pipe(path: Path) -> Iterator[int]:
    """A pipe as sshd's PidFile: it writes there once it listens, and the reader is woken."""
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)


async def _readable(fd: int) -> None:
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(fd)


def _free_port(wanted: int) -> int:
    """``wanted`` when it is free, else another one."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((files.HOST, port))
            return int(probe.getsockname()[1])
    raise RackError(f"no port is free on {files.HOST}. Next: end what holds them")
