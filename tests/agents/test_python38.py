"""The agent on the oldest Python it promises: a JetPack 5 board has 3.8 and no more."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from device_agents.contract import DeviceProfile, RunSpec, StoppingRule, decode


def python38() -> str:
    pyenv = sorted(Path.home().glob(".pyenv/versions/3.8*/bin/python"))
    for candidate in [shutil.which("python3.8"), *map(str, pyenv)]:
        if candidate is None:
            continue
        code = "import sys; print(sys.version_info[:2] == (3, 8))"
        # pyenv's shim is on the PATH also where it leads to nothing.
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip() == "True":
            return candidate
    pytest.skip("python3.8 missing: install it, or `pyenv install 3.8`")


@pytest.fixture
def old_agent(agent):
    agent.python = python38()
    return agent


def test_probe_and_check(old_agent):
    profile = decode(DeviceProfile, json.dumps(old_agent.run("probe").lines[0]))
    assert profile.python.startswith("3.8.")
    answer = old_agent.run("check")
    assert answer.status == 1
    assert "Traceback" not in answer.stderr
    python = answer.lines[0]["checks"][0]
    assert python["ok"]
    assert python["fact"].startswith("Python 3.8.")


def test_a_session(old_agent, stub, records_of):
    model = old_agent.push(stub(python=old_agent.python))
    rule = StoppingRule(samples_min=5, samples_max=20)
    runs = [RunSpec("c", "b", model, "executable", stopping=rule, repeat=i) for i in range(2)]
    runs.append(RunSpec("c", "b", model, "ort"))
    assert old_agent.start("s", runs).lines[0]["state"] == "started"
    lines = old_agent.follow("s")
    first, second, third = records_of(lines)
    assert first.verdict is not None, old_agent.log("s")
    assert second.runtime_version == "1"
    if dict(decode(DeviceProfile, json.dumps(lines[0]["profile"])).runtime_versions):
        assert third.error.kind == "model"
    else:
        assert third.error.kind == "runtime"
        assert third.error.fact.startswith("onnxruntime does not import")
        assert "pip install" in third.error.next_step
    assert old_agent.run("ack", "s", str(lines[-2]["seq"])).lines[0]["removed"] is True
