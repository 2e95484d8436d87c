"""Each runtime on a real model: what it answers, and what it says of what it cannot do."""

import json
import os
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from device_agents.errors import RunFailedError
from device_agents.runtimes import RUNTIMES, TensorSpec
from device_agents.runtimes.ort_profile import mean_operator_ns
from device_agents.tensors import max_abs_err

FIXTURES = Path(__file__).parents[1] / "fixtures" / "agents"


def onnx_bytes(dtype: str = "FLOAT") -> bytes:
    """y = x * 2 on a tensor of shape (batch, 3), the batch left free."""
    onnx = pytest.importorskip("onnx", reason="onnx missing: pip install onnx")
    kind = getattr(onnx.TensorProto, dtype)
    x = onnx.helper.make_tensor_value_info("x", kind, ["batch", 3])
    y = onnx.helper.make_tensor_value_info("y", kind, ["batch", 3])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "x"], ["y"])], "g", [x], [y])
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


@pytest.fixture
def load(tmp_path):
    runners = []

    def go(runtime: str, data: bytes, threads: int = 1):
        model = tmp_path / "model"
        model.write_bytes(data)
        runners.append(RUNTIMES[runtime](model, threads, tmp_path))
        return runners[-1]

    yield go
    for runner in runners:
        runner.close()


def refused(load, runtime: str, data: bytes) -> tuple[str, str]:
    with pytest.raises(RunFailedError) as caught:
        load(runtime, data)
    assert caught.value.error.next_step
    return caught.value.error.kind, caught.value.error.fact


def need(module: str):
    return pytest.importorskip(module, reason=f"{module} missing: pip install {module}")


def test_ort_starts_without_its_telemetry(tmp_path):
    need("onnxruntime")
    model = tmp_path / "model.onnx"
    model.write_bytes(onnx_bytes())
    home = tmp_path / "home"
    home.mkdir()
    asked = "import sys; from pathlib import Path; from device_agents.runtimes import RUNTIMES; "
    asked += "RUNTIMES['ort'](Path(sys.argv[1]), 1, Path(sys.argv[2])).close()"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    subprocess.run(
        [sys.executable, "-c", asked, model, tmp_path],
        env={**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home)},
        check=True,
        timeout=60,
    )
    assert list(home.rglob("*")) == []


def test_ort(load):
    need("onnxruntime")
    runner = load("ort", onnx_bytes())
    assert runner.inputs == (TensorSpec("x", "float32", (1, 3)),)
    assert runner.provider == "CPUExecutionProvider"
    assert runner.version[0].isdigit()
    runner.set_inputs([struct.pack("<3f", 1, 2, 3)])
    latency_ns = runner.time_batch(5)
    assert len(latency_ns) == 5
    assert all(type(ns) is int and ns > 0 for ns in latency_ns)
    assert struct.unpack("<3f", runner.read_outputs()[0]) == (2, 4, 6)


@pytest.mark.parametrize(("dtype", "name"), [("DOUBLE", "float64"), ("INT64", "int64")])
def test_ort_types(load, dtype, name):
    need("onnxruntime")
    assert load("ort", onnx_bytes(dtype)).inputs[0].dtype == name


def test_ort_format_is_told_by_its_bytes(load, tmp_path):
    onnxruntime = need("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(onnx_bytes(), options, providers=["CPUExecutionProvider"])
    runner = load("ort", (tmp_path / "model.ort").read_bytes())
    runner.set_inputs([struct.pack("<3f", 1, 2, 3)])
    runner.time_batch(1)
    assert struct.unpack("<3f", runner.read_outputs()[0]) == (2, 4, 6)


def test_ort_profile_names_each_operator(load, tmp_path):
    need("onnxruntime")
    runner = load("ort", onnx_bytes())
    runner.set_inputs([struct.pack("<3f", 1, 2, 3)])
    runner.time_batch(1)
    before = set(tmp_path.iterdir())
    ((name, mean_ns),) = runner.profile(5)
    assert name.endswith("(Add)")
    assert mean_ns >= 0
    assert set(tmp_path.iterdir()) == before


def event(cat: str, name: str, dur: object = 1, **args: str) -> dict[str, object]:
    return {
        "cat": cat,
        "pid": 1,
        "tid": 1,
        "dur": dur,
        "ts": 9,
        "ph": "X",
        "name": name,
        "args": args,
    }


def test_an_ort_profile_is_a_mean_without_the_first_run():
    # Form of onnxruntime 1.31's file, and of 1.10's fence events; figures made up.
    events = [
        event("Session", "model_loading_array", 300),
        event("Session", "session_initialization", 300),
        event("Node", "a_kernel_time", 900, op_name="Conv"),
        event("Session", "model_run", 900),
    ]
    for conv_us, body_us in ((10, 1), (13, 4)):
        events += [
            event("Node", "a_fence_before", 7, op_name="Conv"),
            event("Node", "a_kernel_time", conv_us, op_name="Conv"),
            event("Node", "loop/b_kernel_time", body_us, op_name="Add"),
            event("Node", "loop/b_kernel_time", body_us, op_name="Add"),
            event("Session", "SequentialExecutor::Execute", 50),
            event("Session", "model_run", 50),
        ]
    assert mean_operator_ns(json.dumps(events), 1) == (("a (Conv)", 11500), ("loop/b (Add)", 5000))
    # A run that was cut short has no model_run, and does not count.
    assert mean_operator_ns(json.dumps([*events, events[2]]), 2) == (
        ("a (Conv)", 13000),
        ("loop/b (Add)", 8000),
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "{}",
        "null",
        "[1, null, []]",
        "[" * 100_000,
        json.dumps([event("Session", "model_run")]),
        json.dumps([event("Node", "a_kernel_time", "9"), event("Session", "model_run")] * 2),
        json.dumps([{"cat": "Node", "name": "a_kernel_time", "dur": 1, "args": 5}]),
    ],
)
def test_a_broken_ort_profile_is_empty(text):
    assert mean_operator_ns(text, 1) == ()


@pytest.mark.parametrize("data", [b"", b"junk", b"\0\0\0\0ORTMjunk"])
def test_ort_refuses_what_is_no_model(load, data):
    need("onnxruntime")
    kind, fact = refused(load, "ort", data)
    assert kind == "model"
    assert "\n" not in fact


def test_ort_input_of_another_size(load):
    need("onnxruntime")
    runner = load("ort", onnx_bytes())
    with pytest.raises(RunFailedError, match="takes 12 bytes of float32, given 8"):
        runner.set_inputs([b"\0" * 8])


def test_tflite_answers_as_pytorch_did(load):
    need("ai_edge_litert")
    runner = load("tflite", (FIXTURES / "tiny.tflite").read_bytes())
    assert runner.inputs[0].shape == (1, 1, 8, 8)
    assert runner.version.startswith("ai-edge-litert ")
    assert runner.provider == "TfLiteXNNPackDelegate"
    runner.set_inputs([(FIXTURES / "tiny_input.f32").read_bytes()])
    assert all(ns > 0 for ns in runner.time_batch(3))
    golden = (FIXTURES / "tiny_output.f32").read_bytes()
    assert max_abs_err(golden, runner.read_outputs()[0]) < 1e-5


@pytest.mark.parametrize("data", [b"", b"junk", b"\x1c\0\0\0TFL3" + b"\xff" * 40])
def test_tflite_refuses_what_is_no_model(load, data):
    need("ai_edge_litert")
    assert refused(load, "tflite", data)[0] == "model"


def test_tflite_input_of_another_size(load):
    need("ai_edge_litert")
    runner = load("tflite", (FIXTURES / "tiny.tflite").read_bytes())
    with pytest.raises(RunFailedError, match="takes 256 bytes"):
        runner.set_inputs([b""])


def test_who_has_no_profile_says_so(load, stub):
    need("ai_edge_litert")
    for runner, name in (
        (load("tflite", (FIXTURES / "tiny.tflite").read_bytes()), "ai-edge-litert"),
        (load("executable", stub()), "stub"),
    ):
        with pytest.raises(RunFailedError, match=f"{name}.* tells .*no time an operator"):
            runner.profile(3)


def test_executable(load, stub, tmp_path):
    runner = load("executable", stub())
    # A blob is pushed without its execute bit, and stays so.
    assert not os.access(tmp_path / "model", os.X_OK)
    assert (runner.version, runner.provider) == ("1", "stub")
    assert runner.pid not in (os.getpid(), os.getppid())  # its memory is another process's
    assert runner.inputs == (TensorSpec("input", "float32", (1, 4)),)
    runner.set_inputs([struct.pack("<4f", 1, 2, 3, 4)])
    assert runner.time_batch(3) == [100000, 100001, 100002]
    assert struct.unpack("<4f", runner.read_outputs()[0]) == (2, 4, 6, 8)
    runner.close()
    assert not list(tmp_path.glob("run-*"))


def test_executable_that_may_be_executed_is_not_copied(stub, tmp_path):
    model = tmp_path / "model"
    model.write_bytes(stub())
    model.chmod(model.stat().st_mode | stat.S_IXUSR)
    runner = RUNTIMES["executable"](model, 1, tmp_path)
    assert not list(tmp_path.glob("run-*/program"))
    runner.close()


def script(body: str) -> bytes:
    return f"#!/bin/sh\n{body}\n".encode()


DESCRIBE = (
    'if [ "$1" = --describe ]; then echo \'{"input_shape":[1],"output_shape":[1],'
    '"runtime":"x","version":"1","precision":"fp32"}\'; exit; fi\n'
)


@pytest.mark.parametrize(
    ("data", "kind", "fact"),
    [
        (b"\x7fELF junk", "runtime", "cannot be executed"),
        (b"", "runtime", "cannot be executed"),
        (script("exit 3"), "crashed", "--describe ended with exit status 3"),
        (script("kill -ABRT $$"), "crashed", "--describe ended by SIGABRT"),
        (script("echo hello"), "runtime", "b'hello', which is not a JSON object"),
        (script("echo '{}'"), "runtime", "describes a shape as None"),
        (script(DESCRIBE + "exit 1"), "crashed", "ended with exit status 1"),
        (script(DESCRIBE + "echo '{\"ready\":false}'"), "runtime", "did not say that it is ready"),
        (script(DESCRIBE + 'echo \'{"error":"no memory"}\''), "model", "no memory"),
        (script(DESCRIBE + "printf '{\"ready\":'"), "crashed", "ended with exit status 0"),
    ],
)
def test_executables_that_break_the_protocol(load, tmp_path, data, kind, fact):
    found_kind, found_fact = refused(load, "executable", data)
    assert found_kind == kind
    assert fact in found_fact
    assert not list(tmp_path.glob("run-*"))


@pytest.mark.parametrize("answer", ["[0]", "[-5]", "[1.5]", "[true]", "[1, 2]", "null", "{}"])
def test_latencies_that_are_none(load, answer):
    ready, bench = '{"ready":true}', f'{{"latency_ns":{answer}}}'
    serve = f"echo '{ready}'; while read line; do echo '{bench}'; done"
    data = script(DESCRIBE + serve)
    with pytest.raises(RunFailedError, match="positive integers"):
        load("executable", data).time_batch(1)


def test_an_executable_that_dies_in_its_bench(load, stub):
    runner = load("executable", stub("os.abort()"))
    with pytest.raises(RunFailedError) as caught:
        runner.time_batch(1)
    assert caught.value.error.kind == "crashed"
    assert "ended by SIGABRT" in caught.value.error.fact


def test_an_unknown_error_of_the_program_is_said(load, stub):
    runner = load("executable", stub("raise ValueError"))
    with pytest.raises(RunFailedError, match="ended with exit status 1"):
        runner.time_batch(1)
