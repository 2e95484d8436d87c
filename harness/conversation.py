"""The agent as one process for a whole connection: there by its hash, started, asked over and over.

Input: a Transport and the agent's Bundle. Output: a Conversation: verbs, uploads, journal lines.
Raises BoardError. Starting Python for every question would cost a slow board more than its work.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from typing import Any

from harness.bundle import Bundle
from harness.errors import BoardError, StableBoardError, TransientBoardError
from harness.inventory import Board
from harness.transport import Completed, Stream, Transport

START_SILENCE_S = 60.0
UPLOAD_SILENCE_S = 30.0
"""Longest pause of an upload: a slow SD card flushes for seconds."""

_GREETING_LINES_MAX = 100
_ANSWER_LINES_MAX = 10_000
_READY, _PUSH, _PUSH_COMPILED = (
    b"fleetcut: ready", b"fleetcut: push agent", b"fleetcut: push compiled"
)  # fmt: skip
_DAMAGED, _NO_PYTHON = b"fleetcut: damaged", b"fleetcut: no python"
_SAID = (_READY, _PUSH, _PUSH_COMPILED, _DAMAGED, _NO_PYTHON)

# Only fixed text is interpreted: what varies are the arguments. A login's own greeting on stdout
# is passed over. The agent's bytes are hashed each time before they run.
_START = """
python=$1 incoming=$2 agent=$3 agent_sha=$4 agent_size=$5
series=$6 compiled=$7 compiled_sha=$8 compiled_size=$9
umask 077
is_whole() { sum=$(sha256sum "$1" 2>/dev/null); [ "${sum%% *}" = "$2" ]; }  # FILE HASH
take() {  # FILE HASH SIZE: the next SIZE bytes that come in
  head -c "$3" > "$incoming" || { rm -f "$incoming"; exit 1; }
  if ! is_whole "$incoming" "$2"; then
    rm -f "$incoming"; echo "fleetcut: damaged"; exit 1
  fi
  mv -f "$incoming" "$1" || exit 1
}
command -v "$python" > /dev/null || { echo "fleetcut: no python"; exit 1; }
if ! is_whole "$agent" "$agent_sha"; then
  mkdir -p .fleetcut/incoming .fleetcut/agents || exit 1
  echo "fleetcut: push agent"
  take "$agent" "$agent_sha" "$agent_size"
  case "$("$python" -V 2>/dev/null)" in "Python $series."*)
    echo "fleetcut: push compiled"
    take "$compiled" "$compiled_sha" "$compiled_size"
  esac
fi
if is_whole "$compiled" "$compiled_sha"; then export FLEETCUT_COMPILED="$compiled"; fi
echo "fleetcut: ready"
exec "$python" "$agent" serve
"""


class Conversation:
    """One agent that answers. Threads take turns: see ``try_take`` and ``release``."""

    def __init__(self, board: Board, transport: Transport, bundle: Bundle) -> None:
        """Starts the agent; its bytes are sent when the board lacks them."""
        self._board = board
        self._stream = _started(board, transport, bundle)
        self._turn = threading.Lock()

    def try_take(self) -> bool:
        """Whether it is the caller's turn now, to be given back by ``release``."""
        return self._turn.acquire(blocking=False)

    def release(self) -> None:
        self._turn.release()

    def call(self, verb: str, *args: str, timeout_s: float) -> Completed:
        """One verb to its end, as if it had been a command of its own."""
        self._send({"verb": [verb, *args]})
        lines: list[bytes] = []
        while (end := _end(line := self._stream.line(silence_s=timeout_s))) is None:
            lines.append(line)
            if len(lines) > _ANSWER_LINES_MAX:
                raise self._error(f"agent {verb} does not come to an end of its answer")
        return _completed((verb, *args), lines, end)

    def lines(self, verb: str, *args: str, silence_s: float) -> Iterator[bytes]:
        """A verb's answers as they come. Raises StableBoardError when it ends with an error.

        To be read to its end; a caller who stops before has to ``close`` the conversation.
        """
        self._send({"verb": [verb, *args]})
        while (end := _end(line := self._stream.line(silence_s=silence_s))) is None:
            yield line
        done = _completed((verb, *args), [], end)
        if done.exit_status != 0:
            raise self._error(f"agent {verb} failed: {done.last_error()}")

    def upload(self, data: bytes) -> str:
        """Put bytes into the board's incoming folder. Returns the name they have there."""
        name = f"upload-{secrets.token_hex(8)}"
        self._send({"upload": name, "size_bytes": len(data)})
        self._stream.send(data, silence_s=UPLOAD_SILENCE_S)
        end = _end(self._stream.line(silence_s=UPLOAD_SILENCE_S))
        if end is None:
            raise self._error("the agent answered an upload with something else")
        done = _completed(("upload",), [], end)
        if done.exit_status != 0:
            raise self._error(f"upload failed: {done.last_error()}")
        return name

    def close(self) -> None:
        """Hang up: the agent's process ends, a detached worker goes on."""
        self._stream.close()

    def _send(self, request: dict[str, Any]) -> None:
        self._stream.send(json.dumps(request).encode() + b"\n", silence_s=UPLOAD_SILENCE_S)

    def _error(self, fact: str) -> BoardError:
        return StableBoardError(
            self._board.board_id, fact, f"fleetcut check {self._board.board_id}"
        )


def _started(board: Board, transport: Transport, bundle: Bundle) -> Stream:
    incoming = f".fleetcut/incoming/agent-{secrets.token_hex(8)}"
    arguments = (
        *(board.python, incoming),
        *(bundle.remote_path, bundle.sha256, str(len(bundle.data))),
        bundle.python_series,
        *(bundle.compiled_path, bundle.compiled_sha256, str(len(bundle.compiled))),
    )
    stream = transport.converse(["sh", "-c", _START, "fleetcut", *arguments])
    files = {_PUSH: bundle.data, _PUSH_COMPILED: bundle.compiled}
    while (said := _greeting(stream, board)) in files:
        stream.send(files.pop(said), silence_s=UPLOAD_SILENCE_S)
    if said == _NO_PYTHON:
        raise StableBoardError(
            board.board_id,
            f"there is no {board.python} on the PATH of its login",
            "sudo apt-get install python3 there, or name another in the inventory (python:)",
        )
    if said != _READY:
        raise TransientBoardError(
            board.board_id,
            "the agent arrived with another hash than was sent",
            f"see the board's disk; fleetcut check {board.board_id}",
        )
    return stream


def _greeting(stream: Stream, board: Board) -> bytes:
    for _ in range(_GREETING_LINES_MAX):
        line = stream.line(silence_s=START_SILENCE_S)
        if line in _SAID:
            return line
    raise StableBoardError(
        board.board_id,
        f"its login says more than {_GREETING_LINES_MAX} lines before a command runs",
        "see ~/.bashrc on the board",
    )


def _end(line: bytes) -> dict[str, Any] | None:
    """The document that ends an answer; None for any other line."""
    if b'"exit_status"' not in line[:20]:
        return None
    try:
        end = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return end if isinstance(end, dict) and type(end.get("exit_status")) is int else None


def _completed(argv: tuple[str, ...], lines: list[bytes], end: dict[str, Any]) -> Completed:
    error = end.get("error")
    stderr = error.encode("utf-8", "replace") if isinstance(error, str) else b""
    return Completed(argv, end["exit_status"], b"".join(line + b"\n" for line in lines), stderr)
