"""Candidates as TFLite: the converter's operators and PyTorch's answers, or a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

from compiler import networks
from compiler.anchors import write_anchors
from compiler.dense import train_dense
from compiler.pruning.groups import trace
from compiler.pruning.surgery import materialise
from compiler.recipe import Recipe, RecipeTarget
from compiler.targets import TargetError
from compiler.targets.candidates import SUFFIX, candidate, from_onnx
from compiler.targets.fast_tflite import PORTABLE, fast_tflite
from compiler.targets.onnx import run_onnx
from compiler.targets.tflite import build_tflite, run_tflite
from compiler.targets.tflite_flatbuffer import ALIGNMENT
from compiler.work import WorkFolder
from device_agents.runtimes import RUNTIMES


def pruned(name: str) -> nn.Module:
    """Uneven widths, and batch norms that keep the answer at a scale where errors show."""
    network = networks.build(name, 0).eval()
    space = trace(network, networks.input_shape(name), name, width_step=1, min_fraction=0.25)
    widths = tuple(
        legal[len(legal) // (2 + position % 3)]
        for position, legal in enumerate(space.widths_by_group)
    )
    cut = materialise(name, space, widths, 0)
    torch.manual_seed(0)
    for module in cut.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.inference_mode():
        cut.train()(torch.randn(4, *networks.input_shape(name)))
    return cut.eval()


def operators(model: bytes) -> list[tuple[object, ...]]:
    """(operator, shapes in, shapes out, its options) in the model's order."""
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = parsed.subgraphs[0]

    def shapes(indices) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(int(size) for size in graph.tensors[i].shape) for i in indices)

    return [
        (
            parsed.operatorCodes[op.opcodeIndex].builtinCode,
            shapes(op.inputs),
            shapes(op.outputs),
            tuple(getattr(op.builtinOptions, name, None) for name in OPTIONS),
        )
        for op in graph.operators
    ]


OPTIONS = (
    *("padding", "strideH", "strideW", "filterHeight", "filterWidth"),
    *("fusedActivationFunction", "keepDims"),
)


@pytest.mark.parametrize(
    "name",
    [
        "digits_mobilenet",
        "digits_resnet",
        "resnet20",
        "resnet56",
        "mobilenet_v1",
        "mobilenet_v2",
        "efficientnet_b0",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("vgg16", marks=pytest.mark.slow),
    ],
)
def test_the_answer_is_pytorchs(name: str) -> None:
    network = pruned(name)
    x = torch.randn(1, *networks.input_shape(name))
    with torch.inference_mode():
        expected = network(x).numpy()
    found = run_tflite(fast_tflite(network, x), np.ascontiguousarray(x.permute(0, 2, 3, 1)))
    assert found.shape == expected.shape
    assert np.abs(expected).max() > 1e-3
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("name", ["digits_mobilenet", "digits_resnet"])
def test_operators_are_those_that_ship_one_by_one(name: str, tmp_path: Path) -> None:
    network = pruned(name)
    with torch.no_grad():  # as a trained network: the converter leaves out a bias of zeros
        network.head.bias.fill_(0.5)
    x = torch.randn(1, *networks.input_shape(name))
    build_tflite(network, x, tmp_path, PORTABLE)
    assert operators(fast_tflite(network, x)) == operators((tmp_path / "model.tflite").read_bytes())


class Doubled(nn.Module):
    """A tensor that two operators read is not fused away; a linear layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, stride=3, bias=False)
        self.head = nn.Linear(4, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head((torch.relu(y) * torch.sigmoid(y)).mean((2, 3)))


@pytest.mark.parametrize(
    "network",
    [
        # The largest of negative numbers beside the border; padding other than TFLite's own.
        nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.MaxPool2d(3, 2, 1)),
        nn.Sequential(nn.Conv2d(3, 5, 3, 2, padding=(1, 0)), nn.AvgPool2d(2)),
        nn.Sequential(nn.Conv2d(3, 5, 5, 2, padding=2), nn.ReLU6(), nn.AdaptiveAvgPool2d(4)),
        Doubled(),
    ],
    ids=["max pool", "uneven padding", "a pooling of nothing", "read twice"],
)
@pytest.mark.parametrize("flat", [False, True], ids=["picture", "row"])
def test_layers_keep_their_answers_in_the_networks_order(network: nn.Module, flat: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8) - 2
    with torch.inference_mode():
        expected = network.eval()(x)
    if flat and expected.ndim == 4:
        network, expected = nn.Sequential(network, nn.Flatten(), nn.ReLU()), expected.flatten(1)
        expected = expected.relu()
    elif expected.ndim == 4:
        expected = expected.permute(0, 2, 3, 1)
    found = run_tflite(fast_tflite(network.eval(), x), np.ascontiguousarray(x.permute(0, 2, 3, 1)))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_weights_lie_inside_at_the_schemas_alignment() -> None:
    model = fast_tflite(networks.build("digits_mobilenet", 0), torch.zeros(1, 3, 32, 32))
    start = np.frombuffer(model, np.uint8).ctypes.data
    parsed = schema.Model.GetRootAs(model, 0)
    buffers = [parsed.Buffers(i) for i in range(1, parsed.BuffersLength())]
    assert [b.Offset() for b in buffers] == [0] * len(buffers)
    assert {(b.DataAsNumpy().ctypes.data - start) % ALIGNMENT for b in buffers} == {0}


def test_equal_networks_are_equal_bytes() -> None:
    one, other = (
        fast_tflite(networks.build("digits_resnet", 0), torch.zeros(1, 3, 32, 32)) for _ in range(2)
    )
    assert one == other


def test_operators_are_of_the_first_version() -> None:
    """What tflite-runtime of any year loads."""
    model = fast_tflite(networks.build("resnet20", 0), torch.zeros(1, 3, 32, 32))
    codes = schema.ModelT.InitFromPackedBuf(model, 0).operatorCodes
    assert all(code.version == 1 for code in codes)
    assert all(code.deprecatedBuiltinCode == code.builtinCode for code in codes)


def test_anchors_are_the_same_networks_for_both_runtimes(tmp_path: Path) -> None:
    for name, path in write_anchors(tmp_path, seed=0).items():
        model = path.read_bytes()
        assert from_onnx("ort", model) == model
        said = from_onnx("tflite", model)
        (given,) = onnx.load_model_from_string(model).graph.input
        shape = [d.dim_value for d in given.type.tensor_type.shape.dim]
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        expected, last = run_onnx(model, x), x
        if x.ndim == 4:
            expected = expected.transpose(0, 2, 3, 1)
            last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        found = run_tflite(said, last)
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
        assert len(said) < 1.1 * len(model) + 40_000, f"{name}: a shared matrix is written once"


@pytest.mark.parametrize("runtime", SUFFIX)
def test_the_agent_loads_the_candidate_of_its_runtime(runtime: str, tmp_path: Path) -> None:
    path = tmp_path / f"candidate{SUFFIX[runtime]}"
    path.write_bytes(candidate(runtime, pruned("digits_resnet"), torch.zeros(1, 3, 32, 32)))
    loaded = RUNTIMES[runtime](path, 1, tmp_path)
    sizes = {"ort": (1, 3, 32, 32), "tflite": (1, 32, 32, 3)}[runtime]
    assert [tensor.shape for tensor in loaded.inputs] == [sizes]
    loaded.set_inputs([bytes(4 * 3 * 32 * 32)])
    assert len(loaded.time_batch(2)) == 2
    loaded.close()


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Softmax(1), "operator Softmax"),
        (nn.Conv2d(4, 4, 3, dilation=2), "dilation"),
        (nn.Conv2d(4, 4, 1, groups=2), "2 groups"),
        (nn.MaxPool2d(3, dilation=2), "dilation"),
        (nn.MaxPool2d(3, 2, ceil_mode=True), "ceil_mode"),
        (nn.AvgPool2d(3, padding=1), "padding"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), "operator BatchNormalization"),
        (nn.Hardtanh(-1, 1), "Clip"),
    ],
)
def test_what_it_does_not_know_it_refuses(layer: nn.Module, said: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), layer).eval()
    with pytest.raises(TargetError, match=f"{said}.*build_tflite"):
        fast_tflite(network, torch.zeros(1, 3, 8, 8))


def test_a_network_that_cannot_be_measured_is_not_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holes.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    holes = nn.Conv2d(3, 16, 3, dilation=2), nn.Conv2d(16, 16, 3)\n"
        "    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)\n"
        "    return nn.Sequential(*holes, *head)\n"
        "net.input_shape = (3, 32, 32)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    here = RecipeTarget(kind="tflite", name="here", machine="x86_64")
    recipe = Recipe(
        version=1, name="t", networks=("holes:net",), seed=0, runtime="tflite", targets=(here,)
    )
    told: list[object] = []
    with pytest.raises(TargetError, match="Conv with dilation"):
        train_dense(WorkFolder(tmp_path, recipe), recipe, "holes:net", lambda *s: told.append(s))
    assert told == []
