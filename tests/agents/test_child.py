"""The measuring process and the two pipes that it is held by."""

import os
import signal

import pytest

from device_agents.bench import Bench, Identity
from device_agents.child import BenchChild
from device_agents.contract import MeasurementRecord, RunSpec, decode
from device_agents.errors import RunFailedError, StoppedError
from device_agents.home import Home, Inputs
from device_agents.platforms import Linux

# Needs no model: the record says that there is no such runtime.
SPEC = RunSpec("campaign", "board", "0" * 64, "none")


@pytest.fixture
def stop_pipe():
    fds = os.pipe()
    yield fds
    for fd in fds:
        os.close(fd)


@pytest.fixture
def child_of(tree, tmp_path, stop_pipe):
    made = []

    def go(clock_khz=lambda: None):
        def bench():
            home = Home(tmp_path / "home")
            identity = Identity("p" * 64, "a" * 64, None, simulated=False)
            clock_khz()
            return Bench(identity, Linux(tree.root), Inputs(home), home.scratch, clock_khz)

        made.append(BenchChild(bench, (), stop_pipe[0]))
        return made[-1]

    yield go
    for child in made:
        child.end()


def measured(child: BenchChild) -> MeasurementRecord:
    return decode(MeasurementRecord, child.run(SPEC, 60))


def test_one_process_measures_many_runs(child_of):
    child = child_of()
    assert measured(child).error.kind == "runtime"
    pid = child._pid
    assert measured(child).spec == SPEC
    assert child._pid == pid


def test_a_child_that_ended_between_two_runs_is_made_anew(child_of):
    child = child_of()
    measured(child)
    pid = child._pid
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert measured(child).error.kind == "runtime"
    assert child._pid != pid


def test_a_bug_ends_the_child_and_not_the_worker(child_of, capfd):
    def bug():
        raise ZeroDivisionError

    child = child_of(bug)
    with pytest.raises(RunFailedError, match="exit status 70"):
        child.run(SPEC, 60)
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert child.end() is None


def test_a_run_without_an_end(child_of):
    child = child_of(lambda: signal.pause())
    with pytest.raises(RunFailedError) as caught:
        child.run(SPEC, 0.01)
    assert caught.value.error.kind == "timeout"
    assert caught.value.error.fact == "gave no result within 60 s"
    assert child.end() is None


def test_a_request_to_end_ends_the_child_too(child_of, stop_pipe):
    child = child_of(lambda: signal.pause())
    os.write(stop_pipe[1], b"!")
    with pytest.raises(StoppedError):
        child.run(SPEC, 60)
    assert child.end() is None
    assert child.end() is None
