"""The detached session: every run that has no record yet, one after the other, journalled.

Input: a session's specs and the two locks that the starting process took. Output: the journal.
Standard library only, and no thread: a runtime lives in the child, which may crash or hang.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Tuple

from device_agents.bench import Bench, Identity, failed_record
from device_agents.child import BenchChild
from device_agents.clock import effective_freq_khz
from device_agents.conditioning import Conditioner
from device_agents.contract import (
    CodecError,
    DeviceProfile,
    MeasurementRecord,
    RunSpec,
    decode,
    encode,
)
from device_agents.errors import AgentError, RunFailedError, StoppedError
from device_agents.files import remove_tree
from device_agents.home import SHA256, Home, Inputs
from device_agents.journal import Journal
from device_agents.locks import Lock
from device_agents.platforms import select as select_platform
from device_agents.probe import probe
from device_agents.sysfs import Root

_CONDITION_SHARE = 0.8
"""Of a run's timeout, for reaching its condition: the rest is for the run itself."""
_REBOOTS = 2
"""A run that the board did not outlive so often is not tried again: the others wait for it."""


@dataclass(frozen=True)
class Session:
    """What a worker is given. locks: the board's, then the session's; released in that order.

    fence: of the lease under which it was started.
    """

    home: Home
    root: Root
    folder: Path
    specs: Tuple[RunSpec, ...]
    agent_sha256: str
    locks: Tuple[Lock, ...]
    fence: Optional[str] = None


def read_specs(path: Path) -> Tuple[RunSpec, ...]:
    """A session's runs, each once. Raises AgentError, which names the line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise AgentError(
            f"{path} cannot be read ({error.strerror})", "write the session's specs first"
        ) from None
    specs = {}
    for number, line in enumerate(lines, 1):
        try:
            spec = decode(RunSpec, line)
            _check_hashes(spec)
            specs[spec.run_id] = spec
        except (CodecError, ValueError) as error:
            raise AgentError(
                f"{path.name} line {number}: {error}", "write the session's specs anew"
            ) from None
    if not specs:
        raise AgentError(f"{path.name} holds no run", "write the session's specs anew")
    return tuple(specs.values())


def work(session: Session, pid: int) -> None:
    """Measure, in the daemon. Ends early, journal whole and board restored, on SIGTERM."""
    for lock in session.locks:
        lock.sign(session=session.folder.name, pid=pid, fence=session.fence)
    stop_fd = _stop_on_signal()
    try:
        _Worker(session, stop_fd).run()
    except StoppedError:
        print("stopped on request", file=sys.stderr)
    except OSError as error:
        # Most likely a full or failing disk. The journal ends at its last whole line.
        print(f"{session.folder.name}: {error}. Next: free space, start again", file=sys.stderr)
    finally:
        for lock in session.locks:
            lock.release()


class _Worker:
    def __init__(self, session: Session, stop_fd: int) -> None:
        self._session = session
        self._stop_fd = stop_fd
        self._platform = select_platform(session.root)
        self._profile = probe(session.root)
        self._identity = _identity(self._profile, session.agent_sha256)
        lock_fds = [lock.fd for lock in session.locks]
        self._conditioner = Conditioner(
            self._platform, session.home.restore_file, self._wait, lock_fds
        )
        self._child = BenchChild(self._bench, [*lock_fds, *self._conditioner.fds], stop_fd)

    def run(self) -> None:
        """Raises StoppedError and OSError; the child is gone and the board restored then too."""
        home = self._session.home
        # The board's lock is ours: what lies there was left by a worker that was killed.
        remove_tree(home.scratch)
        home.create()
        self._conditioner.restore()
        self._conditioner.prepare([spec.condition for spec in self._session.specs])
        journal = Journal(self._session.folder / "journal.jsonl")
        try:
            journal.append(
                "session",
                agent_sha256=self._identity.agent_sha256,
                boot_id=self._identity.boot_id,
                profile=json.loads(encode(self._profile)),
            )
            done, reboots = set(journal.done()), journal.reboots()
            for spec in self._session.specs:
                if spec.run_id not in done:
                    self._measure(spec, journal, reboots.get(spec.run_id, 0))
            journal.append("finished")
        finally:
            self._child.end()
            self._conditioner.end()
            journal.close()

    def _measure(self, spec: RunSpec, journal: Journal, reboots: int) -> None:
        self._wait(0.0)
        journal.append("run_started", run_id=spec.run_id)
        started_unix_ns = time.time_ns()
        start_s = time.monotonic()
        try:
            if reboots >= _REBOOTS:
                raise RunFailedError(
                    "rebooted",
                    f"the board booted anew {reboots} times while this ran",
                    "see its power supply, its cooling and the kernel's log of the last boot",
                )
            with self._conditioner.hold(spec.condition, spec.timeout_s * _CONDITION_SHARE):
                line = self._child.run(spec, spec.timeout_s - (time.monotonic() - start_s))
        except RunFailedError as failed:
            states = (self._platform.observe(),)
            record: MeasurementRecord = failed_record(
                spec, self._identity, failed.error, started_unix_ns, states
            )
            line = encode(record)
        journal.append("record", run_id=spec.run_id, record=json.loads(line))

    def _bench(self) -> Bench:
        """Called in the child: the runtimes that it imports never touch the worker."""
        home = self._session.home
        return Bench(
            identity=self._identity,
            platform=self._platform,
            inputs=Inputs(home),
            scratch=home.scratch,
            clock_khz=effective_freq_khz,
            burners=self._conditioner.burners,
        )

    def _wait(self, seconds: float) -> None:
        if select.select([self._stop_fd], [], [], seconds)[0]:
            raise StoppedError


def _identity(profile: DeviceProfile, agent_sha256: str) -> Identity:
    return Identity(profile.sha256(), agent_sha256, profile.boot_id, profile.simulated)


def _stop_on_signal() -> int:
    """A descriptor that becomes readable on SIGTERM or SIGINT: no exception out of nowhere."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return read_fd


def _check_hashes(spec: RunSpec) -> None:
    """Raises ValueError: hashes become paths."""
    golden = spec.golden
    fields: List[Tuple[str, Optional[str]]] = [
        ("model_sha256", spec.model_sha256),
        ("artifact_id", spec.artifact_id),
        ("golden.input_sha256", golden.input_sha256 if golden else None),
        ("golden.output_sha256", golden.output_sha256 if golden else None),
    ]
    for name, value in fields:
        if value is not None and not SHA256.fullmatch(value):
            raise ValueError(f"{name} {value[:80]!r} is not a SHA-256")
