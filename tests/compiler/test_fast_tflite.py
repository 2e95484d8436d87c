"""Candidates as TFLite: the converter's operators and PyTorch's answers, or a refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import nn

from compiler import networks
from compiler.pruning.groups import trace
from compiler.pruning.surgery import materialise
from compiler.targets import TargetError
from compiler.targets.fast_tflite import PORTABLE, fast_tflite
from compiler.targets.tflite import build_tflite, run_tflite


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


def operators(model: bytes) -> list[str]:
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if not k.startswith("_")}
    codes = [names[code.builtinCode] for code in parsed.operatorCodes]
    return [codes[operator.opcodeIndex] for operator in parsed.subgraphs[0].operators]


@pytest.mark.parametrize(
    "name",
    [
        "digits_mobilenet",
        "digits_resnet",
        "resnet20",
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
def test_operators_are_those_that_ship(name: str, tmp_path: Path) -> None:
    network = pruned(name)
    x = torch.randn(1, *networks.input_shape(name))
    build_tflite(network, x, tmp_path, PORTABLE)
    shipped = operators((tmp_path / "model.tflite").read_bytes())
    quick = operators(fast_tflite(network, x))
    counted = ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "FULLY_CONNECTED", "PAD", "MEAN", "RELU")
    assert {op: quick.count(op) for op in counted} == {op: shipped.count(op) for op in counted}


def test_a_picture_is_flattened_in_the_networks_order() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Linear(5 * 16, 7)
    ).eval()
    x = torch.randn(1, 3, 8, 8)
    found = run_tflite(fast_tflite(network, x), np.ascontiguousarray(x.permute(0, 2, 3, 1)))
    with torch.inference_mode():
        assert np.allclose(found, network(x).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Softmax(1), "operator Softmax"),
        (nn.Conv2d(4, 4, 3, dilation=2), "dilation"),
        (nn.Conv2d(4, 4, 1, groups=2), "2 groups"),
        (nn.Hardtanh(-1, 1), "Clip"),
    ],
)
def test_what_it_does_not_know_it_refuses(layer: nn.Module, said: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), layer).eval()
    with pytest.raises(TargetError, match=f"{said}.*build_tflite"):
        fast_tflite(network, torch.zeros(1, 3, 8, 8))
