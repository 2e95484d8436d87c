"""What a board answers over SSH: commands as real processes, and files below its home.

Input: asyncssh's channels. Output: run_command (a process factory) and BoardFiles (SFTP).
A closed channel ends the foreground command's process group; what called setsid lives on.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import signal
from asyncio.subprocess import PIPE, Process

import asyncssh

from harness.virtual.board import VirtualBoard
from harness.virtual.processes import descendants
from harness.virtual.spec import USER

_CHUNK_BYTES = 65536
_GRACE_S = 2.0
_CANNOT_RUN = 126


class Children:
    """The processes that this event loop started and waits for itself."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self.starting = 0

    async def start(self, board: VirtualBoard, command: str) -> Process:
        """``/bin/sh -c command`` on the board, as leader of a session. Raises OSError."""
        self.starting += 1
        try:
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", command),
                cwd=board.paths.home,
                env=board.environment(),
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                start_new_session=True,
            )
            self.pids.add(process.pid)
        finally:
            self.starting -= 1
        return process


class BoardServer(asyncssh.SSHServer):
    """Lets in one user with one key, and keeps its connection in ``connections`` while it lasts."""

    def __init__(
        self, connections: set[asyncssh.SSHServerConnection], client_key: asyncssh.SSHKey
    ) -> None:
        self._connections = connections
        self._client_key = client_key
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == USER and key == self._client_key


class BoardFiles(asyncssh.SFTPServer):
    """SFTP as the board's user has it: relative paths from its home, absolute ones only below it.

    The same path means the same file here and in a command.
    """

    def __init__(self, chan: asyncssh.SSHServerChannel[bytes], home: str) -> None:
        super().__init__(chan)
        self._home = os.fsencode(home)

    def map_path(self, path: bytes) -> bytes:
        """The local path. Raises SFTPPermissionDenied for one outside the board's home."""
        local = posixpath.normpath(posixpath.join(self._home, path))
        if local != self._home and not local.startswith(self._home + b"/"):
            raise asyncssh.SFTPPermissionDenied("outside the board's home")
        return local

    def reverse_map_path(self, path: bytes) -> bytes:
        return path


async def run_command(
    children: Children, board: VirtualBoard, channel: asyncssh.SSHServerProcess[bytes]
) -> None:
    """Runs what the client asked for and sends back its output and how it ended."""
    if channel.command is None:
        channel.stderr.write(b"a virtual board has no login shell. Next: ssh HOST COMMAND\n")
        channel.exit(1)
        return
    try:
        process = await children.start(board, channel.command)
    except OSError as error:
        channel.stderr.write(f"{board.spec.board_id}: cannot run commands: {error}\n".encode())
        channel.exit(_CANNOT_RUN)
        return
    closed = asyncio.ensure_future(channel.channel.wait_closed())
    stdin = asyncio.ensure_future(_feed(channel, process))
    work = asyncio.ensure_future(_drain_and_wait(channel, process))
    try:
        await asyncio.wait({closed, work}, return_when=asyncio.FIRST_COMPLETED)
        if work.done() and work.exception() is None:
            _report_end(channel, work.result())
        else:
            await _end_group(process)
    finally:
        for task in (closed, stdin, work):
            task.cancel()
        await asyncio.gather(closed, stdin, work, return_exceptions=True)
        children.pids.discard(process.pid)


async def _feed(channel: asyncssh.SSHServerProcess[bytes], process: Process) -> None:
    """Client → stdin until either end is through; the client's signals go to the whole group."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, asyncssh.Error):
        while True:
            try:
                data = await channel.stdin.read(_CHUNK_BYTES)
            except asyncssh.SignalReceived as received:
                _signal_group(process, getattr(signal, f"SIG{received.signal}", signal.SIGTERM))
                continue
            except (asyncssh.BreakReceived, asyncssh.TerminalSizeChanged):
                continue
            if not data:
                break
            process.stdin.write(data)
            await process.stdin.drain()
    process.stdin.close()


async def _drain_and_wait(channel: asyncssh.SSHServerProcess[bytes], process: Process) -> int:
    """Output and errors → client until both end, then the return code, as sshd does it."""
    assert process.stdout is not None
    assert process.stderr is not None
    await asyncio.gather(
        _copy(process.stdout, channel.stdout), _copy(process.stderr, channel.stderr)
    )
    return await process.wait()


async def _copy(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    while data := await source.read(_CHUNK_BYTES):
        target.write(data)
        await target.drain()


def _report_end(channel: asyncssh.SSHServerProcess[bytes], returncode: int) -> None:
    with contextlib.suppress(OSError):  # the client may be gone by now
        if returncode >= 0:
            channel.exit(returncode)
        else:
            channel.exit_with_signal(signal.Signals(-returncode).name.removeprefix("SIG"))


async def _end_group(process: Process) -> None:
    """SIGTERM to the command's group, and SIGKILL to what is left of it after a grace."""
    _signal_group(process, signal.SIGTERM)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(asyncio.shield(process.wait()), _GRACE_S)
    _signal_group(process, signal.SIGKILL)
    await process.wait()


def _signal_group(process: Process, number: int) -> None:
    """Signals what is left of the command's group, and only what descends from this server."""
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == process.pid:
                os.kill(pid, number)
