"""The board refuses who held it before: tokens ascend, last over processes, and cost no disk."""

import json
import os
import subprocess
import threading
from dataclasses import replace

import pytest

from device_agents import fence as fences
from device_agents.contract import RunSpec, StoppingRule
from device_agents.errors import AgentError
from device_agents.fence import FENCED, Fence, parse_fence, passed
from device_agents.home import Home
from device_agents.locks import acquire, holder

LAB, OTHER_LAB = "0" * 16, "1" * 16
QUICK = StoppingRule(warmup_min=1, warmup_max=2, samples_min=5, samples_max=5)


def specs(model_sha256: str, count: int) -> list[RunSpec]:
    run = RunSpec("campaign", "board", model_sha256, "executable", stopping=QUICK)
    return [replace(run, repeat=i) for i in range(count)]


CHANGING = [
    ("start", "s"),
    ("stop", "s"),
    ("ack", "s", "1"),
    ("install", "0" * 64, "name"),
    ("adopt", "f=" + "0" * 64),
]


@pytest.mark.parametrize("verb", CHANGING)
def test_an_older_token_is_refused_whatever_it_asks(agent, stub, verb):
    agent.write_specs("s", specs(agent.push(stub()), 1))
    assert agent.run("has", "--fence", f"{LAB}:7").status == 0
    refused = agent.run(*verb, "--fence", f"{LAB}:6")
    assert refused.status == FENCED
    assert refused.lines == []
    assert "lease 6 of this board has ended, lease 7 was given since" in refused.stderr
    assert "Next: fleetcut boards" in refused.stderr
    assert (agent.folder("s") / "specs.jsonl").exists()


def test_the_same_token_and_a_newer_one_and_another_labs_pass(agent):
    for fence in (f"{LAB}:7", f"{LAB}:7", f"{LAB}:90", f"{OTHER_LAB}:1"):
        assert agent.run("has", "--fence", fence).status == 0
    assert agent.run("has", "--fence", f"{LAB}:89").status == FENCED
    assert agent.run("has").status == 0  # a person at the board


@pytest.mark.parametrize("text", ["", "7", "xyz:1", f"{LAB}:-1", f"../{LAB}:1", f"{LAB}:1\n"])
def test_what_is_no_fence_is_a_usage_error(agent, text):
    answer = agent.run("has", "--fence", text)
    assert answer.status == 2
    assert "is no fence" in answer.stderr


def test_busy_tells_under_which_lease_the_other_session_was_started(agent, stub, gate):
    runs = specs(agent.push(stub(gate.on_bench)), 1)
    for session in ("old", "new"):
        agent.write_specs(session, runs)
        agent.started.append(session)
    agent.run("start", "old", "--fence", f"{LAB}:3")
    with gate.arrived() as arrived:
        arrived.readline()
        busy = agent.run("start", "new", "--fence", f"{LAB}:4").lines
        assert busy == [{"state": "busy", "session": "old", "fence": f"{LAB}:3"}]
        assert agent.run("stop", "old", "--fence", f"{LAB}:3").status == FENCED
        assert agent.run("stop", "old", "--fence", f"{LAB}:4").lines[0]["state"] == "interrupted"
    gate.open()
    assert agent.run("start", "new", "--fence", f"{LAB}:4").lines[0]["state"] == "started"


def test_no_newer_lease_comes_between_while_an_older_verb_runs(tmp_path):
    home = Home(tmp_path / "home")
    entered = []
    with passed(home, Fence(LAB, 1)):
        newer = threading.Thread(target=lambda: _enter(home, entered))
        newer.start()
        newer.join(0.2)
        assert entered == []
    newer.join(60)
    assert entered == [2]
    with pytest.raises(AgentError), passed(home, Fence(LAB, 1)):
        pass


def _enter(home, entered):
    with passed(home, Fence(LAB, 2)):
        entered.append(2)


def test_a_fence_whose_first_writing_was_cut_counts_as_new(tmp_path):
    home = Home(tmp_path / "home")
    with passed(home, Fence(LAB, 5)):
        pass
    (home.path / "fences" / LAB).write_bytes(b"000")
    entered: list[int] = []
    with passed(home, Fence(LAB, 1)):
        entered.append(1)
    assert entered == [1]
    with pytest.raises(AgentError), passed(home, Fence(LAB, 0)):
        pass


def test_databases_that_come_and_go_do_not_fill_the_board(tmp_path, monkeypatch):
    monkeypatch.setattr(fences, "_LABS_MAX", 3)
    home = Home(tmp_path / "home")
    for number in range(6):
        with passed(home, parse_fence(f"{number:016x}:1")):
            os.utime(home.path / "fences" / f"{number:016x}", (number, number))
    assert {path.name for path in (home.path / "fences").iterdir()} == {
        f"{number:016x}" for number in (3, 4, 5)
    }


def test_a_lock_and_a_fence_are_renewed_on_a_full_disk(tmp_path):
    """A tmpfs without a page left: what stands there already can still be written over."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", mount], capture_output=True
    ).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        home = Home(mount / "home")
        with passed(home, Fence(LAB, 1)):
            lock = acquire(home.board_lock)
            lock.sign(session="old", pid=1, fence=None)
        with pytest.raises(OSError, match="No space"):
            (mount / "ballast").write_bytes(bytes(1 << 20))
        with passed(home, Fence(LAB, 2)):
            lock.sign(session="new-and-longer", pid=2, fence=f"{LAB}:2")
        assert holder(home.board_lock)["session"] == "new-and-longer"
        lock.sign(pid=3)
        assert json.loads(home.board_lock.read_bytes()) == {"pid": 3}
        lock.release()
        with pytest.raises(AgentError), passed(home, Fence(LAB, 1)):
            pass
    finally:
        subprocess.run(["umount", mount], check=True)
