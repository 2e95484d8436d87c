"""The process that measures, held by the worker at the end of two pipes.

Input: a line a run, its seconds and its RunSpec. Output: a MeasurementRecord a line, or how the
process ended.
A runtime that crashes, hangs or eats the memory takes this process with it and not the worker.
"""

from __future__ import annotations

import os
import select
import time
from typing import Callable, Iterable, Optional

from device_agents.bench import Bench, measure
from device_agents.contract import RunSpec, decode, encode
from device_agents.errors import RunFailedError, StoppedError
from device_agents.processes import describe_status, end_group, fork, kill_group

_READ_BYTES = 1 << 16


class BenchChild:
    """One measuring process, made when it is needed and again after it is gone.

    make_bench runs inside the child. close_fds: the worker's locks, which it must not hold.
    stop_fd becomes readable when the worker is asked to end.
    """

    def __init__(
        self, make_bench: Callable[[], Bench], close_fds: Iterable[int], stop_fd: int
    ) -> None:
        self._make_bench = make_bench
        self._close_fds = tuple(close_fds)
        self._stop_fd = stop_fd
        self._pid: Optional[int] = None
        self._to_child = -1
        self._from_child = -1

    def run(self, spec: RunSpec, timeout_s: float) -> str:
        """The encoded record. Raises RunFailedError ("timeout", "crashed") and StoppedError."""
        deadline_s = time.monotonic() + timeout_s
        line = f"{timeout_s:.3f} {encode(spec)}\n".encode()
        if self._pid is None or not self._send(line):
            # An idle child may have been ended, for its memory, since the run before.
            self.end()
            self._begin()
            self._send(line)
        return self._receive(deadline_s, spec.timeout_s).decode("utf-8")

    def end(self) -> Optional[int]:
        """Kill the child and its own children. Returns its wait status, None when there is none."""
        if self._pid is None:
            return None
        status = kill_group(self._pid)
        self._forget()
        return status

    def _forget(self) -> None:
        os.close(self._to_child)
        os.close(self._from_child)
        self._pid = None

    def _begin(self) -> None:
        specs_read, self._to_child = os.pipe()
        self._from_child, records_write = os.pipe()
        close_fds = (*self._close_fds, self._to_child, self._from_child)
        self._pid = fork(lambda: serve(self._make_bench(), specs_read, records_write), close_fds)
        os.close(specs_read)
        os.close(records_write)

    def _send(self, line: bytes) -> bool:
        try:
            os.write(self._to_child, line)
        except BrokenPipeError:
            return False
        return True

    def _receive(self, deadline_s: float, timeout_s: float) -> bytes:
        received = bytearray()
        while not received.endswith(b"\n"):
            left_s = max(0.0, deadline_s - time.monotonic())
            ready, _, _ = select.select([self._stop_fd, self._from_child], [], [], left_s)
            if self._stop_fd in ready:
                self.end()
                raise StoppedError
            if not ready:
                self.end()
                raise RunFailedError(
                    "timeout",
                    f"gave no result within {timeout_s:g} s",
                    "raise timeout_s, or lower warmup_max and samples_min",
                )
            chunk = os.read(self._from_child, _READ_BYTES)
            if not chunk:
                raise self._crashed()
            received += chunk
        return bytes(received[:-1])

    def _crashed(self) -> RunFailedError:
        assert self._pid is not None
        status = end_group(self._pid)
        self._forget()
        return RunFailedError(
            "crashed",
            f"the measuring process was {describe_status(status)}",
            "read worker.log in the session's folder; SIGKILL may be lack of memory",
        )


def serve(bench: Bench, specs_fd: int, records_fd: int) -> None:
    """The child's life: one line in, one line out, until the worker closes its end."""
    with os.fdopen(specs_fd, "rb") as specs, os.fdopen(records_fd, "wb") as records:
        for line in specs:
            limit_s, _, document = line.partition(b" ")
            record = measure(decode(RunSpec, document), bench, float(limit_s))
            records.write(encode(record).encode("utf-8") + b"\n")
            records.flush()
