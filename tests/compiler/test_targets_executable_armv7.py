"""Programs for armv7 boards, linked here and run under qemu-user as on Raspberry Pi OS 32-bit."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compiler.networks import build, input_shape
from compiler.targets import BuiltModel, TargetError, build_executable
from compiler.targets.board_file import load_board
from compiler.targets.built import raw_bytes, reference_output
from compiler.targets.native_libc import glibc_floor
from compiler.targets.toolchains import COMMAND, XNNPACK, MissingToolError, find
from compiler.targets.xnnpack_pieces import xnnpack_pieces
from device_agents.contract.artifacts import Target
from device_agents.runtimes import RUNTIMES

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
"""Of JAX, which exporters of other tests load into this process; there is none on a board."""

PI = Target("pi-32", "armv7l", "linux", "executable", cpu="cortex-a53", libc="glibc 2.31")
ARM_LIBRARIES = Path("/usr/arm-linux-gnueabihf/lib")
C_LIBRARY = ("ld-linux-armhf.so.3", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0")

CPU = """\
processor\t: {number}
model name\t: ARMv7 Processor rev 5 (v7l)
BogoMIPS\t: 38.40
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x0
CPU part\t: 0xc07
CPU revision\t: 5

"""
"""As a Raspberry Pi 2's kernel says it. XNNPACK chooses its kernels by it, and would read the
workstation's."""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 13, 3, 2, 1, bias=False), nn.BatchNorm2d(13))
        self.depthwise = nn.Conv2d(13, 13, 3, 1, 1, groups=13)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(13, 13, 1), nn.Hardsigmoid())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.classifier = nn.Linear(13 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.stem(x))
        x = nn.functional.hardswish(x + self.depthwise(x))
        return self.classifier(torch.flatten(self.pool(x * self.gate(x)), 1))


@pytest.fixture(scope="module", autouse=True)
def _toolchain() -> None:
    try:
        find("armv7l")
        find(platform.machine(), XNNPACK)
        missing = None if shutil.which("qemu-arm") else "qemu-arm (Debian: qemu-user)"
    except MissingToolError as error:
        missing = str(error)
    if missing:
        reason = f"armv7 programs: {missing}. Next: {COMMAND}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@pytest.fixture(scope="module")
def pi(tmp_path_factory) -> tuple[str, ...]:
    """The command that runs a Pi's program: its root has a C library and not even libgcc."""
    root = tmp_path_factory.mktemp("pi")
    (root / "lib").mkdir()
    for name in C_LIBRARY:
        (root / "lib" / name).symlink_to(ARM_LIBRARIES / name)
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("".join(CPU.format(number=i) for i in range(4)))
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0-3\n")
    return (str(shutil.which("qemu-arm")), "-cpu", "cortex-a7", "-L", str(root))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def samples() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def built(network, samples, tmp_path_factory) -> BuiltModel:
    return build_executable(network, samples[:1], tmp_path_factory.mktemp("armv7"), PI)


@pytest.fixture
def run(pi, built):
    def called(*arguments: str, stdin: bytes = b"") -> bytes:
        done = subprocess.run(
            [*pi, built.files[0].path, *arguments], input=stdin, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    return called


def test_the_boards_program_answers_as_pytorch_does(run, network, samples, built):
    found = np.frombuffer(run(stdin=raw_bytes(samples.numpy())), "<f4").reshape(4, 10)
    expected = np.concatenate([reference_output(network, x) for x in samples.split(1)])
    assert np.abs(found - expected).max() <= built.atol == 1e-4


def test_it_tells_what_it_is_and_tries_itself(run):
    described = json.loads(run("--describe"))
    assert (described["machine"], described["runtime"]) == ("armv7l", "xnnpack")
    assert (described["libc"], described["precision"]) == ("glibc 2.27", "fp32")
    assert json.loads(run("--selftest", "--threads", "2"))["passed"]
    assert len(json.loads(run("--benchmark", "2"))["latency_ns"]) == 2


def test_it_asks_for_an_old_c_library_and_nothing_else(built):
    toolchain = find("armv7l")
    assert glibc_floor(toolchain, [built.files[0].path]) <= (2, 27)
    assert xnnpack_pieces(toolchain).floor == (2, 27)
    assert built.target == replace(PI, libc="glibc 2.27")
    assert "Runtime Library Exception" in "".join(built.licences)


def test_the_agent_measures_it_as_any_executable(pi, built, network, samples, tmp_path):
    """By a script that stands for the kernel of a board, which would run the program itself."""
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec {" ".join(pi)} {built.files[0].path} "$@"\n')
    program.chmod(0o755)
    runner = RUNTIMES["executable"](program, 1, tmp_path)
    try:
        assert (runner.provider, runner.inputs[0].shape) == ("xnnpack", (1, 3, 32, 32))
        runner.set_inputs([raw_bytes(samples[1:2].numpy())])
        assert len(runner.time_batch(2)) == 2
        found = np.frombuffer(runner.read_outputs()[0], "<f4")
    finally:
        runner.close()
    assert np.abs(found - reference_output(network, samples[1:2])).max() <= 1e-4


def test_a_network_of_a_recipe_for_the_packaged_board(pi, tmp_path):
    board = load_board("raspberry-pi-os-32")
    assert "executable" in board.kinds()
    target = replace(PI, name=board.name, machine=board.machine, libc=board.libc)
    network, x = build("digits_resnet", 0), torch.rand(1, *input_shape("digits_resnet"))
    program = build_executable(network, x, tmp_path, target).files[0].path
    done = subprocess.run([*pi, program], input=raw_bytes(x.numpy()), capture_output=True)
    found = np.frombuffer(done.stdout, "<f4")
    assert np.abs(found - reference_output(network, x)).max() <= 1e-4


def test_the_same_network_gives_the_same_bytes(built, network, samples, tmp_path):
    again = build_executable(network, samples[:1], tmp_path, PI)
    assert again.files[0].path.read_bytes() == built.files[0].path.read_bytes()


@pytest.mark.parametrize("libc", ["glibc 2.26", "musl 1.2"])
def test_a_board_with_an_older_c_library_is_refused(network, samples, tmp_path, libc):
    with pytest.raises(TargetError, match=rf"the program needs glibc 2.27 and .* {libc}"):
        build_executable(network, samples[:1], tmp_path, replace(PI, libc=libc))


def test_a_missing_cross_compiler_is_named_with_the_command(
    network, samples, tmp_path, monkeypatch
):
    native = tmp_path / "bin"
    native.mkdir()
    for tool in ("g++", "nm", "objcopy"):
        (native / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(native))
    said = rf"^pi-32: arm-linux-gnueabihf-g\+\+ is not .*{COMMAND}.*g\+\+-arm-linux-gnueabihf"
    with pytest.raises(TargetError, match=said):
        build_executable(network, samples[:1], tmp_path / "out", PI)
