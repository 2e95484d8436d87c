"""TensorRT engines on a board. No GPU is here: parsers meet what trtexec was seen to print, and
the build meets a stand-in program that prints the same."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest

from device_agents import trtexec
from device_agents.engines import build, find_trtexec, gpu_of
from device_agents.errors import AgentError
from device_agents.home import Home
from device_agents.locks import acquire
from device_agents.sysfs import Root

# Lines that trtexec 8.5 to 10 prints, with the figures of no particular board.
PASSED = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # /usr/src/tensorrt/bin/trtexec --onnx=model.onnx
[03/28/2024-07:10:12] [I] === Device Information ===
[03/28/2024-07:10:12] [I] Selected Device: Orin
[03/28/2024-07:10:12] [I] Compute Capability: 8.7
[03/28/2024-07:10:20] [I] === Performance summary ===
[03/28/2024-07:10:20] [I] Throughput: 1302.98 qps
[03/28/2024-07:10:20] [I] Latency: min = 0.78 ms, max = 1.3 ms, mean = 0.8 ms, median = 0.79 ms, \
percentile(90%) = 0.81 ms, percentile(95%) = 0.82 ms, percentile(99%) = 0.9 ms
[03/28/2024-07:10:20] [I] GPU Compute Time: min = 0.74 ms, max = 1.33 ms, mean = 0.758 ms, \
median = 0.714139 ms, percentile(90%) = 0.8 ms, percentile(95%) = 0.81 ms, percentile(99%) = 0.9 ms
[03/28/2024-07:10:20] [I] Total GPU Compute Time: 2.96536 s
&&&& PASSED TensorRT.trtexec [TensorRT v8502] # /usr/src/tensorrt/bin/trtexec --onnx=model.onnx
"""
FAILED = """\
&&&& RUNNING TensorRT.trtexec [TensorRT v8502] # /usr/src/tensorrt/bin/trtexec --onnx=model.onnx
[03/28/2024-07:10:16] [E] Error[3]: (Unnamed Layer* 4): kernel weights has count 9 but 27 was expected
[03/28/2024-07:10:16] [E] Engine could not be created from network
&&&& FAILED TensorRT.trtexec [TensorRT v8502] # /usr/src/tensorrt/bin/trtexec --onnx=model.onnx
"""  # noqa: E501


@pytest.mark.parametrize(
    ("number", "version"),
    [("8502", (8, 5, 2)), ("8601", (8, 6, 1)), ("100200", (10, 2, 0)), ("101602", (10, 16, 2))],
)
def test_the_version_is_read_from_the_first_line(number, version):
    text = f"&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] # trtexec --help\n"
    assert trtexec.parse_version(text) == version
    assert trtexec.parse_version("trtexec: command not found") is None


def test_the_facts_of_a_run_are_read():
    assert trtexec.passed(PASSED)
    assert trtexec.device(PASSED) == "Orin"
    assert trtexec.gpu_ms(PASSED) == 0.714139
    assert not trtexec.passed(FAILED)
    assert trtexec.gpu_ms(FAILED) is None
    assert trtexec.first_error(FAILED).startswith("Error[3]: (Unnamed Layer* 4)")
    assert trtexec.first_error("Segmentation fault\n") == "Segmentation fault"
    assert trtexec.first_error("") == "no word of why"


def test_an_exported_output_becomes_raw_floats():
    text = '[ { "name" : "output", "dimensions" : "1x3", "values" : [ 0.5, -1, 2e-05 ] } ]'
    assert trtexec.parse_output(text) == struct.pack("<3f", 0.5, -1, 2e-05)
    for bad in ("[]", "{}", '[{"values": []}]', '[{"values": ["a"]}]', "no json"):
        with pytest.raises(ValueError):  # noqa: PT011 - each says something else
            trtexec.parse_output(bad)


def test_a_command_names_model_engine_precision_and_golden_input(tmp_path):
    files = [tmp_path / name for name in ("m.onnx", "m.engine", "x.f32")]
    command = trtexec.build_command("trtexec", "fp32", *files, "input", tmp_path / "y.json")
    assert command[1:] == [
        f"--onnx={files[0]}", f"--saveEngine={files[1]}", "--noTF32",
        f"--loadInputs=input:{files[2]}", f"--exportOutput={tmp_path / 'y.json'}",
    ]  # fmt: skip
    half = trtexec.build_command("trtexec", "fp16", *files, "input", tmp_path / "y.json")
    assert "--fp16" in half
    assert "--noTF32" not in half


def test_a_tree_that_is_no_machines_own_has_no_trtexec_and_tells_its_gpu(tree):
    tree.put(
        {
            "proc/device-tree/compatible": "nvidia,p3768\0nvidia,p3767\0nvidia,tegra234\0",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano",
        }
    )
    assert find_trtexec(Root(tree.path)) is None
    assert gpu_of(Root(tree.path)) == "nvidia,tegra234 NVIDIA Jetson Orin Nano"


class Board:
    """A home with a model's blobs, and a stand-in for trtexec that counts its builds."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home")
        self.home.create()
        self.golden = self.blob(struct.pack("<2f", 1, 2)), self.blob(struct.pack("<2f", 0.5, -1))
        self.model = self.blob(b"an onnx model")
        self.calls = folder / "calls"
        self.program = folder / "trtexec"
        self.says(PASSED, [0.5, -1.00001])

    def blob(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.home.blobs / digest).write_bytes(data)
        return digest

    def says(self, text: str, values: list[float], status: int = 0) -> None:
        answer = json.dumps([{"name": "output", "dimensions": "1x2", "values": values}])
        self.program.write_text(
            "#!/bin/sh\n"
            f'case "$1" in --help) echo "{text.splitlines()[0]}"; exit 0;; esac\n'
            f"echo build >> {self.calls}\n"
            'for a in "$@"; do case "$a" in\n'
            '  --saveEngine=*) echo engine > "${a#*=}";;\n'
            f"  --exportOutput=*) cat > \"${{a#*=}}\" <<'END'\n{answer}\nEND\n  ;;\n"
            "esac; done\n"
            f"cat <<'END'\n{text}END\nexit {status}\n"
        )
        self.program.chmod(0o755)

    def build(self, precision: str = "fp32", gpu: str = "orin", atol: float = 1e-4):
        program = str(self.program)
        return build(self.home, program, gpu, self.model, "input", self.golden, precision, atol)

    def builds(self) -> int:
        return len(self.calls.read_text().splitlines()) if self.calls.exists() else 0

    def engines(self) -> list[str]:
        return sorted(p.suffix for p in (self.home.path / "engines").iterdir())


@pytest.fixture
def board(tmp_path) -> Board:
    return Board(tmp_path)


def test_an_engine_is_built_once_for_each_model_precision_version_and_gpu(board):
    first = board.build()
    assert first["built"] is True
    assert (first["tensorrt"], first["device"], first["gpu_ms"]) == ("8.5.2", "Orin", 0.714139)
    assert first["max_abs_err"] == pytest.approx(1e-5, rel=0.01)
    assert Path(first["path"]).read_text() == "engine\n"
    assert board.build() == {**first, "built": False}
    assert board.builds() == 1
    assert board.build("fp16", atol=0.1)["built"]
    assert board.build(gpu="xavier")["built"]
    board.says(PASSED.replace("v8502", "v100300"), [0.5, -1])
    assert board.build()["tensorrt"] == "10.3.0"
    assert board.builds() == 4
    assert board.engines() == [".engine"] * 4 + [".json"] * 4


def test_an_engine_that_was_damaged_is_built_anew(board):
    Path(board.build()["path"]).write_text("other")
    assert board.build()["built"] is True


def test_an_engine_that_answers_otherwise_is_not_kept(board):
    board.says(PASSED, [0.5, -1.1])
    with pytest.raises(AgentError, match=r"deviates 0\.1 .*0\.0001 is allowed\. Next: "):
        board.build()
    assert board.engines() == []


@pytest.mark.parametrize(
    ("text", "values", "status", "said"),
    [
        (FAILED, [0.5, -1], 1, r"built no engine: Error\[3\]"),
        (PASSED, [0.5, -1], 139, "built no engine"),
        (PASSED, [0.5], 0, "cannot be compared .*1 values"),
        (PASSED.replace("&&&& RUNNING", "&& hello"), [0.5, -1], 0, "does not say its version"),
        (PASSED.replace("v8502", "v110000"), [0.5, -1], 0, "builds no fp16 engine"),
    ],
)
def test_what_trtexec_cannot_do_is_said_and_leaves_nothing(board, text, values, status, said):
    board.says(text, values, status)
    with pytest.raises(AgentError, match=said):
        board.build("fp16" if "v11" in text else "fp32")
    assert not (board.home.path / "engines").is_dir() or board.engines() == []


def test_a_board_without_trtexec_or_with_a_session_says_so(board, monkeypatch):
    with pytest.raises(AgentError, match=r"there is no trtexec.*libnvinfer-bin"):
        build(board.home, None, "orin", board.model, "input", board.golden, "fp32", 1e-4)
    lock = acquire(board.home.board_lock)
    try:
        with pytest.raises(AgentError, match="a session is running here"):
            board.build()
    finally:
        lock.release()
    os.unlink(board.home.blob(board.model))
    with pytest.raises(AgentError, match="is not on the board"):
        board.build()
