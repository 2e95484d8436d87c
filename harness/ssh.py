"""SSH to a board: the only importer of paramiko.

Input: a Board. Output: a Transport whose every step has a deadline and whose host key is checked.
Raises HostKeyError, StableBoardError (keys, permissions) and TransientBoardError (network).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import shlex
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import paramiko
from paramiko.pkey import UnknownKeyType

from harness.errors import BoardError, HostKeyError, StableBoardError, TransientBoardError
from harness.inventory import Board
from harness.transport import Completed

# What goes wrong is raised as our own error; without a handler Python would print paramiko's
# traceback to the user's terminal as well.
logging.getLogger("paramiko").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Deadlines:
    """Seconds until a silent network counts as gone.

    user_timeout_s is TCP_USER_TIMEOUT: how long sent bytes may stay unacknowledged. Without it a
    black hole in the middle of a transfer hangs paramiko for ever, keepalive or not.
    """

    connect_s: float = 10.0
    auth_s: float = 20.0
    user_timeout_s: float = 15.0
    keepalive_s: int = 5


DEFAULT_DEADLINES = Deadlines()

_LINE_BYTES_MAX = 64 << 20
"""More than the record of any run: 10^6 latencies are 10 MB."""

_KILLED = (128 + signal.SIGKILL, 128 + signal.SIGTERM)
"""What a login's shell makes of a command that a signal ended."""

_LOOK_AGAIN_S = 1.0
_STATUS_S = 5.0
"""A command's exit status comes right after the end of its output, or never."""


def fingerprint(key: paramiko.PKey) -> str:
    """OpenSSH's SHA-256 fingerprint of a public key: "SHA256:" and base64 without padding."""
    digest = hashlib.sha256(key.asbytes()).digest()
    return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


class _PinnedHostKey(paramiko.MissingHostKeyPolicy):
    """Accepts the one key of the inventory. Asked for every key, as no known_hosts is loaded."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        board = self._board
        found = fingerprint(key)
        if board.host_key_sha256 == found:
            return
        trust = f"fleetcut trust {board.board_id}"
        if board.host_key_sha256 is None:
            raise HostKeyError(
                board.board_id,
                f"its host key {found} is not in the inventory",
                f"compare it with the board's own, then: {trust}",
                found,
            )
        raise HostKeyError(
            board.board_id,
            f"its host key changed from {board.host_key_sha256} to {found}",
            f"find out why; if the board was reinstalled: {trust}",
            found,
        )


class SshTransport:
    """A Transport over one SSH connection. Threads may share it."""

    def __init__(self, board: Board, deadlines: Deadlines = DEFAULT_DEADLINES) -> None:
        self._board = board
        self._deadlines = deadlines
        self._client = _connect(board, deadlines)

    def run(self, argv: Sequence[str], *, timeout_s: float) -> Completed:
        channel = self._open(argv)
        channel.settimeout(timeout_s)
        stderr = _Drain(channel)
        stdout = bytearray()
        # A timer that closes the channel is the total deadline; settimeout bounds only silence.
        expired = threading.Event()
        timer = threading.Timer(timeout_s, _expire, (channel, expired))
        timer.start()
        try:
            while chunk := channel.recv(65536):
                stdout += chunk
            channel.status_event.wait(timeout_s)
            status = channel.exit_status
        except TimeoutError:
            expired.set()
        finally:
            timer.cancel()
            channel.close()
        if expired.is_set():
            raise self._transient(f"{_brief(argv)} did not end within {timeout_s:g} s")
        if status == -1 and not self._alive():
            raise self._transient(f"the connection was cut during {_brief(argv)}")
        return Completed(tuple(argv), status, bytes(stdout), stderr.text())

    def lines(self, argv: Sequence[str], *, silence_s: float) -> Iterator[bytes]:
        channel = self._open(argv)
        channel.settimeout(silence_s)
        stderr = _Drain(channel)
        pending = b""
        try:
            while True:
                try:
                    chunk = channel.recv(65536)
                except TimeoutError:
                    raise self._transient(
                        f"{_brief(argv)} was silent for {silence_s:g} s"
                    ) from None
                if not chunk:
                    break
                *whole, pending = (pending + chunk).split(b"\n")
                yield from whole
            channel.status_event.wait(silence_s)
            if channel.exit_status == -1:
                raise self._transient(f"{_brief(argv)} was cut before its end")
            if channel.exit_status != 0:
                done = Completed(tuple(argv), channel.exit_status, b"", stderr.text())
                raise StableBoardError(
                    self._board.board_id,
                    f"{_brief(argv)} failed: {done.last_error()}",
                    f"fleetcut check {self._board.board_id}",
                )
        finally:
            channel.close()

    def converse(self, argv: Sequence[str]) -> SshStream:
        return SshStream(self._board, self._open(argv), argv)

    def close(self) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._client.close()

    def _open(self, argv: Sequence[str]) -> paramiko.Channel:
        with self._translated(_brief(argv)):
            transport = self._client.get_transport()
            if transport is None or not transport.is_active():
                raise EOFError
            channel = transport.open_session(timeout=self._deadlines.connect_s)
            # paramiko waits for the answer without an end: closing the channel is one.
            timer = threading.Timer(self._deadlines.auth_s, _close, (channel,))
            timer.start()
            try:
                channel.exec_command(shlex.join(argv))
            finally:
                timer.cancel()
            return channel

    def _alive(self) -> bool:
        transport = self._client.get_transport()
        return transport is not None and transport.is_active()

    def _transient(self, fact: str) -> TransientBoardError:
        return TransientBoardError(
            self._board.board_id, fact, f"fleetcut check {self._board.board_id}"
        )

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Paramiko's many errors as ours; PermissionError and a full disk are not retried."""
        try:
            yield
        except BoardError:
            raise
        except (PermissionError, FileNotFoundError) as error:
            raise StableBoardError(
                self._board.board_id,
                f"{what}: {error.strerror or error}",
                f"fleetcut check {self._board.board_id}",
            ) from None
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise self._transient(f"{what} failed ({_one_line(error)})") from None


class SshStream:
    """A Stream over one channel. One thread at a time."""

    def __init__(self, board: Board, channel: paramiko.Channel, argv: Sequence[str]) -> None:
        self._board = board
        self._channel = channel
        self._argv = tuple(argv)
        self._stderr = _Drain(channel)
        self._pending = bytearray()

    def send(self, data: bytes, *, silence_s: float) -> None:
        self._channel.settimeout(silence_s)
        try:
            self._channel.sendall(data)
        except TimeoutError:
            raise self._transient(f"takes no input for {silence_s:g} s") from None
        except (OSError, EOFError, paramiko.SSHException):
            raise self._ended() from None

    def line(self, *, silence_s: float) -> bytes:
        self._channel.settimeout(silence_s)
        while (end := self._pending.find(b"\n")) < 0:
            try:
                chunk = self._channel.recv(65536)
            except TimeoutError:
                raise self._transient(f"is silent for {silence_s:g} s") from None
            if not chunk:
                raise self._ended()
            self._pending += chunk
            if len(self._pending) > _LINE_BYTES_MAX:
                raise StableBoardError(
                    self._board.board_id,
                    f"{_brief(self._argv)} says a line of more than {_LINE_BYTES_MAX >> 20} MiB",
                    f"fleetcut check {self._board.board_id}",
                )
        found = bytes(self._pending[:end])
        del self._pending[: end + 1]
        return found

    def close(self) -> None:
        self._channel.close()

    def _ended(self) -> BoardError:
        """Why: it said so, or was killed, or the connection is gone."""
        self._channel.status_event.wait(_STATUS_S)
        status = self._channel.exit_status
        if status == -1 or status in _KILLED:
            return self._transient("was cut before its end")
        done = Completed(self._argv, status, b"", self._stderr.text())
        return StableBoardError(
            self._board.board_id,
            f"{_brief(self._argv)} ended: {done.last_error()}",
            f"fleetcut check {self._board.board_id}",
        )

    def _transient(self, fact: str) -> TransientBoardError:
        board_id = self._board.board_id
        return TransientBoardError(
            board_id, f"{_brief(self._argv)} {fact}", f"fleetcut check {board_id}"
        )


def _expire(channel: paramiko.Channel, expired: threading.Event) -> None:
    expired.set()
    _close(channel)


def _close(channel: paramiko.Channel) -> None:
    """From a timer's thread, where nobody would catch what a lost connection raises."""
    with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
        channel.close()


class _Drain:
    """Reads a channel's standard error to its end, so that a full pipe never blocks the board."""

    def __init__(self, channel: paramiko.Channel, keep_bytes: int = 65536) -> None:
        self._kept = bytearray()
        self._thread = threading.Thread(
            target=self._run, args=(channel, keep_bytes), name="stderr", daemon=True
        )
        self._thread.start()

    def _run(self, channel: paramiko.Channel, keep_bytes: int) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                try:
                    chunk = channel.recv_stderr(65536)
                except TimeoutError:
                    continue
                if not chunk:
                    return
                self._kept += chunk
                del self._kept[:-keep_bytes]

    def text(self) -> bytes:
        """What was kept, once the other side closed the stream."""
        self._thread.join(timeout=5)
        return bytes(self._kept)


def _connect(board: Board, deadlines: Deadlines) -> paramiko.SSHClient:
    board_id = board.board_id
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(_PinnedHostKey(board))
    try:
        client.connect(
            board.host,
            port=board.port,
            username=board.user,
            pkey=_private_key(board),
            # With a key named in the inventory nothing else is offered to the board.
            allow_agent=board.key_file is None,
            look_for_keys=board.key_file is None,
            sock=_socket(board, deadlines),
            banner_timeout=deadlines.auth_s,
            auth_timeout=deadlines.auth_s,
            timeout=deadlines.auth_s,
        )
    except BoardError:
        client.close()
        raise
    except paramiko.AuthenticationException as error:
        client.close()
        raise StableBoardError(
            board_id,
            f"{board.user}@{board.host}:{board.port} refused the key ({_one_line(error)})",
            f"ssh-copy-id -p {board.port} {board.user}@{board.host}",
        ) from None
    except (OSError, EOFError, paramiko.SSHException) as error:
        client.close()
        raise TransientBoardError(
            board_id,
            f"no SSH at {board.host}:{board.port} ({_one_line(error)})",
            f"see that the board is up: ssh -p {board.port} {board.user}@{board.host} true",
        ) from None
    transport = client.get_transport()
    if transport is not None:
        transport.set_keepalive(deadlines.keepalive_s)
    return client


def _private_key(board: Board) -> paramiko.PKey | None:
    """The inventory's key, loaded once: left to SSHClient, a refusal ends in a parser's error."""
    if board.key_file is None:
        return None
    try:
        return paramiko.PKey.from_path(str(board.key_file))
    except FileNotFoundError:
        fact, next_step = "does not exist", "mend key_file in the inventory"
    except paramiko.PasswordRequiredException:
        fact = "needs a passphrase"
        next_step = "load it into an SSH agent and leave key_file out of the inventory"
    except (
        OSError,
        ValueError,
        TypeError,
        paramiko.SSHException,
        UnknownKeyType,
    ) as error:
        fact = f"is not a private key that can be used ({_one_line(error)})"
        next_step = "name another in the inventory: ssh-keygen -t ed25519 makes one"
    raise StableBoardError(board.board_id, f"key file {board.key_file} {fact}", next_step)


class PatientSocket(socket.socket):
    """What paramiko reads from: it wakes for every timeout of its socket, which it sets to 0.1 s.

    On a rack of 64 idle boards that alone kept a tenth of the workstation's core busy. A second
    will do for its keepalives; a close, for which it looks meanwhile, wakes the reader by itself.
    """

    def settimeout(self, value: float | None) -> None:
        super().settimeout(None if value is None else max(value, _LOOK_AGAIN_S))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.shutdown(socket.SHUT_RDWR)
        super().close()


def _socket(board: Board, deadlines: Deadlines) -> socket.socket:
    """A connected socket: no Nagle (47 → 2.8 ms a command), and dead peers are noticed."""
    address = (board.host, board.port)
    try:
        sock = PatientSocket(
            fileno=socket.create_connection(address, timeout=deadlines.connect_s).detach()
        )
    except OSError as error:
        raise TransientBoardError(
            board.board_id,
            f"cannot connect to {board.host}:{board.port} ({_one_line(error)})",
            "see that the board is up and that host and port in the inventory are right",
        ) from None
    sock.settimeout(deadlines.connect_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(deadlines.user_timeout_s * 1000)
        )
    return sock


def fetch_host_key(board: Board, deadlines: Deadlines = DEFAULT_DEADLINES) -> str:
    """The fingerprint that the board shows now, without logging in. Raises TransientBoardError."""
    transport = paramiko.Transport(_socket(board, deadlines))
    try:
        transport.start_client(timeout=deadlines.auth_s)
        return fingerprint(transport.get_remote_server_key())
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise TransientBoardError(
            board.board_id,
            f"no SSH at {board.host}:{board.port} ({_one_line(error)})",
            "see that an SSH server listens there",
        ) from None
    finally:
        transport.close()


def _brief(argv: Sequence[str]) -> str:
    text = shlex.join(argv)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
