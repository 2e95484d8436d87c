"""What native programs over ONNX Runtime have of their own; the rest of their contract is in
test_targets_executable.py, which all engines pass.
"""

from __future__ import annotations

import os
import platform
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compiler import networks
from compiler.targets import BuiltModel, TargetError, build_ort_executable, ort_program
from compiler.targets.built import raw_bytes, reference_output
from compiler.targets.executable import run_executable
from compiler.targets.onnx import onnx_bytes
from compiler.targets.ort_program import ALIGNMENT, AVX512_CPU, MAGIC
from compiler.targets.toolchains import ONNXRUNTIME, MissingToolError, find
from device_agents.contract.artifacts import Target

TARGET = Target("workstation", platform.machine(), "linux", "executable")
SHAPE = (1, 3, 32, 32)


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        find(platform.machine(), ONNXRUNTIME)
    except MissingToolError as missing:
        pytest.fail(str(missing)) if os.environ.get("CI") == "true" else pytest.skip(str(missing))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """With channels that fill no whole block of 16, of 8, and of neither."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 24, 3, 2, 1), nn.ReLU6()),
        *(nn.Conv2d(24, 24, 3, 1, 1, groups=24), nn.ReLU()),
        *(nn.Conv2d(24, 37, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(37, 10)),
    ).eval()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(3, *SHAPE[1:], generator=torch.Generator().manual_seed(1))


def content_of(network: nn.Module, pictures: torch.Tensor, target: Target) -> bytes:
    return ort_program.ort_program(network, pictures[:1], target, None)


def has_avx512() -> bool:
    return " avx512f" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def arranged(network, pictures, tmp_path_factory) -> BuiltModel:
    """For boards with AVX-512, on a workstation that has it."""
    if platform.machine() != "x86_64" or not has_avx512():
        pytest.skip("weights are arranged for AVX-512 where the workstation has it")
    target = replace(TARGET, cpu=AVX512_CPU)
    return build_ort_executable(network, pictures[:1], tmp_path_factory.mktemp("v4"), target)


def test_arranged_weights_answer_as_pytorch_does(arranged, network, pictures):
    assert (arranged.kind, arranged.target.cpu) == ("executable-ort", AVX512_CPU)
    program = arranged.files[0].path
    assert content_of(network, pictures, arranged.target).startswith(MAGIC)
    found = run_executable(arranged.target, program, pictures.numpy()).reshape(3, 10)
    expected = np.concatenate([reference_output(network, x) for x in pictures.split(1)])
    assert np.abs(found - expected).max() <= arranged.atol == 1e-4


def test_a_cpu_without_avx512_is_told_so_and_answers_nothing(arranged):
    qemu = shutil.which("qemu-x86_64")
    if qemu is None:
        pytest.skip("qemu-x86_64 is missing (Debian: apt-get install qemu-user)")
    done = subprocess.run(
        [qemu, "-cpu", "Haswell", arranged.files[0].path],
        input=arranged.golden_input,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"AVX-512, which this CPU does not have: deploy what was built for x86-64" in done.stderr


def test_weights_lie_on_cache_lines_and_the_graph_beside_them(arranged, network, pictures):
    model = onnx_bytes(network, pictures[:1], arranged.target, None)
    content = ort_program.blocked(model)
    magic, count, graph_at, graph_size = struct.unpack_from("<8s3Q", content)
    assert magic == MAGIC
    assert content[graph_at + 4 : graph_at + 8] == b"ORTM"
    end = graph_at + graph_size
    for number in range(count):
        offset, rank, *sizes = struct.unpack_from("<2Q4q", content, 32 + 48 * number)
        assert offset % ALIGNMENT == 0
        assert offset >= end
        end = offset + 4 * int(np.prod(sizes[:rank]))
    assert end <= len(content) < end + ALIGNMENT
    assert ort_program.blocked(model) == content


def test_boards_of_any_cpu_get_the_plain_layout(network, pictures, tmp_path):
    built = build_ort_executable(network, pictures[:1], tmp_path, TARGET)
    assert content_of(network, pictures, TARGET)[4:8] == b"ORTM"
    assert built.max_abs_err <= built.atol == 1e-4


def test_no_telemetry_is_kept_in_the_home_folder(network, pictures, tmp_path):
    built = build_ort_executable(network, pictures[:1], tmp_path / "out", TARGET)
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [built.files[0].path, "--selftest"],
        env={"HOME": str(home), "XDG_CACHE_HOME": str(home)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(home.rglob("*")) == []


def test_a_network_that_edge_boards_run_answers_as_pytorch_does(tmp_path):
    name = "mobilenet_v2"
    network = networks.build(name, 0).eval()
    x = torch.rand(1, *networks.input_shape(name), generator=torch.Generator().manual_seed(2))
    built = build_ort_executable(network, x, tmp_path, replace(TARGET, cpu=AVX512_CPU))
    found = run_executable(TARGET, built.files[0].path, x.numpy())
    expected = reference_output(network, x)
    assert np.abs(found.reshape(expected.shape) - expected).max() <= 1e-4
    assert built.golden_output == raw_bytes(expected)


def test_armv7_has_no_onnx_runtime(network, pictures, tmp_path):
    target = Target("pi2", "armv7l", "linux", "executable")
    with pytest.raises(TargetError, match="no ONNX Runtime is published for armv7l"):
        build_ort_executable(network, pictures[:1], tmp_path, target)
