"""The native executable keeps the contract that the device agent is written against."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compiler.targets import BuiltModel, TargetError, build_executable, executable
from compiler.targets.built import raw_bytes, reference_output
from compiler.targets.executable import run_executable
from compiler.targets.native_engines import EXECUTORCH
from compiler.targets.native_libc import glibc_floor
from compiler.targets.native_pieces import pieces
from compiler.targets.toolchains import (
    COMMAND,
    ONNXRUNTIME,
    RUNTIME,
    RUNTIMES,
    XNNPACK,
    MissingToolError,
    find,
    runtime_folder,
)
from device_agents.contract.artifacts import Target

TARGET = Target("workstation", platform.machine(), "linux", "executable")
DESCRIBED = {
    RUNTIME: {"runtime": "executorch-xnnpack", "version": "1.5.1", "libc": "glibc 2.27"},
    ONNXRUNTIME: {"runtime": "onnxruntime", "version": "1.31.1", "libc": "glibc 2.28"},
    XNNPACK: {
        "runtime": "xnnpack",
        "version": "0.0~git20220216.ae108ef-2",
        "libc": "glibc 2.27",
    },
}


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
def samples() -> Tensor:
    return torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", params=[RUNTIME, XNNPACK, ONNXRUNTIME])
def runtime(request):
    """All engines keep one contract: armv7 alone has XNNPACK first, this machine can have it."""
    try:
        find(platform.machine(), request.param)
    except MissingToolError as missing:
        pytest.fail(str(missing)) if os.environ.get("CI") == "true" else pytest.skip(str(missing))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RUNTIMES, platform.machine(), (request.param,))
        yield request.param


@pytest.fixture(autouse=True)
def _executorch_unless_asked(request, monkeypatch) -> None:
    if "runtime" not in request.fixturenames:
        monkeypatch.setitem(RUNTIMES, platform.machine(), (RUNTIME, XNNPACK))


@pytest.fixture(scope="module")
def built(runtime, network, example, tmp_path_factory) -> BuiltModel:
    return build_executable(network, example, tmp_path_factory.mktemp("native"), TARGET)


@pytest.fixture(scope="module")
def program(built) -> Path:
    return built.files[0].path


def call(program: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [program, *arguments], input=stdin, capture_output=True, timeout=60, check=False
    )


def readelf(what: str, library: Path) -> bytes:
    return subprocess.run(["readelf", what, library], capture_output=True, check=True).stdout


def named(tag: str, library: Path) -> set[str]:
    """The libraries that an ELF file asks for by name (NEEDED), or its own name (SONAME)."""
    return set(re.findall(rf"\({tag}\).*\[(.+)\]", readelf("--dynamic", library).decode()))


def serve(program: Path, *lines: str) -> list[dict[str, object]]:
    done = call(
        program, "--serve", "--threads", "1", stdin="".join(f"{x}\n" for x in lines).encode()
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_it_is_one_file_that_needs_its_c_library_alone(built, program, runtime):
    assert built.model_file == "model"
    assert [(file.name, file.executable) for file in built.files] == [("model", True)]
    content = program.read_bytes()
    assert content[:4] == b"\x7fELF"
    assert b"site-packages" not in content
    assert named("NEEDED", program) == {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0"}
    assert glibc_floor(find(platform.machine()), [program]) <= (2, 27)
    assert built.target.libc == DESCRIBED[runtime]["libc"]
    licences = "".join(built.licences)
    assert "Redistribution and use" in licences
    assert ("GCC Runtime Library Exception" in licences) == (runtime != XNNPACK)


@pytest.mark.parametrize("engine", [RUNTIME, ONNXRUNTIME])
def test_no_library_inside_needs_another_that_is_not_inside(engine):
    carried = pieces(find(platform.machine(), engine)).libraries(kernels=True)
    names = {library.name for library in carried}
    system = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"}
    system.add("ld-linux-x86-64.so.2")
    for place, library in enumerate(carried):
        before = set().union(*(named("SONAME", earlier) for earlier in carried[:place]))
        assert named("NEEDED", library) <= before | system, library.name
        # One would be called before the library's code is in its place (native_library.h).
        assert b"IRELATIV" not in readelf("--relocs", library), library.name
    assert "libstdc++.so.6" in names


def test_code_is_read_from_the_programs_own_file(program):
    with subprocess.Popen(
        [program, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert json.loads(running.stdout.readline())["ready"]
        maps = Path(f"/proc/{running.pid}/maps").read_text(encoding="utf-8").splitlines()
        running.communicate("quit\n", timeout=10)
    code_pages = {"program": 0, "memory": 0}
    for line in maps:
        addresses, permissions, _, _, _, *path = line.split(maxsplit=5)
        where = "memory" if "memfd:" in line else "program" if path == [str(program)] else ""
        if "x" in permissions and where:
            start, end = (int(address, 16) for address in addresses.split("-"))
            code_pages[where] += (end - start) // os.sysconf("SC_PAGESIZE")
    # Of each library inside, eight at most, the two pages that code shares with something else.
    assert code_pages["memory"] <= 2 * 8
    assert code_pages["program"] > 20 * code_pages["memory"]


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
    [
        (lambda x: x[:-1], b"stdin ends within a tensor of 12288 bytes"),
        (lambda x: x + b"\0", b"stdin ends within a tensor of 12288 bytes"),
        (lambda x: b"", b"stdin is empty"),
    ],
    ids=["short", "long", "none"],
)
def test_a_tensor_of_another_size_is_refused(built, program, change, fact):
    done = call(program, stdin=change(built.golden_input))
    assert done.returncode == 1
    assert done.stderr.startswith(fact)


def test_tensors_one_after_the_other_are_answered_in_order(built, program, network):
    x = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    found = run_executable(TARGET, program, x.numpy()).reshape(3, 10)
    for i in range(3):
        np.testing.assert_allclose(
            found[i : i + 1], reference_output(network, x[i : i + 1]), rtol=0, atol=1e-4
        )


def test_describe(program, runtime):
    done = call(program, "--describe")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {
        "input_shape": [1, 3, 32, 32],
        "output_shape": [1, 10],
        **DESCRIBED[runtime],
        "precision": "fp32",
        "machine": platform.machine(),
        "threads": 1,
        "atol": 0.0001,
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
    (tmp_path / "long").write_bytes(bytes(12289))
    bad = {
        "": "unknown command ''",
        "what": "unknown command 'what'",
        'say "\\\u00e9"': "unknown command 'say'",
        '"\\\u00e9': "unknown command '\"\\",
        "x" * 100_000: "unknown command 'xxx",
        "input": "input needs a file name",
        "output": "output needs a file name",
        "input /nowhere": "cannot open /nowhere",
        f"input {tmp_path}": "is empty",
        f"input {tmp_path / 'short'}": "ends within a tensor of 12288 bytes",
        f"input {tmp_path / 'long'}": "is longer than a tensor",
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
    assert Path(EXECUTORCH.kernels).stem.encode() in built.files[0].path.read_bytes()
    assert built.files[0].path.stat().st_size > 10_000_000


def test_a_missing_compiler_is_named_before_anything_slow(network, example, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TargetError) as refused:
        build_executable(network, example, tmp_path / "out", TARGET)
    assert str(refused.value) == (
        f"workstation: g++ is not on PATH. Next: {COMMAND} (Debian: apt-get install g++)"
    )
    assert not (tmp_path / "out").exists()


def test_a_failing_compiler_is_quoted(network, example, tmp_path, monkeypatch):
    broken = tmp_path / "bin" / "g++"
    broken.parent.mkdir()
    broken.write_text(
        "#!/bin/sh\n"
        f'case "$1" in -dump*|-print*) exec {shutil.which("g++")} "$@";; esac\n'
        "echo 'fatal: no such standard' >&2\nexit 3\n"
    )
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent), prepend=os.pathsep)
    monkeypatch.setattr(executable, "lower", lambda *_: (b"program", ()))
    with pytest.raises(TargetError, match=r"(?s)g\+\+ failed \(status 3\).*no such standard"):
        build_executable(network, example, tmp_path / "out", TARGET)


def test_a_machine_without_a_toolchain_is_refused_with_those_that_have_one(
    network, example, tmp_path
):
    target = Target("visionfive", "riscv64", "linux", "executable")
    with pytest.raises(
        TargetError,
        match=r"^visionfive: no toolchain .*riscv64.*aarch64, armv7l and x86_64.* Next: ",
    ):
        build_executable(network, example, tmp_path, target)


@pytest.mark.parametrize("libc", ["glibc 2.26", "musl 1.2"])
def test_a_board_with_an_older_c_library_is_refused(network, example, tmp_path, libc):
    target = Target("old", platform.machine(), "linux", "executable", libc=libc)
    with pytest.raises(TargetError, match=rf"old: the program needs glibc 2.27 and .* {libc}"):
        build_executable(network, example, tmp_path, target)


def test_int8_without_samples_is_refused(network, example, tmp_path):
    with pytest.raises(TargetError, match="int8 needs real samples"):
        build_executable(network, example, tmp_path, replace(TARGET, precision="int8"))


def test_int8_keeps_its_own_golden_output_and_answers_many(network, example, samples, tmp_path):
    target = replace(TARGET, precision="int8")
    built = build_executable(network, example, tmp_path, target, samples)
    program = built.files[0].path
    assert json.loads(call(program, "--describe").stdout)["precision"] == "int8"
    done = call(program, "--selftest")
    assert (done.returncode, json.loads(done.stdout)["max_abs_err"]) == (0, 0)
    expected = np.concatenate([reference_output(network, x) for x in samples.split(1)])
    found = built.answers(samples.numpy())
    assert 1e-4 < np.abs(found - expected).max() <= 0.05 * float(np.ptp(expected))
    assert built.golden_output == raw_bytes(run_executable(target, program, example.numpy()))


def test_the_same_network_gives_the_same_bytes_with_nothing_in_the_cache(
    built, program, network, example, tmp_path, monkeypatch
):
    kept = runtime_folder(platform.machine(), XNNPACK)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = runtime_folder(platform.machine(), XNNPACK)
    there.parent.mkdir(parents=True)
    there.symlink_to(kept)
    again = build_executable(network, example, tmp_path / "out", TARGET)
    assert again.files[0].path.read_bytes() == program.read_bytes()
    assert replace(again, files=()) == replace(built, files=())


def test_a_program_that_does_not_run_is_an_error_of_the_target(example, tmp_path):
    broken = tmp_path / "model"
    broken.write_text("#!/bin/sh\necho no >&2\nexit 9\n")
    broken.chmod(0o755)
    with pytest.raises(TargetError, match=r"does not run .*exit status 9.* no"):
        run_executable(TARGET, broken, example.numpy())
