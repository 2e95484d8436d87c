"""A lock is free once its holder is gone, whatever that holder forked."""

import os

import pytest

from device_agents import locks
from device_agents.processes import BUG_STATUS, describe_status, end_group, fork, kill_group


def test_a_lock_is_held_by_one(tmp_path):
    path = tmp_path / "lock"
    assert not locks.is_held(path)
    held = locks.acquire(path)
    assert held is not None
    held.sign(session="s", pid=7)
    assert locks.is_held(path)
    assert locks.holder(path) == {"session": "s", "pid": 7}
    assert locks.acquire(path) is None
    held.release()
    assert not locks.is_held(path)
    again = locks.acquire(path)
    assert again is not None
    again.sign(session="t")
    assert locks.holder(path) == {"session": "t"}
    again.release()


@pytest.mark.parametrize("text", ["", "{", "[]", "\0", "5"])
def test_a_holder_that_cannot_be_read(tmp_path, text):
    (tmp_path / "lock").write_text(text)
    assert locks.holder(tmp_path / "lock") == {}
    assert locks.holder(tmp_path / "none") == {}


def blocked_child(close_fds) -> "tuple[int, int]":
    """A child that has begun and waits for the end of a pipe. Returns its pid and our end."""
    read_fd, write_fd = os.pipe()
    ready_fd, begun_fd = os.pipe()

    def run():
        os.close(write_fd)
        os.write(begun_fd, b"!")
        os.read(read_fd, 1)

    pid = fork(run, close_fds)
    os.read(ready_fd, 1)
    for fd in (read_fd, ready_fd, begun_fd):
        os.close(fd)
    return pid, write_fd


@pytest.mark.parametrize("gives_up", [True, False])
def test_a_forked_child_holds_only_what_it_does_not_close(tmp_path, gives_up):
    held = locks.acquire(tmp_path / "lock")
    assert held is not None
    pid, write_fd = blocked_child([held.fd] if gives_up else [])
    held.release()
    # The child lives. Had it kept the descriptor, it would keep the board.
    assert locks.is_held(tmp_path / "lock") is not gives_up
    kill_group(pid)
    os.close(write_fd)
    assert not locks.is_held(tmp_path / "lock")


def test_a_child_that_ends_by_itself():
    pid, write_fd = blocked_child([])
    os.close(write_fd)
    assert describe_status(end_group(pid)) == "ended with exit status 0"


def test_a_child_that_raises_leaves_its_trace(capfd):
    def run():
        raise ZeroDivisionError

    assert describe_status(end_group(fork(run, []))) == f"ended with exit status {BUG_STATUS}"
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_a_child_that_is_killed():
    pid, write_fd = blocked_child([])
    assert describe_status(kill_group(pid)) == "ended by SIGKILL"
    os.close(write_fd)
