"""One fleetcut of a played fault: a forked process that measures a campaign and then ends.

Input: a Job. Output: its exit status, and one line of JSON in Job.said: the failures it reported.
Forked and not started anew, because Python's imports would take longer than the measuring.
"""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.fault_proxy import die_with_parent
from harness import conversation, session
from harness.bundle import Bundle
from harness.errors import HarnessError
from harness.executor import Executor, Retries, Work
from harness.inventory import Board
from harness.leases import Leases
from harness.ssh import Deadlines, SshTransport
from harness.store import Store
from harness.transport import Transport

LEASE_S = 5.0
WAIT_S = 20.0
DEADLINE_S = 150.0
"""Of one command. With the deadlines below none may take as long, whatever happens to it."""

BUG = 70

_DEADLINES = Deadlines(connect_s=5.0, auth_s=8.0, user_timeout_s=6.0, keepalive_s=2)
_RETRIES = Retries(attempts=4, first_delay_s=0.1, largest_delay_s=1.0)


@dataclass(frozen=True)
class Job:
    """clock_step_s: by how much the wall clock jumps, clock_step_at_s after the start."""

    work: Work
    store: Path
    bundle: Bundle
    said: Path
    clock_step_s: float = 0.0
    clock_step_at_s: float = 0.0


def fork_controller(job: Job) -> int:
    """Returns the process id. Exit status 0: all is measured; 3: a board failed; 70: a bug."""
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        _run(job)
    return pid


def _run(job: Job) -> NoReturn:
    status = BUG
    try:
        _be_quick()
        if job.clock_step_s:
            threading.Timer(job.clock_step_at_s, _step, (job.clock_step_s,)).start()
        failures = _measure(job)
        status = 3 if failures else 0
    except HarnessError as error:
        failures, status = [str(error)], 3
    except BaseException:
        failures = [traceback.format_exc()]
    finally:
        job.said.write_text(json.dumps(failures))
        os._exit(status)


def _measure(job: Job) -> list[str]:
    store = Store(job.store)
    executor = Executor(
        store, job.bundle, _connect, retries=_RETRIES,
        leases=Leases(store, lease_s=LEASE_S), wait_s=WAIT_S,
    )  # fmt: skip
    return [str(o.failure) for o in executor.measure(job.work) if o.failure is not None]


def _connect(board: Board) -> Transport:
    return SshTransport(board, _DEADLINES)


def _be_quick() -> None:
    """The product's deadlines divided by about six: two hundred silences are to be waited for."""
    session.CALL_TIMEOUT_S = conversation.START_SILENCE_S = conversation.UPLOAD_SILENCE_S = 10.0
    session.ALIVE_SILENCE_S = 12.0


def _step(seconds: float) -> None:
    """What this process believes of the time of day; what no step may move stays as it is."""
    real, real_ns = time.time, time.time_ns
    time.time = lambda: real() + seconds
    time.time_ns = lambda: real_ns() + int(seconds * 1e9)
