"""Many verbs in one process: Python starts once a connection, not once a question.

Input: requests on a stream of bytes, a JSON line each: {"verb": [ARG…]}, or {"upload": FILE,
"size_bytes": N} and then N bytes for incoming/FILE. Output: what the verb answers, and last
{"exit_status", "error"}: the status and the line that the verb by itself would end with.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, BinaryIO, Callable, Dict, List, Optional, Tuple

from device_agents.errors import AgentError
from device_agents.home import Home, checked_name

_CHUNK_BYTES = 1 << 20
_LINE_BYTES_MAX = 1 << 20
_USAGE = "send {'verb': [...]} or {'upload': name, 'size_bytes': number}"

Outcome = Tuple[int, Optional[str]]
"""Exit status, and the error's one line."""


def serve(
    source: BinaryIO,
    home: Home,
    verb: Callable[[List[str]], Outcome],
    say: Callable[[Dict[str, Any]], None],
) -> None:
    """Answer until the stream ends. Raises AgentError for what is no request at all."""
    while True:
        line = source.readline(_LINE_BYTES_MAX)
        if not line:
            return
        request = _request(line)
        if "upload" in request:
            status, error = _upload(source, home, request)
        else:
            status, error = verb(request["verb"])
        say({"exit_status": status, "error": error})


def _request(line: bytes) -> Dict[str, Any]:
    """A request in one of the two forms: after anything else the stream has lost its places."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        request = None
    if isinstance(request, dict):
        argv, size_bytes = request.get("verb"), request.get("size_bytes")
        if isinstance(argv, list) and all(isinstance(arg, str) for arg in argv):
            return {"verb": argv}
        if isinstance(request.get("upload"), str) and type(size_bytes) is int and size_bytes >= 0:
            return request
    raise AgentError(f"{line[:60]!r} is no request", _USAGE)


def _upload(source: BinaryIO, home: Home, request: Dict[str, Any]) -> Outcome:
    """The bytes that follow, into incoming/; read to their end also where they cannot be kept."""
    left_bytes: int = request["size_bytes"]
    error: Optional[str] = None
    path: Optional[Path] = None
    try:
        home.create()
        path = home.incoming / checked_name(request["upload"], "an upload")
        with path.open("wb") as stream:
            while left_bytes:
                chunk = source.read(min(left_bytes, _CHUNK_BYTES))
                if not chunk:
                    break
                left_bytes -= len(chunk)
                stream.write(chunk)
    except AgentError as refused:
        error = str(refused)
    except OSError as failed:
        error = f"{request['upload']} cannot be written ({failed.strerror}). Next: agent check"
    if path is not None and (error is not None or left_bytes):
        with contextlib.suppress(OSError):
            path.unlink()
    while left_bytes:
        chunk = source.read(min(left_bytes, _CHUNK_BYTES))
        if not chunk:
            raise AgentError("the upload was cut", "send it again", exit_status=1)
        left_bytes -= len(chunk)
    return (0, None) if error is None else (1, error)
