"""How each operator of a canonical ONNX graph is said in TFLite.

Input: a node, its weights and the writer. Output: one or two operators written, channels last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from compiler.targets.fast_tflite_writer import FlatbufferWriter, Shape

Weights = Mapping[str, NDArray[Any]]
Emitter = Callable[[FlatbufferWriter, Any, str, str, Weights], None]
"""(writer, node, name of the output, what is fused into it, weights)."""

Ops = schema.BuiltinOperator

NOTHING = "NONE"
"""TFLite's word for no fused activation."""


class UnsupportedError(Exception):
    """A node that has no equal here, in words."""


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _activation(name: str) -> int:
    return int(getattr(schema.ActivationFunctionType, name))


def _fusable(node: Any, weights: Weights) -> str:
    """The name of the activation that this node is, NOTHING where it is another operator."""
    if node.op_type == "Relu":
        return "RELU"
    if node.op_type == "Clip" and _is_relu6(node, weights):
        return "RELU6"
    return NOTHING


def _is_relu6(node: Any, weights: Weights) -> bool:
    bounds = [float(weights[name]) for name in node.input[1:] if name in weights]
    return bounds == [0.0, 6.0]


def _flattening(node: Any, weights: Weights) -> str:
    """A mean that drops the dimensions it is over needs no RESHAPE after it."""
    return "FLATTEN" if node.op_type == "Flatten" and _rows(node) else NOTHING


FUSED: dict[str, Callable[[Any, Weights], str]] = {
    **dict.fromkeys(("Conv", "Add", "Mul", "Gemm", "MatMul"), _fusable),
    "GlobalAveragePool": _flattening,
}
"""By operator: what of the operator after it goes into it. NOTHING for another operator."""


def _convolution(w: FlatbufferWriter, node: Any, out: str, fused: str, p: Weights) -> None:
    said = _attributes(node)
    _require_plain_window(node.op_type, said)
    kernel, bias = _weights_and_bias(node, p)
    groups, (stride_h, stride_w) = said.get("group", 1), said.get("strides", (1, 1))
    source, shape, padding = _padded(w, node.input[0], said, kernel.shape[2:], fill=None)
    height, width = _positions(shape, kernel.shape[2:], (stride_h, stride_w), padding)
    options: Any
    if groups == 1:
        code, options = Ops.CONV_2D, schema.Conv2DOptionsT()
        weights = kernel.transpose(0, 2, 3, 1)
    elif groups == kernel.shape[0] and kernel.shape[1] == 1 and groups == shape[3]:
        code, options = Ops.DEPTHWISE_CONV_2D, schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = 1
        weights = kernel.transpose(1, 2, 3, 0)
    else:
        raise UnsupportedError(f"a convolution in {groups} groups of {kernel.shape[1]} channels")
    options.padding, options.strideH, options.strideW = padding, stride_h, stride_w
    options.fusedActivationFunction = _activation(fused)
    options.dilationHFactor = options.dilationWFactor = 1
    inputs = [source, w.add_constant(weights), w.add_constant(bias)]
    w.add_operator(code, inputs, out, (1, height, width, kernel.shape[0]), options)


def _weights_and_bias(node: Any, p: Weights, axis: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """axis: of the weights, the one along which outputs lie. The bias is zero where none is."""
    _, *names = node.input
    if not all(name in p for name in names):
        raise UnsupportedError(f"{node.op_type} with weights that are computed")
    weights, *bias = (p[name] for name in names)
    none = np.zeros(weights.shape[axis], dtype=np.float32)
    return weights, bias[0] if bias else none


def _require_plain_window(operator: str, said: Mapping[str, Any]) -> None:
    """A window of two dimensions without holes, placed by its size, strides and pads alone."""
    if len(said["kernel_shape"]) != 2:
        raise UnsupportedError(f"{operator} over {len(said['kernel_shape'])} dimensions")
    if any(step != 1 for step in said.get("dilations", ())):
        raise UnsupportedError(f"{operator} with dilation {tuple(said['dilations'])}")
    if said.get("auto_pad", b"NOTSET") != b"NOTSET" or said.get("ceil_mode"):
        raise UnsupportedError(f"{operator} with {dict(said)}")


def _padded(
    w: FlatbufferWriter, name: str, said: Mapping[str, Any], kernel: Shape, fill: float | None
) -> tuple[int, Shape, int]:
    """(tensor, its shape, padding): by the operator itself where SAME means the same, else PAD.

    fill: what is padded with, None for zero.
    """
    shape = w.shapes[name]
    pads = tuple(said.get("pads", (0, 0, 0, 0)))
    strides = said.get("strides", (1, 1))
    if pads == (0, 0, 0, 0):
        return w.index(name), shape, int(schema.Padding.VALID)
    same = [_same(shape[1 + i], kernel[i], strides[i]) for i in range(2)]
    if [(pads[i], pads[2 + i]) for i in range(2)] == same:
        return w.index(name), shape, int(schema.Padding.SAME)
    around = np.array([[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]], dtype=np.int32)
    larger = (1, shape[1] + pads[0] + pads[2], shape[2] + pads[1] + pads[3], shape[3])
    inputs, padded = [w.index(name), w.add_constant(around)], f"{name} padded for {said}"
    if fill is None:
        w.add_operator(Ops.PAD, inputs, padded, larger, schema.PadOptionsT())
    else:
        inputs.append(w.add_constant(np.array(fill, dtype=np.float32)))
        w.add_operator(Ops.PADV2, inputs, padded, larger, schema.PadV2OptionsT())
    return w.index(padded), larger, int(schema.Padding.VALID)


def _same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """How many rows SAME adds before and after (TensorFlow's nn.convolution)."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _positions(shape: Shape, kernel: Shape, strides: tuple[int, int], padding: int) -> Shape:
    if padding == schema.Padding.SAME:
        return tuple(math.ceil(shape[1 + i] / strides[i]) for i in range(2))
    return tuple((shape[1 + i] - kernel[i]) // strides[i] + 1 for i in range(2))


def _pool(w: FlatbufferWriter, node: Any, out: str, fused: str, p: Weights) -> None:
    said = _attributes(node)
    kernel, strides = tuple(said["kernel_shape"]), tuple(said.get("strides", (1, 1)))
    largest = node.op_type == "MaxPool"
    _require_plain_window(node.op_type, said)
    if not largest and any(said.get("pads", ())):
        raise UnsupportedError("AveragePool with padding")
    if (kernel, strides) == ((1, 1), (1, 1)) and not any(said.get("pads", ())):
        # What is left of an adaptive pooling that has nothing to do: the converter drops it.
        w.add_alias(out, node.input[0])
        return
    lowest = float(np.finfo(np.float32).min)
    source, shape, padding = _padded(w, node.input[0], said, kernel, lowest)
    options = schema.Pool2DOptionsT()
    options.padding, (options.strideH, options.strideW) = padding, strides
    options.filterHeight, options.filterWidth = kernel
    height, width = _positions(shape, kernel, strides, padding)
    code = Ops.MAX_POOL_2D if largest else Ops.AVERAGE_POOL_2D
    w.add_operator(code, [source], out, (1, height, width, shape[3]), options)


def _global_pool(w: FlatbufferWriter, node: Any, out: str, fused: str, p: Weights) -> None:
    shape = w.shapes[node.input[0]]
    options = schema.ReducerOptionsT()
    options.keepDims = fused == NOTHING
    inputs = [w.index(node.input[0]), w.add_constant(np.array([1, 2], dtype=np.int32))]
    pooled = (1, 1, 1, shape[3]) if options.keepDims else (1, shape[3])
    w.add_operator(Ops.MEAN, inputs, out, pooled, options)


def _binary(w: FlatbufferWriter, node: Any, out: str, fused: str, p: Weights) -> None:
    if any(name in p for name in node.input):
        raise UnsupportedError(f"{node.op_type} with a constant")
    shapes = [w.shapes[name] for name in node.input]
    if len({len(shape) for shape in shapes}) != 1:
        # Channels are last here: dimensions that one tensor lacks would be others.
        raise UnsupportedError(f"{node.op_type} of {shapes}")
    shape = tuple(np.broadcast_shapes(*shapes))
    code, options = {
        "Add": (Ops.ADD, schema.AddOptionsT()),
        "Mul": (Ops.MUL, schema.MulOptionsT()),
    }[node.op_type]
    options.fusedActivationFunction = _activation(fused)
    w.add_operator(code, [w.index(name) for name in node.input], out, shape, options)


def _elementwise(w: FlatbufferWriter, node: Any, out: str, fused: str, p: Weights) -> None:
    if node.op_type == "Clip" and not _is_relu6(node, p):
        raise UnsupportedError("a Clip other than to 0..6")
    code = {"Relu": Ops.RELU, "Clip": Ops.RELU6, "Sigmoid": Ops.LOGISTIC}[node.op_type]
    w.add_operator(code, [w.index(node.input[0])], out, w.shapes[node.input[0]], None)


def _flatten(w: FlatbufferWriter, node: Any, out: str, fused: str, p: Weights) -> None:
    """In the network's order, (C, H, W), by a TRANSPOSE first, as the converter does it."""
    name = node.input[0]
    shape = w.shapes[name]
    if not _rows(node) or len(shape) != 4:
        raise UnsupportedError("a Flatten other than of pictures into rows")
    one, height, width, channels = shape
    if (height, width) != (1, 1):
        order = w.add_constant(np.array([0, 3, 1, 2], dtype=np.int32))
        first = f"{name} channels first"
        shape = (one, channels, height, width)
        inputs = [w.index(name), order]
        w.add_operator(Ops.TRANSPOSE, inputs, first, shape, schema.TransposeOptionsT())
        name = first
    flat = np.array((one, math.prod(shape)), dtype=np.int32)
    options = schema.ReshapeOptionsT()
    options.newShape = flat
    inputs = [w.index(name), w.add_constant(flat)]
    w.add_operator(Ops.RESHAPE, inputs, out, tuple(flat.tolist()), options)


def _rows(flatten: Any) -> bool:
    return bool(_attributes(flatten).get("axis", 1) == 1)


_PLAIN_GEMM = {"transA": 0, "alpha": 1.0, "beta": 1.0}


def _linear(w: FlatbufferWriter, node: Any, out: str, fused: str, p: Weights) -> None:
    """A Gemm, or a MatMul by a constant matrix: a linear layer without a bias."""
    said = _attributes(node)
    if any(said.get(name, default) != default for name, default in _PLAIN_GEMM.items()):
        raise UnsupportedError(f"a {node.op_type} with {said}")
    matrix, bias = _weights_and_bias(node, p, axis=0 if said.get("transB") else -1)
    shape = w.shapes[node.input[0]]
    if len(shape) != 2 or matrix.ndim != 2:
        raise UnsupportedError(f"a {node.op_type} of {shape} by {matrix.shape}")
    weights = matrix if said.get("transB") else matrix.T
    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = _activation(fused)
    inputs = [w.index(node.input[0]), w.add_constant(weights), w.add_constant(bias)]
    w.add_operator(Ops.FULLY_CONNECTED, inputs, out, (1, len(weights)), options)


def _transpose(w: FlatbufferWriter, node: Any, out: str, fused: str, p: Weights) -> None:
    """Of height and width: channels are last here."""
    if tuple(_attributes(node).get("perm", ())) != (0, 1, 3, 2):
        raise UnsupportedError("a Transpose of more than height and width")
    one, height, width, channels = w.shapes[node.input[0]]
    inputs = [w.index(node.input[0]), w.add_constant(np.array([0, 2, 1, 3], dtype=np.int32))]
    shape = (one, width, height, channels)
    w.add_operator(Ops.TRANSPOSE, inputs, out, shape, schema.TransposeOptionsT())


EMITTERS: dict[str, Emitter] = {
    "Conv": _convolution,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "Add": _binary,
    "Mul": _binary,
    "Relu": _elementwise,
    "Clip": _elementwise,
    "Sigmoid": _elementwise,
    "Flatten": _flatten,
    "Gemm": _linear,
    "MatMul": _linear,
    "Transpose": _transpose,
}
"""By ONNX operator. Whatever is not here is refused."""
