"""A folder's writes are told of; a follower ends with its session where they are, or are not."""

import contextlib
import os
import select
import threading

import pytest

from device_agents import sessions
from device_agents.changes import changes_in, drain
from device_agents.home import Home
from device_agents.journal import Journal
from device_agents.locks import acquire


def is_told(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


def test_writes_and_the_end_of_a_writer_are_told_of(tmp_path):
    path = tmp_path / "journal"
    with path.open("wb", buffering=0) as stream, changes_in(tmp_path) as fd:
        assert fd is not None
        assert not is_told(fd)
        stream.write(b"line\n")
        assert is_told(fd)
        drain(fd)
        assert not is_told(fd)
        path.read_bytes()
        assert not is_told(fd)
        stream.close()
        assert is_told(fd)


def test_a_folder_that_is_not_there(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    with changes_in(tmp_path / "absent") as fd:
        assert fd is None
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("tells", [True, False])
def test_a_follower_sees_what_comes_and_the_end(tmp_path, monkeypatch, tells):
    if not tells:
        monkeypatch.setattr(sessions, "changes_in", lambda folder: contextlib.nullcontext(None))
    home = Home(tmp_path / "home")
    home.create()
    folder = home.session("s")
    folder.mkdir()
    lock = acquire(folder / "worker.lock")
    journal = Journal(folder / "journal.jsonl")
    said = threading.Semaphore(0)
    lines = []

    def write(line: bytes) -> None:
        lines.append(line)
        said.release()

    read_fd, write_fd = os.pipe()
    ended = []
    follower = threading.Thread(
        target=lambda: ended.append(sessions.follow(home, "s", 0, write, write_fd))
    )
    follower.start()
    try:
        journal.append("run_started", run_id="r")
        said.acquire()
        journal.append("finished")
    finally:
        journal.close()
        lock.release()
        follower.join()
        os.close(read_fd)
        os.close(write_fd)
    assert [b"run_started" in lines[0], b"finished" in lines[-1]] == [True, True]
    assert ended == ["finished"]
