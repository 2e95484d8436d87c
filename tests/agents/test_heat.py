import os
import signal
import time
from pathlib import Path

import pytest

from device_agents import heat
from device_agents.contract import BoardState
from device_agents.errors import RunFailedError, StoppedError
from device_agents.heat import Burners, Heat
from device_agents.platforms import Linux


class FakeBurners:
    working = False

    def work(self) -> None:
        self.working = True

    def rest(self) -> None:
        self.working = False


class Oven(Linux):
    """Warms by 2 °C a look while something burns, and cools by 1 °C while nothing does."""

    def __init__(self, root, temp_c: float) -> None:
        super().__init__(root)
        self.burners = FakeBurners()
        self.now_c: float | None = temp_c
        self.blind_looks = 0
        self.looks = 0

    def observe(self, effective_freq_khz=None) -> BoardState:
        self.looks += 1
        if self.blind_looks:
            self.blind_looks -= 1
            return BoardState(monotonic_ns=1)
        self.now_c += 2 if self.burners.working else -1
        return BoardState(monotonic_ns=1, temp_c_by_zone=(("cpu", self.now_c),))

    def heat(self, low_c: float | None, high_c: float | None) -> Heat:
        return Heat(self, low_c, high_c, lambda seconds: None, burners=self.burners)


@pytest.fixture
def oven(tree):
    return lambda temp_c: Oven(tree.root, temp_c)


def never() -> float:
    return time.monotonic() + 1000


@pytest.mark.parametrize(
    ("start_c", "low_c", "high_c"),
    [(20, 50, 60), (90, 50, 60), (55, 50, 60), (20, 50, None), (90, None, 60), (20, 55, 58)],
)
def test_a_band_is_reached_from_below_from_above_and_from_within(oven, start_c, low_c, high_c):
    board = oven(start_c)
    board.heat(low_c, high_c).reach(never())
    assert (low_c or 0) <= board.now_c <= (high_c or 100)
    assert not board.burners.working


def test_from_outside_the_middle_is_the_aim(oven):
    warmed, cooled = oven(20), oven(90)
    warmed.heat(50, 60).reach(never())
    cooled.heat(50, 60).reach(never())
    assert 55 <= warmed.now_c <= 57
    assert 53 <= cooled.now_c <= 55


def test_within_nothing_is_done(oven):
    board = oven(56)
    assert board.heat(50, 60).keep() is False
    assert board.looks == 1


@pytest.mark.parametrize("start_c", [51.3, 60.7, 45, 70])
def test_a_band_that_is_left_or_about_to_be_is_brought_back_to_its_middle(oven, start_c):
    board = oven(start_c)
    kept = board.heat(50, 60)
    assert kept.keep() is True
    assert 53 <= board.now_c <= 57
    assert kept.keep() is False


def test_in_band_asks_for_the_band_and_no_more(oven):
    assert oven(51).heat(50, 60).in_band()
    assert not oven(50.9).heat(50, 60).in_band()


def test_a_band_that_is_not_reached_in_time_is_said(oven):
    board = oven(20)
    with pytest.raises(RunFailedError) as caught:
        board.heat(80, None).reach(time.monotonic())
    assert caught.value.error.kind == "condition"
    assert caught.value.error.fact == "80.. °C was not reached in time: it is 19.0 °C"
    assert not board.burners.working


def test_a_sensor_may_fail_for_a_moment_and_not_for_good(oven):
    board = oven(56)
    board.blind_looks = 4
    assert board.heat(50, 60).keep() is False
    board.blind_looks = 1000
    with pytest.raises(RunFailedError, match="no temperature can be read"):
        board.heat(50, 60).keep()


def test_burners_rest_when_the_worker_is_asked_to_end(oven):
    board = oven(20)

    def stopped(seconds: float) -> None:
        assert board.burners.working
        raise StoppedError

    with pytest.raises(StoppedError):
        Heat(board, 50, 60, stopped, burners=board.burners).reach(never())
    assert not board.burners.working


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def burnt_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11])


@pytest.fixture
def forked(monkeypatch):
    """The process ids of burners, as they are made."""
    pids = []
    fork = heat.fork

    def remembering(run, close_fds):
        pids.append(fork(run, close_fds))
        return pids[-1]

    monkeypatch.setattr(heat, "fork", remembering)
    return pids


def until(state: str, pid: int) -> None:
    while state_of(pid) not in state:
        os.sched_yield()


def test_burners_rest_until_they_work_and_rest_again(forked):
    burners = Burners(())
    try:
        assert len(forked) == len(os.sched_getaffinity(0))
        assert {state_of(pid) for pid in forked} == {"T"}
        burners.work()
        for pid in forked:
            while not burnt_ticks(pid):
                os.sched_yield()
        burners.rest()
        for pid in forked:
            until("T", pid)
    finally:
        burners.end()
    for pid in forked:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_process_that_inherits_burners_sets_them_to_work(forked):
    burners = Burners(())
    try:
        child = os.fork()
        if child == 0:
            burners.work()
            os._exit(0)
        os.waitpid(child, 0)
        for pid in forked:
            until("RS", pid)
    finally:
        burners.end()


def test_resting_burners_die_with_the_process_that_made_them():
    read_fd, write_fd = os.pipe()
    maker = os.fork()
    if maker == 0:
        os.close(read_fd)
        Burners(())
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(write_fd)
    os.waitpid(maker, 0)
    # Each burner holds the pipe's other end: it closes when the last is gone.
    with os.fdopen(read_fd, "rb") as stream:
        assert stream.read() == b""


def test_own_burners_are_made_at_once_and_end_at_close(tree, forked):
    made = Heat(Linux(tree.root), 50, None, lambda seconds: None)
    assert forked
    made.close()
    for pid in forked:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_band_that_is_open_below_needs_no_burners(tree, forked):
    Heat(Linux(tree.root), None, 50, lambda seconds: None).close()
    assert not forked
