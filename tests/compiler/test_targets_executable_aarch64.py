"""Programs for arm64 boards, linked here and run under qemu-user as on a Raspberry Pi 4."""

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

from compiler.targets import build_executable, build_ort_executable
from compiler.targets.built import raw_bytes, reference_output
from compiler.targets.native_libc import glibc_floor
from compiler.targets.toolchains import COMMAND, RUNTIMES, MissingToolError, find
from device_agents.contract.artifacts import Target

PI = Target("pi4", "aarch64", "linux", "executable", cpu="cortex-a72", libc="glibc 2.31")
ARM_LIBRARIES = Path("/usr/aarch64-linux-gnu/lib")

CPU = """\
processor\t: {number}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""As a Raspberry Pi 4's kernel says it. XNNPACK chooses its kernels by it, and would read the
workstation's."""


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16))
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.stem(x))
        return self.classifier((x + self.depthwise(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def pi(tmp_path_factory) -> tuple[str, ...]:
    """The command that runs a Pi's program: its root has a C library and no C++ library."""
    qemu = shutil.which("qemu-aarch64")
    try:
        for runtime in RUNTIMES["aarch64"]:
            find("aarch64", runtime)
        missing = None if qemu else "qemu-aarch64 (Debian: apt-get install qemu-user)"
    except MissingToolError as error:
        missing = str(error)
    if platform.machine() == "aarch64":
        missing = "a workstation that is no arm64 board itself"
    if missing:
        reason = f"arm64 programs: {missing}. Next: {COMMAND}"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    root = tmp_path_factory.mktemp("pi")
    for name in ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6"):
        (root / "lib").mkdir(exist_ok=True)
        (root / "lib" / name).symlink_to(ARM_LIBRARIES / name)
    for name in ("libdl.so.2", "libpthread.so.0", "librt.so.1"):
        (root / "lib" / name).symlink_to(ARM_LIBRARIES / name)
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text("".join(CPU.format(number=i) for i in range(4)))
    cpus = root / "sys/devices/system/cpu"
    cpus.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0-3\n")
    return (str(qemu), "-cpu", "cortex-a72", "-L", str(root))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def samples() -> Tensor:
    return torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    ("build", "libc"), [(build_executable, "glibc 2.27"), (build_ort_executable, "glibc 2.28")]
)
def test_the_boards_program_answers_as_the_workstations(
    pi, network, samples, tmp_path, precision, build, libc
):
    target = replace(PI, precision=precision)
    built = build(network, samples[:1], tmp_path, target, samples)
    program = built.files[0].path
    assert glibc_floor(find("aarch64"), [program]) <= (2, 27)
    assert built.target == replace(target, libc=libc)

    def run(*arguments: str, stdin: bytes = b"") -> bytes:
        done = subprocess.run(
            [*pi, program, *arguments], input=stdin, capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    described = json.loads(run("--describe"))
    assert (described["machine"], described["precision"]) == ("aarch64", precision)
    assert json.loads(run("--selftest"))["passed"]
    found = np.frombuffer(run(stdin=raw_bytes(samples[:4].numpy())), "<f4").reshape(4, 10)
    expected = (
        built.answers(samples[:4].numpy())
        if built.answers
        else np.concatenate([reference_output(network, x) for x in samples[:4].split(1)])
    )
    assert np.abs(found - expected).max() <= built.atol


def test_a_missing_cross_compiler_is_named_with_the_command(
    network, samples, tmp_path, monkeypatch
):
    if platform.machine() == "aarch64":
        pytest.skip("the compiler for arm64 is this machine's own")
    native = tmp_path / "bin"
    native.mkdir()
    for tool in ("g++", "nm", "objcopy"):
        if (path := shutil.which(tool)) is None:
            pytest.skip(f"{tool} is missing")
        (native / tool).symlink_to(path)
    monkeypatch.setenv("PATH", str(native))
    with pytest.raises(Exception, match=rf"^pi4: aarch64-linux-gnu-g\+\+ is not .*{COMMAND}"):
        build_executable(network, samples[:1], tmp_path / "out", PI)
