"""A TCP proxy that does to a connection what networks do: cuts, swallows and damages it.

Input: a listening socket, the board's port, a Trouble for each connection in turn. Output: bytes
passed on until the trouble comes. It runs in a process of its own and ends by SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

Kind = Literal["none", "refuse", "reset", "close", "black hole", "damage"]

_CHUNK_BYTES = 16384


@dataclass(frozen=True)
class Trouble:
    """What happens once after_bytes went to the board (upward), or came from it.

    port: where it is connected to; None: the board. "black hole": both ways swallow everything
    from then on, and the kernel goes on acknowledging it, as a broken middlebox does.
    """

    kind: Kind = "none"
    after_bytes: int = 0
    upward: bool = True
    port: int | None = None


def fork_proxy(
    listener: socket.socket, port: int, troubles: Sequence[Trouble], struck: Path
) -> int:
    """Returns the process id. Connections after the last trouble have none.

    struck: a file that gets a byte for each trouble that came.
    """
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        _serve(listener, port, troubles, struck)
    return pid


def die_with_parent() -> None:
    """A benchmark that is killed leaves nothing behind: see PR_SET_PDEATHSIG in prctl(2)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)


def _serve(
    listener: socket.socket, port: int, troubles: Sequence[Trouble], struck: Path
) -> NoReturn:
    try:
        asyncio.run(_Proxy(port, troubles, struck).run(listener))
    finally:
        os._exit(1)


class _Proxy:
    def __init__(self, port: int, troubles: Sequence[Trouble], struck: Path) -> None:
        self._port = port
        self._troubles = list(troubles)
        self._struck = struck

    async def run(self, listener: socket.socket) -> None:
        server = await asyncio.start_server(self._connected, sock=listener)
        await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        trouble = self._troubles.pop(0) if self._troubles else Trouble()
        if trouble.kind == "refuse":
            self._strikes()
            _reset(writer)
            return
        if trouble.port is not None:
            self._strikes()
        with contextlib.suppress(OSError):
            up_reader, up_writer = await asyncio.open_connection(
                "127.0.0.1", trouble.port or self._port
            )
            for end in (writer, up_writer):
                end.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(trouble, (writer, up_writer), self._strikes)
            upward = asyncio.create_task(connection.pipe(reader, up_writer, upward=True))
            downward = asyncio.create_task(connection.pipe(up_reader, writer, upward=False))
            await asyncio.wait({upward, downward}, return_when=asyncio.FIRST_COMPLETED)
            for task in (upward, downward):
                task.cancel()
            await asyncio.gather(upward, downward, return_exceptions=True)
            for end in (writer, up_writer):
                end.close()

    def _strikes(self) -> None:
        with self._struck.open("ab") as file:
            file.write(b".")


class _Connection:
    def __init__(
        self,
        trouble: Trouble,
        ends: tuple[asyncio.StreamWriter, ...],
        strikes: Callable[[], None],
    ) -> None:
        self._trouble = trouble
        self._ends = ends
        self._strikes = strikes
        self._passed = {True: 0, False: 0}
        self._has_come = False

    async def pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, upward: bool
    ) -> None:
        """Until one side ends or the trouble does it."""
        while chunk := await reader.read(_CHUNK_BYTES):
            self._passed[upward] += len(chunk)
            trouble = self._trouble
            due = self._passed[trouble.upward] >= trouble.after_bytes > 0
            is_first = due and trouble.kind != "none" and not self._has_come
            if is_first:
                self._has_come = True
                self._strikes()
            if due and trouble.kind == "close":
                return
            if due and trouble.kind == "reset":
                for end in self._ends:
                    _reset(end)
                return
            if due and trouble.kind == "black hole":
                continue
            if is_first and trouble.kind == "damage":
                chunk = chunk[:-1] + bytes([chunk[-1] ^ 1])
            writer.write(chunk)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """An RST, not a FIN: close(2) with SO_LINGER 0, see socket(7)."""
    writer.get_extra_info("socket").setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    writer.transport.abort()
