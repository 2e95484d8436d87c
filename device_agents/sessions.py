"""The verbs of a session: start, attach, collect, ack, stop.

Input: a session's id. Output: what the verb answers, as plain JSON data or journal lines.
A session is a folder; whether its worker lives is told by a flock and by nothing else.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from device_agents.changes import changes_in, drain
from device_agents.errors import AgentError
from device_agents.files import fsync_file, fsync_folder, remove_tree
from device_agents.home import Home, checked_name
from device_agents.journal import Reader, read
from device_agents.locks import acquire, holder, is_held
from device_agents.processes import detach
from device_agents.sysfs import Root
from device_agents.worker import Session, read_specs, work

Answer = Dict[str, Any]

_POLL_MS = 100
_TERM_S = 20.0
_KILL_S = 10.0
_STOP_POLL_S = 0.02
_ALIVE_S = 2.0
"""Of the board's time: an emulated board's passes ten times as slowly as that of who waits."""
_ALIVE = b'{"event": "alive"}\n'


def take_specs(home: Home, session_id: str, file_name: str) -> None:
    """Move incoming/file_name to its place in the session's folder, which is made."""
    folder = home.session(session_id)
    folder.mkdir(mode=0o700, exist_ok=True)
    source = home.incoming / checked_name(file_name, "an upload")
    fsync_file(source)
    os.replace(str(source), str(folder / "specs.jsonl"))
    fsync_folder(folder)


def start(
    home: Home, root: Root, session_id: str, agent_sha256: str, fence: Optional[str] = None
) -> Answer:
    """Detach a worker unless there is one or nothing is left to do.

    "busy" names who holds the board, with the fence under which that was started.
    """
    folder = _folder(home, session_id)
    specs = read_specs(folder / "specs.jsonl")
    own = acquire(folder / "worker.lock")
    if own is None:
        pid = holder(folder / "worker.lock").get("pid")
        return {"session": session_id, "state": "running", "pid": pid}
    locks = [own]
    try:
        if _all_done(folder, [spec.run_id for spec in specs]):
            return {"session": session_id, "state": "finished", "pid": None}
        board = acquire(home.board_lock)
        if board is None:
            found = holder(home.board_lock)
            return {"state": "busy", "session": found.get("session"), "fence": found.get("fence")}
        locks.insert(0, board)
        # At once: who comes now and finds the board held has to read by whom.
        board.sign(session=session_id, fence=fence)
        session = Session(home, root, folder, specs, agent_sha256, (board, own), fence)
        pid = detach(lambda pid: work(session, pid), {board.fd, own.fd}, str(folder / "worker.log"))
    finally:
        for lock in locks:  # the daemon's now: this process may live on, see conversation
            lock.release()
    return {"session": session_id, "state": "started", "pid": pid}


def follow(
    home: Home, session_id: str, after_seq: int, write: Callable[[bytes], None], out_fd: int
) -> Optional[str]:
    """Write journal lines until the session has ended. Returns how: "finished", "interrupted".

    While there is none it says that it is alive: a cut network must not look like a long run.
    Returns None when the reader of out_fd is gone: nobody is left to follow for.
    """
    folder = _folder(home, session_id)
    reader = Reader(folder / "journal.jsonl", after_seq)
    said_s = time.monotonic()
    with changes_in(folder) as changes:
        wait = _Wait(out_fd, changes)
        while True:
            # Asked before reading: what is read after the worker's end is all there will be.
            alive = is_held(folder / "worker.lock")
            lines = [line for _, line in reader.new()]
            if not lines and time.monotonic() - said_s >= _ALIVE_S:
                lines = [_ALIVE]
            for line in lines:
                write(line)
                said_s = time.monotonic()
            if not alive:
                return _ended(reader)
            if wait.for_a_change(said_s + _ALIVE_S - time.monotonic()):
                return None


class _Wait:
    """Between two looks at a session: a look is CPU time on a board that measures.

    changes: of the session's folder; None to look every _POLL_MS.
    """

    def __init__(self, out_fd: int, changes: Optional[int]) -> None:
        self._changes = changes
        self._poller = select.poll()
        self._poller.register(out_fd, 0)  # only POLLERR and POLLHUP: the other end has closed
        if changes is not None:
            self._poller.register(changes, select.POLLIN)
        self._changed = True

    def for_a_change(self, longest_s: float) -> bool:
        """Returns soon after one, or when longest_s are over. Whether the reader is gone."""
        # A lock is let go a little after the close of its file is told of: look soon once more.
        soon = self._changed or self._changes is None
        found = dict(self._poller.poll(_POLL_MS if soon else max(0, int(longest_s * 1e3) + 1)))
        if self._changes is not None:
            self._changed = found.pop(self._changes, 0) != 0
            drain(self._changes)
        return bool(found)


def collect(home: Home, session_id: str, after_seq: int, write: Callable[[bytes], None]) -> str:
    """Write the journal lines there are. Returns "running", "finished" or "interrupted"."""
    folder = _folder(home, session_id)
    alive = is_held(folder / "worker.lock")
    reader = Reader(folder / "journal.jsonl", after_seq)
    for _, line in reader.new():
        write(line)
    return "running" if alive else _ended(reader)


def ack(home: Home, session_id: str, seq: int) -> bool:
    """Whether the session is gone: a finished one is removed once acknowledged to its end.

    True also for one that was removed before: the answer to the first time may have been lost.
    """
    folder = home.session(session_id)
    if not folder.is_dir():
        return True
    if is_held(folder / "worker.lock"):
        return False
    entries = [entry for entry, _ in read(folder / "journal.jsonl")]
    if not entries or entries[-1]["event"] != "finished" or entries[-1]["seq"] > seq:
        return False
    remove_tree(folder)
    return True


def stop(home: Home, session_id: str) -> str:
    """End the worker and its child; returns once they are gone. "finished" or "interrupted"."""
    folder = _folder(home, session_id)
    lock = folder / "worker.lock"
    for number, patience_s in ((signal.SIGTERM, _TERM_S), (signal.SIGKILL, _KILL_S)):
        if not is_held(lock):
            break
        _signal_until_free(lock, number, patience_s)
    if is_held(lock):
        raise AgentError(f"session {session_id} does not end", "reboot the board", exit_status=1)
    reader = Reader(folder / "journal.jsonl")
    for _ in reader.new():
        pass
    return _ended(reader)


def _signal_until_free(lock: Path, number: int, patience_s: float) -> None:
    deadline_s = time.monotonic() + patience_s
    sent_to = None
    while is_held(lock) and time.monotonic() < deadline_s:
        # Read while the lock is held: the pid is then that of a living worker, not a reused one.
        pid = holder(lock).get("pid")
        if isinstance(pid, int) and pid > 1 and pid != sent_to:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
            sent_to = pid
        time.sleep(_STOP_POLL_S)


def _folder(home: Home, session_id: str) -> Path:
    folder = home.session(session_id)
    if not folder.is_dir():
        raise AgentError(f"there is no session {session_id}", "start it, or see its id")
    return folder


def _all_done(folder: Path, run_ids: List[str]) -> bool:
    entries = [entry for entry, _ in read(folder / "journal.jsonl")]
    recorded = {entry.get("run_id") for entry in entries if entry["event"] == "record"}
    finished = bool(entries) and entries[-1]["event"] == "finished"
    return finished and recorded.issuperset(run_ids)


def _ended(reader: Reader) -> str:
    return "finished" if reader.last_event == "finished" else "interrupted"
