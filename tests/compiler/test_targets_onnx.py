"""ONNX: faithful to PyTorch, and the fast export is the same graph as the shipped one."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

from compiler.targets import TargetError, build_onnx, fast_onnx
from compiler.targets.built import parity, reference_output
from compiler.targets.onnx import run_onnx
from compiler.targets.onnx_graph import OPSET, canonical_onnx, operators, same_structure
from device_agents.contract.artifacts import Target

TARGET = Target("rack-onnx", "x86_64", "linux", "onnxruntime")


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(),
    )


class Mobile(nn.Module):
    """Depthwise-separable; the head is a mean without kept dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(3, 8, 3, 2), convolution(8, 8, 3, groups=8), convolution(8, 24, 1)
        )
        self.classifier = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Residual(nn.Module):
    """A shortcut with its own convolution; the head is adaptive pooling and flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 8, 3)
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(self.body(x) + self.shortcut(x))
        return self.classifier(torch.flatten(self.pool(x), 1))


def seeded(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    network = kind()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def example() -> Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=[Mobile, Residual], ids=["mobile", "residual"])
def case(request, example, tmp_path_factory):
    network = seeded(request.param)
    return network, build_onnx(network, example, tmp_path_factory.mktemp("onnx"), TARGET)


def test_it_answers_as_pytorch_does(case, example):
    network, built = case
    model = built.files[0].path.read_bytes()
    found = run_onnx(model, example.numpy())
    assert parity(TARGET, reference_output(network, example), found) == built.max_abs_err <= 1e-4
    assert (built.input_layout, built.input_shape) == ("NCHW", (1, 3, 32, 32))
    assert built.output_shape == (1, 10)
    assert built.golden_input == example.numpy().tobytes()
    assert built.golden_output == reference_output(network, example).tobytes()


def test_the_model_is_one_static_file_of_a_known_opset(case):
    _, built = case
    (file,) = built.files
    model = onnx.load(file.path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 32, 32]
    assert [file.name] == [path.name for path in file.path.parent.iterdir()]


def test_the_model_holds_no_path_of_this_machine(case):
    _, built = case
    content = built.files[0].path.read_bytes()
    assert b".py" not in content
    assert b"site-packages" not in content


def test_batch_norm_is_folded_and_pooling_is_onnxruntimes_own(case):
    _, built = case
    found = set(operators(built.files[0].path.read_bytes()))
    assert found <= {"Conv", "Clip", "Relu", "Add", "GlobalAveragePool", "Flatten", "Gemm"}


def test_the_fast_export_is_the_same_graph_with_the_same_answer(case, example):
    network, built = case
    shipped = built.files[0].path.read_bytes()
    fast = fast_onnx(network, example)
    assert same_structure(fast, shipped)
    parity(TARGET, run_onnx(shipped, example.numpy()), run_onnx(fast, example.numpy()), atol=1e-6)


def test_a_fresh_network_with_biases_of_zero_has_the_structure_of_a_trained_one(example, tmp_path):
    torch.manual_seed(0)
    fresh = Mobile().eval()
    built = build_onnx(fresh, example, tmp_path, TARGET)
    assert same_structure(fast_onnx(fresh, example), built.files[0].path.read_bytes())
    assert same_structure(fast_onnx(fresh, example), fast_onnx(seeded(Mobile), example))


def test_two_networks_do_not_have_the_same_structure(example):
    assert not same_structure(
        fast_onnx(seeded(Mobile), example), fast_onnx(seeded(Residual), example)
    )


def test_fast_exports_of_equal_networks_are_equal_bytes(example):
    assert fast_onnx(seeded(Mobile), example) == fast_onnx(seeded(Mobile), example)


def test_a_network_in_training_mode_is_refused(example, tmp_path):
    network = seeded(Mobile).train()
    with pytest.raises(ValueError, match="training mode"):
        build_onnx(network, example, tmp_path, TARGET)
    with pytest.raises(ValueError, match="training mode"):
        fast_onnx(network, example)


def test_a_batch_of_two_is_refused(example, tmp_path):
    with pytest.raises(ValueError, match=r"expected \(1, C, H, W\) float32"):
        build_onnx(seeded(Mobile), torch.cat([example, example]), tmp_path, TARGET)


def test_a_model_that_deviates_is_refused():
    expected = torch.ones(1, 10).numpy()
    with pytest.raises(TargetError, match=r"deviates by 0\.001 from PyTorch"):
        parity(TARGET, expected, expected + 1e-3)
    with pytest.raises(TargetError, match="deviates by nan"):
        parity(TARGET, expected, expected * float("nan"))
    with pytest.raises(TargetError, match=r"answers \(1, 9\)"):
        parity(TARGET, expected, expected[:, :9])


def test_another_opset_is_refused(example):
    model = onnx.load_model_from_string(fast_onnx(seeded(Mobile), example))
    model.opset_import[0].version = OPSET - 1
    with pytest.raises(ValueError, match="expected opset 18"):
        canonical_onnx(model.SerializeToString())
