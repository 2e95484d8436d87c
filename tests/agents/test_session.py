"""Whole sessions of the agent as a program: detached, killed, crashed, timed out, followed."""

import hashlib
import json
import os
import signal
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from device_agents.contract import Condition, GoldenCheck, Reason, RunSpec, StoppingRule

FIXTURES = Path(__file__).parents[1] / "fixtures" / "agents"
QUICK = StoppingRule(warmup_min=2, warmup_max=10, samples_min=5, samples_max=20)


def spec(model_sha256: str, **fields) -> RunSpec:
    base = RunSpec("campaign", "board", model_sha256, "executable", stopping=QUICK, timeout_s=100)
    return replace(base, **fields)


def specs(model_sha256: str, count: int, **fields) -> list[RunSpec]:
    return [spec(model_sha256, repeat=i, **fields) for i in range(count)]


def events(lines: list[dict]) -> list[str]:
    return [line["event"] for line in lines]


def worker_pid(agent, session: str) -> int:
    return json.loads((agent.folder(session) / "worker.lock").read_text())["pid"]


def onnx_blob() -> bytes:
    onnx = pytest.importorskip("onnx", reason="onnx missing: pip install onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, [1, 4]) for name in ("x", "y")]
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def test_onnx_and_tflite_in_one_session(agent, records_of):
    for module in ("onnxruntime", "ai_edge_litert"):
        pytest.importorskip(module, reason=f"{module} missing: pip install {module}")
    twice = GoldenCheck(
        agent.push(struct.pack("<4f", 1, 2, 3, 4)), agent.push(struct.pack("<4f", 2, 4, 6, 8)), 1e-6
    )
    tiny = GoldenCheck(
        agent.push((FIXTURES / "tiny_input.f32").read_bytes()),
        agent.push((FIXTURES / "tiny_output.f32").read_bytes()),
        1e-4,
    )
    onnx = spec(agent.push(onnx_blob()), runtime="ort", golden=twice)
    tflite = spec(
        agent.push((FIXTURES / "tiny.tflite").read_bytes()), runtime="tflite", golden=tiny
    )
    answer = agent.start("s", [onnx, tflite, replace(onnx, golden=None, repeat=1)])
    assert answer.status == 0, answer.stderr
    assert answer.lines[0]["state"] == "started"
    lines = agent.follow("s")
    assert events(lines) == ["session", *["run_started", "record"] * 3, "finished", "end"]
    assert [line["seq"] for line in lines[:-1]] == list(range(1, 9))
    assert lines[-1]["state"] == "finished"
    first, second, third = records_of(lines)
    assert all(r.error is None for r in (first, second, third)), agent.log("s")
    assert first.max_abs_err == 0.0
    assert second.max_abs_err < 1e-4
    assert third.max_abs_err is None
    assert (first.spec, second.spec) == (onnx, tflite)
    assert first.execution_provider == "CPUExecutionProvider"
    assert 5 <= len(first.latency_ns) <= 20
    assert first.agent_sha256 == hashlib.sha256(agent.pyz.read_bytes()).hexdigest()
    assert lines[0]["agent_sha256"] == first.agent_sha256
    assert first.states[0].effective_freq_khz is not None


def test_start_again_and_ack(agent, stub):
    runs = specs(agent.push(stub()), 2)
    agent.start("s", runs)
    last = agent.follow("s")[-2]["seq"]
    assert agent.run("start", "s").lines == [{"session": "s", "state": "finished", "pid": None}]
    assert agent.run("ack", "s", str(last - 1)).lines == [{"session": "s", "removed": False}]
    assert agent.run("collect", "s", "--after", str(last - 1)).lines == [
        {"seq": last, "event": "finished"},
        {"event": "end", "state": "finished"},
    ]
    assert agent.run("ack", "s", str(last)).lines == [{"session": "s", "removed": True}]
    assert list((agent.home / "sessions").iterdir()) == []
    assert agent.run("ack", "s", str(last)).lines == [{"session": "s", "removed": True}]


def test_a_finished_session_takes_new_runs(agent, stub, records_of):
    runs = specs(agent.push(stub()), 3)
    agent.start("s", runs[:1])
    agent.follow("s")
    assert agent.start("s", runs).lines[0]["state"] == "started"
    lines = agent.follow("s")
    assert [r.spec.repeat for r in records_of(lines)] == [0, 1, 2]
    assert events(lines).count("finished") == 2
    assert lines[-1]["state"] == "finished"


def test_equal_runs_are_one(agent, stub, records_of):
    run = spec(agent.push(stub()))
    agent.start("s", [run, run])
    assert len(records_of(agent.follow("s"))) == 1


def test_attach_follows_and_ends(agent, stub, gate):
    agent.start("s", specs(agent.push(stub(gate.on_bench)), 1))
    with gate.arrived() as arrived:
        arrived.readline()
        with agent.attach("s") as follower:
            assert json.loads(follower.stdout.readline())["event"] == "session"
            assert json.loads(follower.stdout.readline())["event"] == "run_started"
            assert agent.run("collect", "s").lines[-1] == {"event": "end", "state": "running"}
            answer = agent.run("start", "s").lines[0]
            assert answer == {"session": "s", "state": "running", "pid": worker_pid(agent, "s")}
            assert agent.run("ack", "s", "99").lines[0]["removed"] is False
            gate.let_go()
            rest = [line for line in map(json.loads, follower.stdout) if line["event"] != "alive"]
    assert events(rest) == ["record", "finished", "end"]
    assert rest[-1]["state"] == "finished"
    assert follower.returncode == 0


def test_attach_says_that_it_is_alive_while_a_run_is_long(agent, stub, gate):
    agent.start("s", specs(agent.push(stub(gate.on_bench)), 1))
    with gate.arrived() as arrived:
        arrived.readline()
        with agent.attach("s") as follower:
            said = [json.loads(follower.stdout.readline())["event"] for _ in range(3)]
            gate.let_go()
            follower.stdout.read()
    assert said == ["session", "run_started", "alive"]


def test_attach_ends_when_its_reader_is_gone(agent, stub, gate):
    agent.start("s", specs(agent.push(stub(gate.on_bench)), 1))
    with gate.arrived() as arrived:
        arrived.readline()
        follower = agent.attach("s")
        follower.stdout.readline()
        follower.stdout.close()
        assert follower.wait(60) in (0, 1)  # though the session goes on
        assert agent.run("stop", "s").lines == [{"session": "s", "state": "interrupted"}]


def test_a_board_times_one_session_at_once(agent, stub, gate):
    runs = specs(agent.push(stub(gate.on_bench)), 1)
    agent.start("first", runs)
    with gate.arrived() as arrived:
        arrived.readline()
        answer = agent.start("second", runs)
        assert answer.status == 3
        assert answer.lines == [{"state": "busy", "session": "first", "fence": None}]
        gate.let_go()
    agent.follow("first")
    assert agent.start("second", runs).lines[0]["state"] == "started"
    agent.follow("second")


def test_a_killed_worker_loses_nothing_and_does_nothing_twice(agent, stub, gate, records_of):
    quick, held = agent.push(stub()), agent.push(stub(gate.on_bench))
    runs = [*specs(quick, 2), *specs(held, 1), *specs(quick, 1, threads=2)]
    agent.start("s", runs)
    with gate.arrived() as arrived:
        arrived.readline()
        os.kill(worker_pid(agent, "s"), signal.SIGKILL)
        # The pipe ends: nothing that the worker had started is alive any more.
        assert arrived.read() == ""
    lines = agent.follow("s")
    assert lines[-1] == {"event": "end", "state": "interrupted"}
    before = records_of(lines)
    assert [r.spec for r in before] == runs[:2]
    gate.open()
    with (agent.folder("s") / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"seq":7,"event":"rec')  # as a power cut leaves it
    answer = agent.run("start", "s")
    assert answer.lines[0]["state"] == "started", answer.stderr
    lines = agent.follow("s")
    assert lines[-1]["state"] == "finished"
    assert [line["seq"] for line in lines[:-1]] == list(range(1, len(lines)))
    assert events(lines).count("session") == 2
    after = records_of(lines)
    assert [r.spec for r in after] == runs
    assert after[:2] == before
    assert list((agent.home / "scratch").iterdir()) == []


def test_a_run_that_the_board_does_not_outlive_is_told_and_the_others_are_measured(
    agent, stub, gate, tree, records_of
):
    held, quick = agent.push(stub(gate.on_bench)), agent.push(stub())
    runs = [*specs(held, 1), *specs(quick, 1)]
    for boot_id in ("one", "two"):
        tree.put({"proc/sys/kernel/random/boot_id": boot_id})
        agent.start("s", runs)
        with gate.arrived() as arrived:
            arrived.readline()
            os.kill(worker_pid(agent, "s"), signal.SIGKILL)
            assert arrived.read() == ""
    tree.put({"proc/sys/kernel/random/boot_id": "three"})
    agent.start("s", runs)
    lines = agent.follow("s")
    assert lines[-1]["state"] == "finished"
    rebooting, measured = records_of(lines)
    assert rebooting.error.kind == "rebooted"
    assert "2 times" in rebooting.error.fact
    assert measured.verdict.valid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_board_is_put_back(agent, stub, gate, tree, number):
    tree.put(tree.cpufreq)
    condition = Condition(governor="performance", freq_khz=600000)
    # No kernel is behind these files, so nothing moves the clock that they report.
    tree.put({f"{tree.policy}/scaling_cur_freq": "600000"})
    agent.start("s", specs(agent.push(stub(gate.on_bench)), 1, condition=condition))
    governor, most = f"{tree.policy}/scaling_governor", f"{tree.policy}/scaling_max_freq"
    with gate.arrived() as arrived:
        arrived.readline()
        assert (tree.read(governor), tree.read(most)) == ("performance", "600000")
        os.kill(worker_pid(agent, "s"), number)
        assert arrived.read() == ""
    lines = agent.follow("s")
    assert events(lines) == ["session", "run_started", "end"]
    assert lines[-1]["state"] == "interrupted"
    # After SIGKILL the watchdog and the next worker may both do it: test_watchdog has it alone.
    agent.start("other", specs(agent.push(stub("pass # other")), 1))
    agent.follow("other")
    assert (tree.read(governor), tree.read(most)) == ("ondemand", "1500000")


def test_stop_of_a_worker_that_is_not_there(agent, stub):
    agent.start("s", specs(agent.push(stub()), 1))
    agent.follow("s")
    assert agent.run("stop", "s").lines == [{"session": "s", "state": "finished"}]


def test_crashes_and_timeouts_are_records_and_the_session_goes_on(agent, stub, records_of):
    hang = "while True: signal.pause()"
    runs = [
        spec(agent.push(stub("os.abort()"))),
        spec(agent.push(stub("os.kill(os.getppid(), signal.SIGKILL)"))),
        spec(agent.push(stub(hang)), timeout_s=1.0),
        spec(agent.push(stub()), runtime="no-such"),
        spec("0" * 64),
        spec(agent.push(stub()), condition=Condition(power_mode="MAXN")),
        spec(agent.push(stub())),
    ]
    agent.start("s", runs)
    lines = agent.follow("s")
    assert lines[-1]["state"] == "finished", agent.log("s")
    found = records_of(lines)
    assert [r.spec for r in found] == runs
    assert [r.error.kind if r.error else None for r in found] == [
        "crashed", "crashed", "timeout", "runtime", "missing_blob", "condition", None
    ]  # fmt: skip
    assert "SIGABRT" in found[0].error.fact
    assert "the measuring process was ended by SIGKILL" in found[1].error.fact
    assert found[2].error.fact == "gave no result within 1 s"
    assert all(r.error.next_step for r in found[:-1])
    assert all(len(r.states) == 1 for r in found[:-1])
    assert len(found[-1].latency_ns) >= 5


def test_a_bug_in_the_child_is_a_record_with_its_trace_in_the_log(agent, records_of):
    # A blob that is a folder: no error that a run is expected to meet.
    (agent.home / "blobs" / ("1" * 64)).mkdir(parents=True)
    agent.start("s", [spec("1" * 64)])
    (record,) = records_of(agent.follow("s"))
    assert record.error.kind in ("missing_blob", "crashed")


def test_throttling_that_comes_is_seen_through_the_whole_way(agent, stub, tree, records_of):
    tree.put({"sys/devices/platform/soc/soc:firmware/get_throttled": "0\n"})
    bits = tree.path / "sys/devices/platform/soc/soc:firmware/get_throttled"
    agent.start("s", [spec(agent.push(stub(f"open({str(bits)!r}, 'w').write('20002')")))])
    (record,) = records_of(agent.follow("s"))
    assert record.verdict.reasons == (Reason.THROTTLED,)
    assert record.states[0].throttled is False
    assert record.states[-1].throttled is True


def test_a_worker_keeps_no_pipe_of_its_caller(agent, stub, gate):
    # SSH ends a command only once nobody holds its stdout: `run` reads to the end of the pipe.
    answer = agent.start("s", specs(agent.push(stub(gate.on_bench)), 1))
    assert answer.lines[0]["state"] == "started"
    pid = worker_pid(agent, "s")
    with gate.arrived() as arrived:
        arrived.readline()
        assert os.getsid(pid) == os.getpgid(pid) != os.getsid(0)
        targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)]
        assert targets == [os.devnull, *[str(agent.folder("s") / "worker.log")] * 2]
        assert agent.run("stop", "s").lines == [{"session": "s", "state": "interrupted"}]
        assert arrived.read() == ""


def test_the_worker_imports_no_numpy(agent, stub, gate):
    agent.start("s", specs(agent.push(stub(gate.on_bench)), 1))
    with gate.arrived() as arrived:
        arrived.readline()
        maps = Path(f"/proc/{worker_pid(agent, 's')}/maps").read_text()
        assert "numpy" not in maps
        assert "onnxruntime" not in maps
        gate.let_go()
    agent.follow("s")


def test_an_installed_artifact_runs_from_its_folder(agent, stub, records_of):
    from device_agents.contract import ArtifactFile, Manifest, Target, canonical_json

    golden = {"in.f32": struct.pack("<4f", 1, 2, 3, 4), "out.f32": struct.pack("<4f", 2, 4, 6, 8)}
    contents = {"net": stub(), **golden}
    files = tuple(
        ArtifactFile(name, agent.push(data), len(data), executable=name == "net")
        for name, data in contents.items()
    )
    manifest = Manifest(
        "net", "executable", Target("t", "x86_64", "linux", "executable"), "net", "in.f32",
        "out.f32", (1, 4), (1, 4), files, 1e-4, 0.0, 0.9, (), *["0" * 64] * 4, 0, (),
    )  # fmt: skip
    artifact_id = agent.push(canonical_json(manifest))
    (installed,) = agent.run("install", artifact_id, "net").lines
    note = installed.pop("note")
    assert installed == {"installed": artifact_id, "previous": None, "signer": None}
    assert note.startswith("unsigned")
    for entry in files:
        (agent.home / "blobs" / entry.sha256).unlink()
    check = GoldenCheck(files[1].sha256, files[2].sha256, 1e-4)
    good = spec(files[0].sha256, artifact_id=artifact_id, golden=check)
    agent.start("s", [good, replace(good, model_sha256="1" * 64)])
    found, other = records_of(agent.follow("s"))
    assert found.error is None
    assert found.max_abs_err == 0.0
    assert other.error.kind == "missing_blob"
