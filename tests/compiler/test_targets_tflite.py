"""TFLite: faithful to PyTorch, channels last, and whole for old runtimes."""

from __future__ import annotations

import flatbuffers
import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from torch import Tensor, nn

from compiler.targets import TargetError, build_tflite
from compiler.targets.built import reference_output
from compiler.targets.tflite import run_tflite
from compiler.targets.tflite_flatbuffer import with_weights_inside
from device_agents.contract.artifacts import Target

TARGET = Target("rack-tflite", "x86_64", "linux", "tflite")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    ).eval()


@pytest.fixture(scope="module")
def example() -> Tensor:
    return torch.rand(1, 3, 32, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def built(network, example, tmp_path_factory):
    return build_tflite(network, example, tmp_path_factory.mktemp("tflite"), TARGET)


@pytest.fixture(scope="module")
def model(built) -> bytes:
    return built.files[0].path.read_bytes()


def test_it_answers_to_channels_last_as_pytorch_does(built, model, network, example):
    x = np.frombuffer(built.golden_input, "<f4").reshape(built.input_shape)
    assert (built.input_layout, built.input_shape) == ("NHWC", (1, 32, 24, 3))
    np.testing.assert_array_equal(x, example.permute(0, 2, 3, 1).numpy())
    expected = reference_output(network, example)
    assert built.golden_output == expected.tobytes()
    np.testing.assert_allclose(run_tflite(model, x), expected, rtol=0, atol=1e-4)
    assert built.max_abs_err <= built.atol == 1e-4


def test_no_weight_lies_outside_the_flatbuffer(model):
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    assert [buffer.offset for buffer in parsed.buffers if buffer.offset] == []


def test_weights_outside_the_flatbuffer_are_brought_inside(built, model):
    outside, moved = _with_weights_outside(model)
    assert moved > 0
    x = np.frombuffer(built.golden_input, "<f4").reshape(built.input_shape)
    mended = with_weights_inside(outside)
    parsed = schema.ModelT.InitFromPackedBuf(mended, 0)
    assert all(buffer.offset == 0 for buffer in parsed.buffers)
    np.testing.assert_array_equal(run_tflite(mended, x), run_tflite(model, x))


def test_an_unknown_operator_names_the_target_and_carries_what_the_converter_said(
    example, tmp_path
):
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(TargetError, match=r"^rack-tflite: converting to TFLite failed") as refused:
        build_tflite(Branching().eval(), example, tmp_path, TARGET)
    assert "Next: " in str(refused.value)
    assert refused.value.__cause__ is not None


def _with_weights_outside(model: bytes) -> tuple[bytes, int]:
    """The model as ai-edge-quantizer writes it: large buffers behind the flatbuffer."""
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    large = [b for b in parsed.buffers if b.data is not None and len(b.data) > 64]
    blobs = [bytes(b.data) for b in large]

    def packed(start: int) -> bytes:
        for buffer, blob in zip(large, blobs, strict=True):
            buffer.data, buffer.offset, buffer.size = None, start, len(blob)
            start += len(blob)
        builder = flatbuffers.Builder(len(model))
        builder.Finish(parsed.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    size = len(packed(1 << 20))
    return packed(size) + b"".join(blobs), len(large)
