"""The native executable keeps the contract that the device agent is written against."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compiler.targets import BuiltModel, TargetError, build_executable, executable
from compiler.targets.built import raw_bytes, reference_output
from compiler.targets.executable import KERNEL_LIBRARY, RUNTIME_LIBRARIES, run_executable
from device_agents.contract.artifacts import Target

TARGET = Target("workstation", platform.machine(), "linux", "executable")


class Small(nn.Module):
    """A residual network whose mean must be rewritten to be XNNPACK's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.classifier = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.stem(x))
        return self.classifier((x + self.depthwise(x)).mean((2, 3)))


class Unusual(nn.Module):
    """An operator that XNNPACK does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x).mean((2, 3))


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    if shutil.which("g++") is None:
        reason = "native executables need g++ (Debian: apt-get install g++)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def example() -> Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def built(network, example, tmp_path_factory) -> BuiltModel:
    return build_executable(network, example, tmp_path_factory.mktemp("native"), TARGET)


@pytest.fixture(scope="module")
def program(built) -> Path:
    return built.files[0].path


def call(program: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program, *arguments], input=stdin, capture_output=True, timeout=60, check=False
    )


def serve(program: Path, *lines: str) -> list[dict[str, object]]:
    done = call(
        program, "--serve", "--threads", "1", stdin="".join(f"{x}\n" for x in lines).encode()
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_is_one_program_and_its_stripped_libraries(built, program):
    assert built.model_file == "model"
    assert [file.name for file in built.files] == [
        "model",
        *(f"lib/{library}" for library in RUNTIME_LIBRARIES),
    ]
    assert [file.executable for file in built.files] == [True, False, False, False]
    assert program.read_bytes()[:4] == b"\x7fELF"
    assert b"site-packages" not in program.read_bytes()
    assert "Redistribution and use" in "".join(built.licences)


def test_stdin_to_stdout_answers_as_pytorch_does(built, program, network, example):
    other = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    for x in (example, other):
        done = call(program, stdin=raw_bytes(x.numpy()))
        assert (done.returncode, done.stderr) == (0, b"")
        found = np.frombuffer(done.stdout, "<f4").reshape(built.output_shape)
        np.testing.assert_allclose(found, reference_output(network, x), rtol=0, atol=1e-4)
    assert built.max_abs_err <= built.atol == 1e-4


@pytest.mark.parametrize(
    ("change", "fact"),
    [(lambda x: x[:-1], b"stdin ends before"), (lambda x: x + b"\0", b"stdin is longer")],
    ids=["short", "long"],
)
def test_a_tensor_of_another_size_is_refused(built, program, change, fact):
    done = call(program, stdin=change(built.golden_input))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(fact)


def test_describe(program):
    done = call(program, "--describe")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {
        "input_shape": [1, 3, 32, 32],
        "output_shape": [1, 10],
        "runtime": "executorch-xnnpack",
        "version": "1.5.1",
        "precision": "fp32",
    }


def test_selftest(program, built, tmp_path):
    done = call(program, "--selftest")
    found = json.loads(done.stdout)
    assert (done.returncode, found["passed"], found["atol"]) == (0, True, 1e-4)
    assert found["max_abs_err"] == pytest.approx(built.max_abs_err, abs=1e-6)


def test_selftest_fails_when_the_golden_output_does_not_fit(program, built, tmp_path):
    content = program.read_bytes()
    assert content.count(built.golden_output) == 1
    other = raw_bytes(np.frombuffer(built.golden_output, "<f4") + np.float32(0.5))
    shutil.copytree(program.parent / "lib", tmp_path / "lib")
    changed = tmp_path / "model"
    changed.write_bytes(content.replace(built.golden_output, other))
    changed.chmod(0o755)
    done = call(changed, "--selftest")
    found = json.loads(done.stdout)
    assert (done.returncode, found["passed"]) == (1, False)
    assert found["max_abs_err"] == pytest.approx(0.5, abs=1e-4)


def test_benchmark(program):
    for arguments, samples in ((("--benchmark",), 100), (("--benchmark", "7"), 7)):
        done = call(program, *arguments, "--threads", "2")
        latency_ns = json.loads(done.stdout)["latency_ns"]
        assert len(latency_ns) == samples
        assert all(isinstance(sample, int) and 0 < sample < 10**9 for sample in latency_ns)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--what"],
        ["model.onnx"],
        ["--threads"],
        ["--threads", "0"],
        ["--threads", "two"],
        ["--benchmark", "0"],
        ["--benchmark", "5x"],
        ["--serve", "--describe"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_not_understood(program, arguments):
    done = call(program, *arguments)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"usage: ")


def test_serve_answers_line_by_line_while_it_runs(program, built, network, tmp_path):
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    source, sink = tmp_path / "an input.bin", tmp_path / "answer.bin"
    source.write_bytes(raw_bytes(x.numpy()))
    with subprocess.Popen(
        [program, "--serve", "--threads", "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as running:

        def ask(line: str) -> dict[str, object]:
            running.stdin.write(line + "\n")
            return json.loads(running.stdout.readline())

        ready = json.loads(running.stdout.readline())
        assert ready["ready"] is True
        assert 0 < ready["load_ns"] < 10**10
        assert ask(f"input {source}") == {"ok": True}
        answer = ask("bench 5")
        assert list(answer) == ["latency_ns"]
        assert [type(sample) for sample in answer["latency_ns"]] == [int] * 5
        assert ask(f"output {sink}") == {"ok": True}
        running.stdin.write("quit\n")
        assert running.wait(timeout=10) == 0
    found = np.frombuffer(sink.read_bytes(), "<f4").reshape(built.output_shape)
    np.testing.assert_allclose(found, reference_output(network, x), rtol=0, atol=1e-4)


def test_serve_answers_the_golden_input_before_it_is_given_another(program, built, tmp_path):
    assert serve(program, f"output {tmp_path / 'y'}")[1:] == [{"ok": True}]
    found = np.frombuffer((tmp_path / "y").read_bytes(), "<f4")
    expected = np.frombuffer(built.golden_output, "<f4")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_serve_survives_bad_lines(program, tmp_path):
    (tmp_path / "short").write_bytes(b"abc")
    bad = {
        "": "unknown command ''",
        "what": "unknown command 'what'",
        'say "\\\u00e9"': "unknown command 'say'",
        '"\\\u00e9': "unknown command '\"\\",
        "x" * 100_000: "unknown command 'xxx",
        "input": "input needs a file name",
        "output": "output needs a file name",
        "input /nowhere": "cannot open /nowhere",
        f"input {tmp_path}": "ends before 12288 bytes",
        f"input {tmp_path / 'short'}": "ends before 12288 bytes",
        "output /nowhere/y": "cannot write /nowhere/y",
        "bench": "bench needs a number",
        "bench 0": "bench needs a number",
        "bench -5": "bench needs a number",
        "bench 1e3": "bench needs a number",
        "bench 99999999999999999999": "bench needs a number",
    }
    ready, *answers, last = serve(program, *bad, "bench 2")
    assert ready["ready"] is True
    for line, answer, fact in zip(bad, answers, bad.values(), strict=True):
        assert fact in answer["error"], line[:40]
    assert len(last["latency_ns"]) == 2


def test_a_bad_input_leaves_the_one_before_in_place(program, built, tmp_path):
    (tmp_path / "zeros").write_bytes(bytes(len(built.golden_input)))
    first, second = tmp_path / "first", tmp_path / "second"
    serve(
        program, f"input {tmp_path / 'zeros'}", f"output {first}", "input /no", f"output {second}"
    )
    assert first.read_bytes() == second.read_bytes()


def test_an_operator_that_xnnpack_lacks_brings_the_kernel_library(example, tmp_path):
    built = build_executable(Unusual().eval(), example, tmp_path, TARGET)
    assert built.files[-1].name == f"lib/{KERNEL_LIBRARY}"


def test_a_missing_compiler_is_named_before_anything_slow(network, example, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TargetError) as refused:
        build_executable(network, example, tmp_path / "out", TARGET)
    assert str(refused.value) == (
        "workstation: g++ is not on PATH. "
        "Next: install it (Debian: apt-get install g++) and compile again"
    )
    assert not (tmp_path / "out").exists()


def test_a_failing_compiler_is_quoted(network, example, tmp_path, monkeypatch):
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho 'fatal: no such standard' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent), prepend=os.pathsep)
    monkeypatch.setattr(executable, "_lower", lambda *_: (b"program", ()))
    with pytest.raises(TargetError, match=r"(?s)g\+\+ failed \(status 3\).*no such standard"):
        build_executable(network, example, tmp_path / "out", TARGET)


def test_another_machine_is_refused_with_what_is_missing(network, example, tmp_path):
    target = Target("pi4", "riscv64", "linux", "executable")
    with pytest.raises(TargetError, match=r"^pi4: no toolchain .*riscv64 compiler.* Next: "):
        build_executable(network, example, tmp_path, target)


def test_a_precision_that_is_not_built_is_refused(network, example, tmp_path):
    target = Target("t", platform.machine(), "linux", "executable", precision="int8")
    with pytest.raises(TargetError, match="precision 'int8' cannot be built"):
        build_executable(network, example, tmp_path, target)


def test_a_program_that_does_not_run_is_an_error_of_the_target(example, tmp_path):
    broken = tmp_path / "model"
    broken.write_text("#!/bin/sh\necho no >&2\nexit 9\n")
    broken.chmod(0o755)
    with pytest.raises(TargetError, match=r"does not run .*exit status 9.* no"):
        run_executable(TARGET, broken, example.numpy())
