"""One command and one upload over SSH: fleetcut beside plain paramiko and asyncssh.

    python -m benchmarks.ssh --json OUT

Input: nothing; a simulated board is started on loopback. Output: median ms of each, interleaved in
one run. The peers are used as their documentation's first example does.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncssh
import paramiko

from benchmarks.result import Bar, arguments, finish
from harness.inventory import Board, load_inventory
from harness.ssh import SshTransport
from harness.virtual import rack
from harness.virtual.spec import uniform_rack

UPLOAD_BYTES = 8 * 1024 * 1024


class Fleetcut:
    """What a session of fleetcut does: a checked, deadline-guarded transport."""

    def __init__(self, board: Board) -> None:
        self._transport = SshTransport(board)

    def command(self) -> None:
        assert self._transport.run(["true"], timeout_s=60).exit_status == 0

    def upload(self, data: bytes) -> None:
        take = 'head -c "$1" > bench-fleetcut && echo done'
        stream = self._transport.converse(["sh", "-c", take, "-", str(len(data))])
        stream.send(data, silence_s=60)
        assert stream.line(silence_s=60) == b"done"
        stream.close()

    def close(self) -> None:
        self._transport.close()


class PlainParamiko:
    """paramiko.SSHClient, exec_command, open_sftp().putfo()."""

    def __init__(self, board: Board) -> None:
        self._client = paramiko.SSHClient()
        self._client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        self._client.connect(
            board.host, port=board.port, username=board.user, key_filename=str(board.key_file),
            look_for_keys=False, allow_agent=False,
        )  # fmt: skip

    def command(self) -> None:
        _, stdout, _ = self._client.exec_command("true")
        assert stdout.channel.recv_exit_status() == 0

    def upload(self, data: bytes) -> None:
        with self._client.open_sftp() as sftp:
            sftp.putfo(io.BytesIO(data), "bench-paramiko")

    def close(self) -> None:
        self._client.close()


class PlainAsyncssh:
    """asyncssh.connect, run, start_sftp_client."""

    def __init__(self, board: Board) -> None:
        self._loop = asyncio.new_event_loop()
        self._connection: Any = self._loop.run_until_complete(
            asyncssh.connect(
                board.host, port=board.port, username=board.user,
                client_keys=[str(board.key_file)], known_hosts=None,
            )
        )  # fmt: skip

    def command(self) -> None:
        done = self._loop.run_until_complete(self._connection.run("true"))
        assert done.exit_status == 0

    def upload(self, data: bytes) -> None:
        self._loop.run_until_complete(self._put(data))

    async def _put(self, data: bytes) -> None:
        async with (
            self._connection.start_sftp_client() as sftp,
            sftp.open("bench-asyncssh", "wb") as remote,
        ):
            await remote.write(data)

    def close(self) -> None:
        self._connection.close()
        self._loop.run_until_complete(self._connection.wait_closed())
        self._loop.close()


CLIENTS: dict[str, Callable[[Board], Any]] = {
    "fleetcut": Fleetcut,
    "paramiko": PlainParamiko,
    "asyncssh": PlainAsyncssh,
}


def measure(board: Board, repeats: int) -> list[dict[str, Any]]:
    """Median ms of connecting, one command and one upload, the clients taking turns."""
    data = bytes(UPLOAD_BYTES)
    taken: dict[str, dict[str, list[float]]] = {
        name: {"connect": [], "command": [], "upload": []} for name in CLIENTS
    }
    for _ in range(repeats):
        for name, connect in CLIENTS.items():
            started = time.perf_counter()
            client = connect(board)
            taken[name]["connect"].append(time.perf_counter() - started)
            for _ in range(5):
                taken[name]["command"].append(_timed(client.command))
            taken[name]["upload"].append(_timed(client.upload, data))
            client.close()
    return [
        {
            "client": name,
            "connect_ms": statistics.median(times["connect"]) * 1e3,
            "command_ms": statistics.median(times["command"]) * 1e3,
            "upload_mb_s": UPLOAD_BYTES / 1e6 / statistics.median(times["upload"]),
        }
        for name, times in taken.items()
    ]


def _timed(call: Callable[..., None], *args: bytes) -> float:
    started = time.perf_counter()
    call(*args)
    return time.perf_counter() - started


def main() -> int:
    asked = arguments(__doc__)
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-") as folder:
        status = rack.up(Path(folder), uniform_rack(1))
        try:
            rows = measure(load_inventory(status.inventory).boards[0], 5 if asked.quick else 25)
        finally:
            rack.down(Path(folder))
    by_name = {row["client"]: row for row in rows}
    ours, plain = by_name["fleetcut"], by_name["paramiko"]
    bars = [
        Bar("time of a command, fleetcut ÷ plain paramiko",
            ours["command_ms"] / plain["command_ms"], "<=", 1.0),
        Bar("upload rate, fleetcut ÷ plain paramiko",
            ours["upload_mb_s"] / plain["upload_mb_s"], ">=", 0.9),
    ]  # fmt: skip
    return finish("ssh", rows, bars, asked.json)


if __name__ == "__main__":
    sys.exit(main())
