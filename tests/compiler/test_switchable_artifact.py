"""One file of weights in the board's own runner: each sub-network answers as PyTorch's does."""

from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compiler.switchable.artifact import build_switchable
from compiler.switchable.network import SwitchableNetwork
from compiler.targets.built import ATOL_FP32, BuiltModel
from device_agents.contract import Target
from device_agents.errors import RunFailedError
from device_agents.runtimes import RUNTIMES, Switching, onnx_wire, switchable
from device_agents.runtimes.onnx_wire import WireError
from device_agents.sysfs import Root
from tests.compiler.switchable_samples import (
    CPUFREQ,
    POLICY,
    RATIOS,
    SHAPE,
    TOP_KHZ,
    Clock,
    switchable_network,
)

pytest.importorskip("onnxruntime", reason="onnxruntime missing: pip install onnxruntime")

HERE = Target("here", "any", "linux", "switchable")


@pytest.fixture(scope="module")
def network() -> SwitchableNetwork:
    return switchable_network()


@pytest.fixture(scope="module")
def built(network: SwitchableNetwork, tmp_path_factory: pytest.TempPathFactory) -> BuiltModel:
    example = torch.rand(1, *SHAPE)
    return build_switchable(network, POLICY, example, tmp_path_factory.mktemp("built"), HERE)


@pytest.fixture
def runner(built: BuiltModel, tmp_path: Path):
    loaded = RUNTIMES["switchable"](built.files[0].path, 1, tmp_path)
    assert isinstance(loaded, switchable.SwitchableRunner)
    yield loaded
    loaded.close()


def answers(runner: switchable.SwitchableRunner, x: torch.Tensor) -> np.ndarray:
    runner.set_inputs([x.numpy().astype("<f4").tobytes()])
    runner.time_batch(1)
    return np.frombuffer(runner.read_outputs()[0], "<f4").reshape(1, -1)


def assert_answers_as(
    runner: switchable.SwitchableRunner, network: SwitchableNetwork, position: int
) -> None:
    x = torch.rand(1, *SHAPE)
    with torch.inference_mode():
        expected = network.sub_network(position)(x).numpy()
    assert np.abs(answers(runner, x) - expected).max() <= ATOL_FP32


def test_each_sub_network_answers_as_in_pytorch_whichever_came_before(runner, network) -> None:
    for position in (0, 2, 1, 0, 1, 2, 0):
        runner.switch_to(position)
        assert_answers_as(runner, network, position)


def test_a_runtime_without_blocked_convolutions_answers_the_same(
    built, network, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(switchable, "BLOCKS", ())
    runner = RUNTIMES["switchable"](built.files[0].path, 1, tmp_path)
    for position in (0, 2, 1):
        runner.switch_to(position)
        assert_answers_as(runner, network, position)
    runner.close()


def test_weights_are_stored_once(built, network) -> None:
    with zipfile.ZipFile(built.files[0].path) as archive:
        size = {entry.filename: entry.file_size for entry in archive.infolist()}
    widest = network.sub_network(0)
    weights = sum(p.numel() for p in widest.parameters() if p.ndim > 1)
    assert size["weights.f32"] == 4 * weights
    channels = sum(m.num_features for m in widest.modules() if isinstance(m, nn.BatchNorm2d))
    # For each sub-network a factor and a bias a channel at most, and the linear layer's bias.
    assert size["banks.f32"] <= 4 * len(RATIOS) * (2 * channels + 7)


def test_the_same_network_gives_the_same_bytes(built, network, tmp_path) -> None:
    example = torch.from_numpy(
        np.frombuffer(built.golden_input, "<f4").reshape(built.input_shape).copy()
    )
    again = build_switchable(network, POLICY, example, tmp_path, HERE)
    assert again.files[0].path.read_bytes() == built.files[0].path.read_bytes()
    shorter = dataclasses.replace(POLICY, laws=POLICY.laws[:1])
    with pytest.raises(ValueError, match="laws"):
        build_switchable(network, shorter, example, tmp_path, HERE)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "root")


def follow(runner: switchable.SwitchableRunner, root: Root) -> None:
    """Every inference looks: how seldom it may is no matter of these tests."""
    runner.follow(root, [CPUFREQ])
    runner._watch._clock_ns = iter(range(0, 10**15, 10**9)).__next__


def test_it_follows_the_clock_and_tells_of_every_switch(runner, network, clock) -> None:
    assert isinstance(runner, Switching)
    follow(runner, Root(clock.root))
    expected = [(TOP_KHZ, 0), (TOP_KHZ // 2, 1), (TOP_KHZ // 4, 2), (TOP_KHZ, 0)]
    for khz, position in expected:
        clock(khz)
        assert_answers_as(runner, network, position)
        assert runner.position == position
    told = [(switch.khz, switch.before, switch.after) for switch in runner.switches]
    assert told == [(TOP_KHZ // 2, 0, 1), (TOP_KHZ // 4, 1, 2), (TOP_KHZ, 2, 0)]
    assert all(switch.took_ns > 0 for switch in runner.switches)


def test_a_clock_that_wavers_about_a_border_switches_nothing(runner, clock) -> None:
    follow(runner, Root(clock.root))
    border = next(f for f in range(TOP_KHZ, TOP_KHZ // 2, -1000) if POLICY.choose(f) == 1)
    for khz in (border + 1000, border - 1000, border + 1000, border - 1000):
        clock(khz)
        runner.time_batch(1)
    assert runner.position == 0
    assert runner.switches == ()


def test_a_clock_that_cannot_be_read_leaves_what_runs(runner, network, tmp_path) -> None:
    follow(runner, Root(tmp_path / "nothing"))
    assert_answers_as(runner, network, 0)
    assert runner.switches == ()


def rewritten(path: Path, out: Path, name: str, change) -> Path:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, change(data) if entry.filename == name else data)
    return out


@pytest.mark.parametrize(
    ("member", "change", "said"),
    [
        ("golden_outputs.f32", lambda data: data[:-4] + b"\0\0\xc0\x7f", "golden answer"),
        ("weights.f32", lambda data: data[: len(data) // 2], "outside"),
        ("weights.f32", lambda data: bytes(len(data)), "golden answer"),
        ("switchable.json", lambda data: data.replace(b'"version":1', b'"version":9'), "version 9"),
        ("switchable.json", lambda data: data[:100], "no switchable network"),
        ("graph-1.onnx", lambda data: data[: len(data) // 2], "onnxruntime cannot load"),
    ],
)
def test_a_damaged_file_is_refused(built, tmp_path, member, change, said) -> None:
    path = rewritten(built.files[0].path, tmp_path / "damaged", member, change)
    with pytest.raises(RunFailedError, match=said) as caught:
        RUNTIMES["switchable"](path, 1, tmp_path)
    assert caught.value.error.kind == "model"


def test_what_is_no_archive_is_refused(tmp_path) -> None:
    path = tmp_path / "none"
    path.write_bytes(b"PK no archive")
    with pytest.raises(RunFailedError, match="no switchable network"):
        RUNTIMES["switchable"](path, 1, tmp_path)


def test_weights_come_and_go_in_a_graph_that_stays_as_it_is(built) -> None:
    with zipfile.ZipFile(built.files[0].path) as archive:
        graph = archive.read("graph-0.onnx")
    whole = onnx_wire.with_initializers(graph, [("w0", (2, 3))])
    (tensor,) = [t for t in onnx_wire.initializers(whole) if t.dims == (2, 3)]
    assert (tensor.name, tensor.data_type, tensor.raw) == ("w0", onnx_wire.FLOAT, None)
    bare = onnx_wire.without_initializers(whole, ["w0"])
    assert [t.name for t in onnx_wire.initializers(bare)] == [
        t.name for t in onnx_wire.initializers(graph)
    ]
    assert onnx_wire.nodes(bare) == onnx_wire.nodes(graph)
    with pytest.raises(WireError, match="missing"):
        onnx_wire.nodes(graph[:-1])
