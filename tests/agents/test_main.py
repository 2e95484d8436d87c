"""The agent as a program: what it prints, how it ends, and what it says of bad input."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import device_agents
from device_agents.contract import BoardState, DeviceProfile, RunSpec, decode, encode

SHA = "0" * 64


def refused(agent, *args: str, status: int = 2) -> str:
    answer = agent.run(*args)
    assert answer.status == status
    assert answer.lines == []
    assert "Traceback" not in answer.stderr
    (line,) = answer.stderr.splitlines()
    assert ". Next: " in line
    assert line.startswith(f"{os.uname().nodename}: ")
    return line


def test_probe_and_state(agent, tree):
    tree.put({"proc/sys/kernel/hostname": "pi4-07", "etc/machine-info": "DEPLOYMENT=simulated"})
    answer = agent.run("probe")
    assert answer.status == 0
    profile = decode(DeviceProfile, json.dumps(answer.lines[0]))
    assert (profile.hostname, profile.simulated) == ("pi4-07", True)
    answer = agent.run("state")
    assert decode(BoardState, json.dumps(answer.lines[0])).monotonic_ns > 0


def test_the_root_may_come_from_the_environment(agent, tree):
    tree.put({"proc/sys/kernel/hostname": "pi4-07"})
    done = subprocess.run(
        [agent.python, str(agent.pyz), "probe"],
        capture_output=True,
        env={**os.environ, "FLEETCUT_BOARD_ROOT": str(tree.path)},
    )
    assert decode(DeviceProfile, done.stdout).hostname == "pi4-07"


def test_options_may_follow_the_verb(agent, tree):
    tree.put({"proc/sys/kernel/hostname": "pi4-07"})
    argv = [agent.python, str(agent.pyz), "probe", "--root", str(tree.path)]
    done = subprocess.run(argv, capture_output=True)
    assert decode(DeviceProfile, done.stdout).hostname == "pi4-07"


def test_check_says_what_fails_and_what_to_do(agent, tree):
    answer = agent.run("check")
    assert answer.status == 1
    checks = {check["name"]: check for check in answer.lines[0]["checks"]}
    assert list(checks) == [
        "python", "glibc", "home", "disk", "ort", "tflite", "thermal", "cpufreq", "clock",
        "telemetry", "battery", "signatures",
    ]  # fmt: skip
    assert all(set(check) == {"name", "ok", "fact", "next_step"} for check in checks.values())
    assert not checks["thermal"]["ok"]
    assert not checks["cpufreq"]["ok"]
    assert checks["battery"]["ok"]
    tree.put(tree.cpufreq)
    tree.put(
        {
            "sys/class/thermal/thermal_zone0/type": "cpu",
            "sys/class/thermal/thermal_zone0/temp": "50000",
            "sys/class/power_supply/BAT0/type": "Battery",
            "sys/class/power_supply/BAT0/capacity": "?",
        }
    )
    checks = {check["name"]: check for check in agent.run("check").lines[0]["checks"]}
    assert checks["thermal"]["ok"]
    assert checks["cpufreq"] == {
        "name": "cpufreq",
        "ok": True,
        "fact": "1 policies, readable and writable",
        "next_step": "nothing to do",
    }
    assert not checks["battery"]["ok"]


def test_blobs(agent):
    data = b"model"
    sha256 = hashlib.sha256(data).hexdigest()
    assert agent.run("has", SHA, sha256).lines == [{"present": [], "missing": [SHA, sha256]}]
    (agent.home / "incoming").mkdir(parents=True, exist_ok=True)
    (agent.home / "incoming" / "up").write_bytes(data)
    assert "has hash" in refused(agent, "adopt", f"{'up'}={SHA}", status=1)
    (agent.home / "incoming" / "up").write_bytes(data)
    assert agent.run("adopt", f"{'up'}={sha256}").lines == [{"adopted": [sha256]}]
    assert agent.run("has", SHA, sha256).lines == [{"present": [sha256], "missing": [SHA]}]


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("frob",),
        ("has", "xyz"),
        ("adopt", f"{'../up'}={SHA}"),
        ("adopt", "up"),
        ("start", "../../etc"),
        ("start", "a/b"),
        ("start", "unknown"),
        ("attach", "unknown"),
        ("attach", "unknown", "--after", "-1"),
        ("collect", "unknown", "--after", "x"),
        ("collect", "unknown", "--after", "²"),
        ("ack", "s"),
        ("ack", "../s", "1"),
        ("stop", ""),
        ("install", "xyz", "net"),
        ("install", SHA, "../net"),
        ("probe", "--frob"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(agent, args):
    assert refused(agent, *args)


def test_a_session_without_specs(agent):
    agent.folder("s").mkdir(parents=True)
    assert "specs.jsonl cannot be read" in refused(agent, "start", "s")


GOOD = encode(RunSpec("c", "b", SHA, "ort"))


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("", "is not JSON"),
        ("junk", "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", "expected an object"),
        (GOOD.replace("RunSpec", "Verdict"), "expected 'RunSpec'"),
        (GOOD.replace('"schema":1', '"schema":999'), "newer than"),
        (GOOD.replace('"threads":1', '"threads":"two"'), "body.threads"),
        (GOOD.replace('"threads":1', '"threads":0'), "threads >= 1"),
        (GOOD.replace('"repeat":0', '"repeat":0,"extra":1'), "body.extra"),
        (GOOD.replace('"timeout_s":60', '"timeout_s":Infinity'), "JSON"),
        (GOOD.replace(SHA, "../../../etc/passwd"), "is not a SHA-256"),
        (GOOD.replace('"artifact_id":null', '"artifact_id":"../x"'), "artifact_id '../x'"),
        (
            GOOD.replace(
                '"golden":null',
                f'"golden":{{"input_sha256":"/etc","output_sha256":"{SHA}","atol":1}}',
            ),
            "golden.input_sha256",
        ),
    ],
)
def test_a_bad_spec_is_refused_by_its_line(agent, line, fact):
    agent.folder("s").mkdir(parents=True)
    text = f"{GOOD}\n{line}\n".encode("latin-1")
    (agent.folder("s") / "specs.jsonl").write_bytes(text)
    message = refused(agent, "start", "s")
    assert "specs.jsonl line 2: " in message
    assert fact in message
    assert not (agent.folder("s") / "journal.jsonl").exists()


def test_an_empty_list_of_runs(agent):
    agent.write_specs("s", [])
    assert "holds no run" in refused(agent, "start", "s")


def test_a_home_that_cannot_be_made(agent, tmp_path):
    agent.home = tmp_path / "file"
    agent.home.write_text("")
    assert "cannot be made" in refused(agent, "adopt", f"{'up'}={SHA}", status=1)


def test_help_is_no_error(agent):
    done = subprocess.run(agent.argv("--help"), capture_output=True, text=True)
    assert done.returncode == 0
    assert "attach" in done.stderr  # stdout is for JSON lines alone


def test_a_librarys_print_does_not_reach_stdout(agent):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from device_agents import main\n"
        "real = main.probe\n"
        "def noisy(root):\n"
        "    print('from python'); os.write(1, b'from C')\n"
        "    return real(root)\n"
        "main.probe = noisy\n"
        "sys.exit(main.main())\n"
    )
    argv = [agent.python, "-c", code, str(agent.pyz), "--root", str(agent.root), "probe"]
    done = subprocess.run(argv, capture_output=True)
    assert done.returncode == 0
    assert decode(DeviceProfile, done.stdout).cores >= 1
    assert b"from python" in done.stderr
    assert b"from C" in done.stderr


def test_a_reader_that_goes_away_is_no_traceback(agent):
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    done = subprocess.run(agent.argv("probe"), stdout=write_fd, stderr=subprocess.PIPE)
    os.close(write_fd)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_a_start_reads_no_module_that_only_some_verbs_need():
    """Every connection starts an agent, on boards that are slow to import."""
    source = "import sys, device_agents.main; print(*sorted(sys.modules))"
    package = Path(device_agents.__file__).parent.parent
    command = [sys.executable, "-S", "-c", source]
    done = subprocess.run(command, cwd=package, check=True, stdout=subprocess.PIPE, text=True)
    rare = {"checks", "deployments", "engines", "install", "trust", "wheels"}
    unwanted = {f"device_agents.{name}" for name in rare} | {"importlib.metadata", "zipfile"}
    assert not unwanted & set(done.stdout.split())
