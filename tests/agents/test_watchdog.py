"""What a worker leaves behind when it is killed: nothing, and no further call of the agent."""

import json
import os
import select
import signal
from pathlib import Path

import pytest

from device_agents.contract import Condition, RunSpec, StoppingRule
from device_agents.platforms import Linux
from device_agents.restore import Restorer
from device_agents.watchdog import Watchdog

QUICK = StoppingRule(warmup_min=2, warmup_max=10, samples_min=5, samples_max=20)
HELD = Condition(governor="performance", freq_khz=600000)


def runs(model_sha256: str, condition: Condition = HELD) -> list[RunSpec]:
    return [
        RunSpec(
            "c", "b", model_sha256, "executable", condition=condition, stopping=QUICK, timeout_s=100
        )
    ]


def settings(tree) -> tuple[str, ...]:
    names = ("scaling_governor", "scaling_min_freq", "scaling_max_freq")
    return tuple(tree.read(f"{tree.policy}/{name}") for name in names)


BEFORE = ("ondemand", "600000", "1500000")
DURING = ("performance", "600000", "600000")


def worker_pid(agent, session: str) -> int:
    return json.loads((agent.folder(session) / "worker.lock").read_text())["pid"]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def watchdogs(worker: int) -> list[int]:
    """Children of the worker that have a session of their own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                pid = int(entry.name)
                if parent_of(pid) == worker and os.getsid(pid) == pid:
                    found.append(pid)
            except (OSError, IndexError):
                continue
    return found


def wait_for_end(pidfd: int) -> None:
    assert select.select([pidfd], [], [], 60)[0], "the process lives on"
    os.close(pidfd)


@pytest.fixture
def board(tree):
    # No kernel is behind these files, so nothing moves the clock that they report.
    return tree.put(tree.cpufreq).put({f"{tree.policy}/scaling_cur_freq": "600000"})


def test_a_killed_worker_leaves_the_board_as_it_was(agent, stub, gate, board):
    agent.start("s", runs(agent.push(stub(gate.on_bench))))
    with gate.arrived() as arrived:
        arrived.readline()
        assert settings(board) == DURING
        worker = worker_pid(agent, "s")
        (watchdog,) = watchdogs(worker)
        ended = os.pidfd_open(watchdog)
        os.kill(worker, signal.SIGKILL)
        wait_for_end(ended)
    assert settings(board) == BEFORE
    assert not (agent.home / "restore.json").exists()


def test_the_whole_session_may_be_killed(agent, stub, gate, board):
    # As systemd-logind or a terminal would: every process of the worker's session and group.
    agent.start("s", runs(agent.push(stub(gate.on_bench))))
    with gate.arrived() as arrived:
        arrived.readline()
        worker = worker_pid(agent, "s")
        (watchdog,) = watchdogs(worker)
        ended = os.pidfd_open(watchdog)
        os.kill(watchdog, signal.SIGTERM)
        os.killpg(os.getpgid(worker), signal.SIGKILL)
        wait_for_end(ended)
    assert settings(board) == BEFORE


def test_it_holds_no_lock_and_no_pipe_but_its_own(agent, stub, gate, board):
    agent.start("s", runs(agent.push(stub(gate.on_bench))))
    with gate.arrived() as arrived:
        arrived.readline()
        (watchdog,) = watchdogs(worker_pid(agent, "s"))
        held = {
            fd.name: os.readlink(fd)
            for fd in Path(f"/proc/{watchdog}/fd").iterdir()
            if fd.name not in "012"
        }
        assert len(held) == 1
        assert next(iter(held.values())).startswith("pipe:")
        gate.let_go()
    agent.follow("s")


def test_it_ends_with_a_worker_that_ends_by_itself(agent, stub, gate, board):
    agent.start("s", runs(agent.push(stub(gate.on_bench))))
    with gate.arrived() as arrived:
        arrived.readline()
        (watchdog,) = watchdogs(worker_pid(agent, "s"))
        ended = os.pidfd_open(watchdog)
        gate.let_go()
    assert agent.follow("s")[-1]["state"] == "finished"
    wait_for_end(ended)
    assert settings(board) == BEFORE


def test_where_nothing_is_touched_there_is_none(agent, stub, gate, board):
    agent.start("s", runs(agent.push(stub(gate.on_bench)), Condition()))
    with gate.arrived() as arrived:
        arrived.readline()
        assert watchdogs(worker_pid(agent, "s")) == []
        gate.let_go()
    agent.follow("s")


def restorer(tree, tmp_path) -> Restorer:
    return Restorer(Linux(tree.root), tmp_path / "restore.json")


def set_to(tree, governor: str) -> None:
    tree.put({f"{tree.policy}/scaling_governor": governor})


def test_a_late_watchdog_leaves_the_next_worker_alone(board, tmp_path):
    killed, following = restorer(board, tmp_path), restorer(board, tmp_path)
    killed.remember()
    set_to(board, "performance")
    following.restore()
    following.remember()
    set_to(board, "powersave")
    killed.restore(only_own=True)
    assert settings(board)[0] == "powersave"
    assert (tmp_path / "restore.json").exists()
    following.restore(only_own=True)
    assert settings(board)[0] == "ondemand"


def test_restoring_twice_is_restoring_once(board, tmp_path):
    killed = restorer(board, tmp_path)
    killed.remember()
    set_to(board, "performance")
    killed.restore(only_own=True)
    set_to(board, "powersave")  # by whoever comes after
    killed.restore(only_own=True)
    restorer(board, tmp_path).restore()
    assert settings(board)[0] == "powersave"


def test_the_next_worker_waits_for_a_watchdog_at_work(board, tmp_path):
    """Both come to it at once: the second finds nothing left to do."""
    killed = restorer(board, tmp_path)
    killed.remember()
    set_to(board, "performance")
    arrived, arrive = os.pipe()
    held, release = os.pipe()
    put_back = killed._put_back

    def slowly(*remembered):
        os.write(arrive, b"!")
        os.read(held, 1)
        return put_back(*remembered)

    killed._put_back = slowly
    watchdog = os.fork()
    if watchdog == 0:
        killed.restore(only_own=True)
        os._exit(0)
    os.read(arrived, 1)
    following = os.fork()
    if following == 0:
        restorer(board, tmp_path).restore()
        os._exit(settings(board) != BEFORE)
    os.write(release, b"!")
    assert os.waitpid(watchdog, 0)[1] == 0
    assert os.waitpid(following, 0)[1] == 0
    assert settings(board) == BEFORE
    for fd in (arrived, arrive, held, release):
        os.close(fd)


def test_a_watchdog_that_was_killed_is_made_anew(tmp_path):
    done = tmp_path / "done"
    watchdog = Watchdog(done.touch)
    watchdog.start()
    (first,) = watchdogs(os.getpid())
    watchdog.start()
    assert watchdogs(os.getpid()) == [first]
    ended = os.pidfd_open(first)
    os.kill(first, signal.SIGKILL)
    wait_for_end(ended)
    watchdog.start()
    assert first not in watchdogs(os.getpid())
    watchdog.end()
    assert done.exists()
    assert watchdogs(os.getpid()) == []
