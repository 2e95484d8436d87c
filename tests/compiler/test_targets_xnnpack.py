"""A network as a plan over Debian's XNNPACK: every operator answers as PyTorch's does."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compiler.networks import build, input_shape
from compiler.targets import BuiltModel, TargetError, build_executable
from compiler.targets.built import reference_output
from compiler.targets.executable import run_executable
from compiler.targets.native_libc import glibc_floor, newest_versions
from compiler.targets.toolchains import (
    COMMAND,
    RUNTIMES,
    XNNPACK,
    MissingToolError,
    find,
)
from compiler.targets.xnnpack_floor import with_older_versions
from compiler.targets.xnnpack_lowering import plan_of
from compiler.targets.xnnpack_pieces import FLOOR, THEIRS, xnnpack_pieces
from device_agents.contract.artifacts import Target

HERE = Target("workstation", platform.machine(), "linux", "executable")
BOARD = Target("pi2", "armv7l", "linux", "executable", libc="glibc 2.31")


@pytest.fixture(scope="module", autouse=True)
def _over_xnnpack():
    """This machine's programs are Debian's XNNPACK's too."""
    try:
        find(platform.machine(), XNNPACK)
    except MissingToolError as missing:
        pytest.fail(str(missing)) if os.environ.get("CI") == "true" else pytest.skip(str(missing))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RUNTIMES, platform.machine(), (XNNPACK,))
        yield


@pytest.fixture(scope="module")
def built(_over_xnnpack, tmp_path_factory) -> BuiltModel:
    folder = tmp_path_factory.mktemp("mixed")
    return build_executable(mixed(), pictures(1, 3, 32, 32), folder, HERE)


class Squeezed(nn.Module):
    """MobileNetV3's block: hard swish, a depthwise convolution of 5 x 5, squeeze and excitation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, 29, 1), nn.BatchNorm2d(29), nn.Hardswish())
        self.depth = nn.Conv2d(29, 29, 5, padding=2, groups=29)
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(29, 8, 1), nn.ReLU(), nn.Conv2d(8, 29, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = nn.Conv2d(29, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        return x + self.project(y * self.squeeze(y))


class Mixed(nn.Module):
    """Operators of all families that there are, at widths that pruning leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 13, 3, 2), nn.BatchNorm2d(13), nn.ReLU6()
        )
        self.block = Squeezed(13)
        self.pooled = nn.MaxPool2d(3, 2, 1)
        self.grouped = nn.Conv2d(13, 26, 3, padding=2, dilation=2, groups=13)
        self.silu = nn.SiLU()
        self.halved = nn.AvgPool2d(2)
        self.head = nn.Sequential(nn.Linear(26 * 16, 37), nn.ReLU(), nn.Linear(37, 10, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.silu(self.grouped(self.pooled(self.block(self.stem(x)))))
        return self.head(torch.flatten(torch.clamp(self.halved(y), -0.5, 2.0), 1))


class Erf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erf(x).mean((2, 3))


class Uneven(nn.Module):
    """Pictures flattened and not multiplied: their order here is another."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(x, 1)


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


def lively(name: str) -> nn.Module:
    """With the statistics of its own activations: fresh ones leave nothing of deep networks."""
    network = build(name, 0).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network(pictures(4, *input_shape(name)))
    return network.eval()


def pictures(count: int, *shape: int) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def answers(network: nn.Module, x: Tensor) -> np.ndarray:
    return np.concatenate([reference_output(network, one) for one in x.split(1)])


def test_operators_of_every_family_answer_as_pytorchs(built):
    network, x = mixed(), pictures(3, 3, 32, 32)
    assert built.max_abs_err <= built.atol == 1e-4
    found = run_executable(HERE, built.files[0].path, x.numpy()).reshape(3, 10)
    np.testing.assert_allclose(found, answers(network, x), rtol=0, atol=1e-4)
    assert b"BSD" in "".join(built.licences).encode()
    assert dict(built.tool_versions)["libxnnpack0"].startswith("0.0~git20220216")


def test_threads_change_nothing_but_time(built):
    program = built.files[0].path
    said = [
        subprocess.run(
            [program, "--threads", threads], input=built.golden_input, capture_output=True
        )
        for threads in ("1", "2")
    ]
    one, two = (np.frombuffer(done.stdout, "<f4") for done in said)
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)


def test_a_picture_may_be_the_answer(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).eval()
    built = build_executable(network, pictures(1, 3, 9, 7), tmp_path, HERE)
    assert built.output_shape == (1, 5, 7, 5)


@pytest.mark.parametrize("name", ["digits_mobilenet", "resnet20"])
def test_networks_that_there_are(tmp_path, name):
    built = build_executable(lively(name), pictures(1, *input_shape(name)), tmp_path, HERE)
    assert 0.01 < np.abs(np.frombuffer(built.golden_output, "<f4")).max() < 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "efficientnet_b0", "resnet50"])
def test_networks_of_full_size(tmp_path, name):
    built = build_executable(lively(name), pictures(1, *input_shape(name)), tmp_path, HERE)
    assert 0.01 < np.abs(np.frombuffer(built.golden_output, "<f4")).max() < 100


@pytest.mark.parametrize(
    ("network", "fact"),
    [
        (Erf(), "operator Erf is not among"),
        (Uneven(), "Flatten without a linear layer"),
        (nn.AvgPool2d(3, 2, 1), "AveragePool with"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), "MaxPool with"),
        (nn.ReflectionPad2d(1), "a Pad other than"),
    ],
    ids=["erf", "flatten", "average", "ceiling", "reflection"],
)
def test_an_operator_that_it_lacks_is_named(tmp_path, network, fact):
    with pytest.raises(TargetError, match=f"^workstation: lowering to XNNPACK failed .*{fact}"):
        build_executable(network.eval(), pictures(1, 3, 8, 8), tmp_path / "out", HERE)
    assert not (tmp_path / "out").exists()


def test_int8_is_refused_before_anything_is_built(tmp_path):
    for target in (HERE, BOARD):
        with pytest.raises(TargetError, match="'int8' cannot be built"):
            build_executable(
                mixed(), pictures(1, 3, 32, 32), tmp_path, replace(target, precision="int8")
            )


def test_a_plan_says_the_same_in_the_same_bytes_and_cut_short_it_is_refused(built, tmp_path):
    plan = plan_of(mixed(), pictures(1, 3, 32, 32), HERE)
    content = bytearray(built.files[0].path.read_bytes())
    assert content.count(plan) == 1
    at = content.index(plan)
    content[at + 4 : at + 8] = (10**6).to_bytes(4, "little")
    program = tmp_path / "model"
    program.write_bytes(content)
    program.chmod(0o755)
    done = subprocess.run([program, "--selftest"], capture_output=True)
    assert done.returncode == 1
    assert done.stderr == b"cannot load the network: the plan is cut short\n"


def test_debians_libraries_ask_for_no_more_than_the_floor(tmp_path):
    """Lowered, each is the same file but for the versions of the two names that moved."""
    toolchain = find(platform.machine(), XNNPACK)
    made = xnnpack_pieces(toolchain)
    assert made.floor <= FLOOR
    for name in THEIRS:
        theirs = (toolchain.runtime / "lib" / name).read_bytes()
        ours = (made.folder / name).read_bytes()
        assert len(theirs) == len(ours)
        assert sum(a != b for a, b in zip(theirs, ours, strict=True)) <= 16
    lowered = xnnpack_pieces(toolchain).folder / "libcpuinfo.so.0"
    said = subprocess.run(["nm", "-D", lowered], capture_output=True, text=True, check=True).stdout
    assert re.search(r"U pthread_once@GLIBC_2\.(2\.5|4|17)\b", said)


def test_a_version_whose_names_are_not_known_to_be_the_same_stays():
    toolchain = find(platform.machine(), XNNPACK)
    library = toolchain.runtime / "lib" / "libcpuinfo.so.0"
    older = newest_versions(toolchain, FLOOR)
    asked = {"GLIBC_2.34": frozenset({"pthread_once", "dlsym"})}
    content = library.read_bytes()
    assert with_older_versions(content, asked, older) == content
    assert glibc_floor(toolchain, [library]) > FLOOR


def test_a_missing_runtime_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(TargetError, match=rf"Debian's XNNPACK .* is not in .*Next: {COMMAND}"):
        build_executable(mixed(), pictures(1, 3, 32, 32), tmp_path / "out", HERE)
