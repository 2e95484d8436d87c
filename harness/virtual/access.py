"""How a board is reached over SSH: by an asyncssh listener in the rack's own process.

Input: a board and the keys. Output: Access, which sshd.py offers too, and EmbeddedAccess.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import asyncssh

from harness.virtual import config as files
from harness.virtual import processes
from harness.virtual.board import VirtualBoard
from harness.virtual.clock import PAGE_ENV
from harness.virtual.session import BoardFiles, BoardServer, Children, run_command

_LOGIN_TIMEOUT_S = 300


@dataclass(frozen=True)
class Keys:
    """client: the only one that may log in. host: the board's own."""

    client: asyncssh.SSHKey
    host: asyncssh.SSHKey


class Access(Protocol):
    """One board's SSH server. ``open`` comes first, ``close`` last."""

    keys: Keys

    @property
    def port(self) -> int: ...

    def connections(self) -> int:
        """How many are open now."""
        ...

    async def open(self, port: int) -> None:
        """Listens on ``port``, or on a free one when somebody else has it by now."""
        ...

    async def restart(self, boot: Callable[[], None]) -> None:
        """Drops connections, ends every process of the board, boots, and listens as before."""
        ...

    def close(self) -> None:
        """Listens no more and drops connections."""
        ...


class EmbeddedAccess:
    """A listener of this event loop; commands are its child processes."""

    def __init__(self, board: VirtualBoard, keys: Keys, children: Children) -> None:
        self._board = board
        self.keys = keys
        self._children = children
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._acceptor: asyncssh.SSHAcceptor | None = None

    @property
    def port(self) -> int:
        assert self._acceptor is not None
        return self._acceptor.get_port()

    def connections(self) -> int:
        return len(self._connections)

    async def open(self, port: int) -> None:
        listen = partial(
            asyncssh.listen,
            files.HOST,
            server_factory=partial(BoardServer, self._connections, self.keys.client),
            server_host_keys=[self.keys.host],
            process_factory=partial(run_command, self._children, self._board),
            sftp_factory=partial(BoardFiles, home=str(self._board.paths.home)),
            encoding=None,
            line_editor=False,
            allow_pty=False,
            compression_algs=None,
            login_timeout=_LOGIN_TIMEOUT_S,
        )
        try:
            self._acceptor = await listen(port)
        except OSError:
            self._acceptor = await listen(0)

    async def restart(self, boot: Callable[[], None]) -> None:
        self._drop()
        page = str(self._board.paths.clock_page)
        processes.kill_all(
            lambda: [p for p in processes.descendants() if processes.carries(p, PAGE_ENV, page)]
        )
        boot()

    def close(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
        self._drop()

    def _drop(self) -> None:
        for connection in list(self._connections):
            connection.abort()
