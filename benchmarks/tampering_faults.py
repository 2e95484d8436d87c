"""What cuts a deployment: a network that resets after so many bytes, an agent killed at a line.

Input: a board and where to cut. Output: Proxy, a TCP relay; a program to be the board's Python.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

TO_BOARD, FROM_BOARD = "to the board", "from the board"
_RESET = struct.pack("ii", 1, 0)
_CHUNK_BYTES = 4096

_MORTAL = """\
#!{python}
# The board's Python: as it always is, but killed before a certain line of a verb of the agent.
import os, runpy, signal, sys
if sys.argv[1].startswith("-"):
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
os.environ.pop("FLEETCUT_COMPILED", None)
KILL_AT, BEGIN, COUNT = {kill_at}, {begin!r}, {count!r}
lines = 0
begun = False

def trace(frame, event, argument):
    global begun
    code = frame.f_code
    path = code.co_filename.replace(os.sep, "/")
    if "device_agents/" not in path:
        return None
    begun = begun or code.co_name == BEGIN
    return local if begun else None

def local(frame, event, argument):
    global lines
    if event == "line":
        lines += 1
        if lines == KILL_AT:
            os.kill(os.getpid(), signal.SIGKILL)
    elif event == "return" and COUNT and frame.f_code.co_name == BEGIN:
        with open(COUNT, "w") as file:
            file.write(str(lines))
    return local

sys.settrace(trace)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def mortal_python(path: Path, begin: str, kill_at: int, count: Path | None = None) -> Path:
    """A program to name as a board's ``python``: it dies before line kill_at, from 1.

    begin: lines of the agent count from the first call of a function of this name on. count: a
    file for their number, written each time that function returns; with kill_at 0 for all of them.
    """
    text = _MORTAL.format(
        python=sys.executable, kill_at=kill_at, begin=begin, count=str(count) if count else None
    )
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


@dataclass
class _Passed:
    """Bytes through a Proxy so far, each way."""

    to_board: int = 0
    from_board: int = 0


class Proxy:
    """A relay on loopback to one port; it resets every connection once the limit is passed.

    direction: TO_BOARD or FROM_BOARD, what is counted. limit_bytes: None for no limit. A context
    manager, like the socket it listens on.
    """

    def __init__(self, port: int, direction: str, limit_bytes: int | None) -> None:
        self._target = port
        self._direction = direction
        self._limit = limit_bytes
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self.passed = _Passed()
        self.cut = False
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *error: object) -> None:
        self._reset()
        # Closing alone does not wake who accepts on it.
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                board = socket.create_connection(("127.0.0.1", self._target))
                self._pairs.append((client, board))
                for ends, direction in (
                    ((client, board), TO_BOARD),
                    ((board, client), FROM_BOARD),
                ):
                    threading.Thread(
                        target=self._relay, args=(*ends, direction), daemon=True
                    ).start()

    def _relay(self, source: socket.socket, sink: socket.socket, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_CHUNK_BYTES):
                sink.sendall(self._counted(data, direction))
                if self.cut:
                    return
            sink.shutdown(socket.SHUT_WR)

    def _counted(self, data: bytes, direction: str) -> bytes:
        if direction == TO_BOARD:
            before, self.passed.to_board = self.passed.to_board, self.passed.to_board + len(data)
        else:
            before = self.passed.from_board
            self.passed.from_board += len(data)
        if self._limit is None or direction != self._direction or before + len(data) < self._limit:
            return data
        self.cut = True
        self._reset()
        return b""

    def _reset(self) -> None:
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    # RST, not FIN: what a router that forgot the connection sends.
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    end.shutdown(socket.SHUT_RDWR)
                with contextlib.suppress(OSError):
                    end.close()
