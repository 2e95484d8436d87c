"""The anchor networks: small, diverse probes whose latencies tell boards apart.

Input: a folder and a seed. Output: one ONNX file an anchor, the same bytes for the same seed.
Each is bound by one thing: dense convolution, many operators, activations, weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FloatArray = NDArray[np.float64]

OPSET = 13
"""Operator set and file version that onnxruntime 1.19, the last for Python 3.8 boards, reads."""
IR_VERSION = 8


class _Graph:
    """A chain of operators under construction; every tensor's name is its position."""

    def __init__(self, rng: np.random.Generator, input_shape: tuple[int, ...]) -> None:
        self._rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._input_shape = input_shape
        self.last = "input"

    def _weight(self, shape: tuple[int, ...], fan_in: int) -> str:
        # He scale: activations neither vanish nor overflow, so no denormal slows a board down.
        return self._stored(self._rng.standard_normal(shape) * np.sqrt(2.0 / fan_in))

    def _averages(self, shape: tuple[int, int, int, int]) -> str:
        # However many follow each other, positive kernels of sum 1 leave the scale as it is.
        values = self._rng.uniform(0.5, 1.5, shape)
        return self._stored(values / values.sum(axis=(1, 2, 3), keepdims=True))

    def _stored(self, values: FloatArray) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def add(self, operator: str, *more_inputs: str, **attributes: object) -> str:
        """Append an operator that reads the last tensor; the new tensor's name."""
        output = f"t{len(self._nodes)}"
        inputs = [self.last, *more_inputs]
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        self.last = output
        return output

    def conv(self, c_in: int, c_out: int, kernel: int, *, groups: int = 1) -> str:
        """Same-size convolution without bias, then ReLU."""
        shape = (c_out, c_in // groups, kernel, kernel)
        fan_in = c_in // groups * kernel * kernel
        weight = self._averages(shape) if groups == c_in else self._weight(shape, fan_in)
        pads = [kernel // 2] * 4
        self.add("Conv", weight, kernel_shape=[kernel, kernel], pads=pads, group=groups)
        return self.add("Relu")

    def linear(self, width: int, layers: int) -> None:
        """Square layers that share one matrix: the file stays small, the traffic does not."""
        weight = self._weight((width, width), width)
        for _ in range(layers):
            self.add("MatMul", weight)
            self.add("Relu")

    def model(self, name: str, output_shape: tuple[int, ...]) -> onnx.ModelProto:
        def value(tensor: str, shape: tuple[int, ...]) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(tensor, TensorProto.FLOAT, list(shape))

        graph = helper.make_graph(
            self._nodes,
            name,
            [value("input", self._input_shape)],
            [value(self.last, output_shape)],
            self._weights,
        )
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, producer_name="fleetcut")
        model.ir_version = IR_VERSION
        return model


def _conv(rng: np.random.Generator) -> onnx.ModelProto:
    """Dense 3 x 3 convolutions, 152 M multiply-accumulates: bound by arithmetic."""
    graph = _Graph(rng, (1, 16, 28, 28))
    graph.conv(16, 64, 3)
    for _ in range(5):
        graph.conv(64, 64, 3)
    return graph.model("conv", (1, 64, 28, 28))


def _depthwise(rng: np.random.Generator) -> onnx.ModelProto:
    """80 small depthwise 3 x 3 convolutions: bound by what the runtime spends on an operator."""
    graph = _Graph(rng, (1, 64, 28, 28))
    for _ in range(80):
        graph.conv(64, 64, 3, groups=64)
    return graph.model("depthwise", (1, 64, 28, 28))


def _memory(rng: np.random.Generator) -> onnx.ModelProto:
    """Element-wise operators and transposes over 1 MiB tensors: bound by activation traffic."""
    graph = _Graph(rng, (1, 16, 128, 128))
    for _ in range(5):
        kept = graph.last
        graph.add("Relu")
        graph.add("Transpose", perm=[0, 1, 3, 2])
        graph.add("Add", kept)
    return graph.model("memory", (1, 16, 128, 128))


def _linear(rng: np.random.Generator) -> onnx.ModelProto:
    """Fully-connected layers at batch 1 that stream 4 MiB of weights each: bound by weights."""
    graph = _Graph(rng, (1, 1024))
    graph.linear(1024, 10)
    return graph.model("linear", (1, 1024))


ANCHORS: dict[str, Callable[[np.random.Generator], onnx.ModelProto]] = {
    "anchor-conv": _conv,
    "anchor-depthwise": _depthwise,
    "anchor-memory": _memory,
    "anchor-linear": _linear,
}
"""Anchor by name; the names are what the proposed campaign and the exported runs carry."""


def write_anchors(folder: Path, seed: int) -> dict[str, Path]:
    """Write every anchor to FOLDER/NAME.onnx; name → path, in the order of ANCHORS.

    One float32 input "input" each, batch 1. The seed draws the weights, on which latency does
    not depend. The folder is made where it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for position, (name, build) in enumerate(ANCHORS.items()):
        model = build(np.random.default_rng([seed, position]))
        onnx.checker.check_model(model, full_check=True)
        paths[name] = folder / f"{name}.onnx"
        paths[name].write_bytes(model.SerializeToString(deterministic=True))
    return paths
