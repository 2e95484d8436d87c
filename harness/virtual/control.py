"""How the commands talk to the rack's process: a lock that names it, and one line of JSON each way.

Input: the rack's folder. Output: holder_pid, ask, answer. Raises RackError.
The socket is reached through the folder's descriptor, for its own path may be too long for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from harness.virtual.errors import RackError

LOCK = "server.lock"
_SOCKET = "control.sock"
_FLOCK = struct.Struct("hhqqi0q")  # struct flock of fcntl(2): type, whence, start, len, pid
_TIMEOUT_S = 60.0

Request = dict[str, Any]
Reply = dict[str, Any]


def hold_lock(folder: Path) -> int:
    """Makes this process the rack's, until it ends; returns the descriptor, to be kept open.

    Raises RackError when another process is.
    """
    fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise RackError(f"{folder}: a rack runs here already. Next: fleetcut rack status") from None
    return fd


def holder_pid(folder: Path) -> int | None:
    """The rack's process, as the kernel knows the lock's holder; None when no rack runs here."""
    try:
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        question = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        found = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, question))
    finally:
        os.close(fd)
    return None if found[0] == fcntl.F_UNLCK else int(found[4])


def ask(folder: Path, request: Request) -> Reply:
    """The running rack's answer. Raises RackError when it gives none, or says what is wrong."""
    try:
        with _socket_path(folder) as path, socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_TIMEOUT_S)
            client.connect(path)
            client.sendall(json.dumps(request).encode() + b"\n")
            with client.makefile("rb") as stream:
                reply = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        raise RackError(
            f"{folder}: the rack does not answer ({error}). "
            "Next: fleetcut rack down, then fleetcut rack up"
        ) from None
    if "error" in reply:
        raise RackError(str(reply["error"]))
    return dict(reply)


async def answer(folder: Path, handle: Callable[[Request], Awaitable[Reply]]) -> asyncio.Server:
    """Serves requests with ``handle``; what it raises as RackError or ValueError is the answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                reply = await handle(json.loads(await reader.readline()))
            except (RackError, ValueError, KeyError) as error:
                reply = {"error": str(error)}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        writer.close()

    (folder / _SOCKET).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    with _socket_path(folder) as path:
        listener.bind(path)
    (folder / _SOCKET).chmod(0o600)
    return await asyncio.start_unix_server(serve, sock=listener)


def remove_socket(folder: Path) -> None:
    (folder / _SOCKET).unlink(missing_ok=True)


@contextlib.contextmanager
def _socket_path(folder: Path) -> Iterator[str]:
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{_SOCKET}"
    finally:
        os.close(fd)
