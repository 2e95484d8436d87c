"""A network as a plan of XNNPACK operators, in float32.

Input: a network in eval mode and one example (1, C, H, W). Output: the plan's bytes. It is made of
the canonical ONNX graph, operator by operator; one that is not in EMITTERS is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.targets.built import Floats
from compiler.targets.onnx import onnx_bytes
from compiler.targets.xnnpack_plan import Kind, PlanWriter, Shape, Window
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

Bounds = tuple[float, float]
"""What an answer is clamped to."""

FREE: Bounds = (-math.inf, math.inf)


class UnsupportedError(Exception):
    """An operator that has no equal here, in words."""


def plan_of(network: nn.Module, example: Tensor, target: Target) -> bytes:
    """The plan's bytes.

    Raises UnsupportedError, TargetError when the exporter fails, ValueError for a network in
    training mode.
    """
    return plan_of_onnx(onnx_bytes(network, example, target, None))


def plan_of_onnx(model: bytes) -> bytes:
    """The same for a canonical ONNX model (onnx_graph.canonical_onnx). Raises UnsupportedError."""
    import onnx

    graph = onnx.load_model_from_string(model).graph
    emission = Emission({t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer})
    emission.read(graph)
    return emission.plan.finish(graph.input[0].name, graph.output[0].name)


@dataclass
class Emission:
    """A graph on its way into a plan.

    weights: by name. rows: tensors of two dimensions; such a one may still lie as the picture
    (C, H, W) that it was flattened from, channels last, which only a linear layer can read.
    """

    weights: Mapping[str, Floats]
    plan: PlanWriter = field(default_factory=PlanWriter)
    rows: set[str] = field(default_factory=set)

    def read(self, graph: Any) -> None:
        """Every node once, in the graph's order; a clamp goes into what it follows."""
        (given,), (wanted,) = graph.input, graph.output
        one, *shape = (d.dim_value for d in given.type.tensor_type.shape.dim)
        if one != 1 or len(shape) != 3:
            raise UnsupportedError(f"an input of shape {(one, *shape)}")
        self.plan.add_input(given.name, (shape[0], shape[1], shape[2]))
        readers: dict[str, list[Any]] = {wanted.name: [None]}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        done: set[str] = set()
        for node in graph.node:
            if node.output[0] not in done:
                done.add(self._emit(node, readers))
        if self._is_picture_in_a_row(wanted.name):
            raise UnsupportedError("Flatten without a linear layer after it")

    def weights_of(self, name: str, kernel: Floats) -> dict[str, int]:
        """Fields of a kernel (outputs, inputs, height, width), which is made of that weight."""
        return {"weights": self.plan.weights.add(kernel.transpose(0, 2, 3, 1))}

    def bias_of(self, values: Floats) -> dict[str, int]:
        return {"bias": self.plan.weights.add(values)}

    def shape(self, name: str) -> Shape:
        if name not in self.plan.shapes:
            raise UnsupportedError(f"an operator of the constant {name}")
        if self._is_picture_in_a_row(name):
            raise UnsupportedError("Flatten of a picture that no linear layer follows")
        return self.plan.shapes[name]

    def bounds(self, node: Any) -> Bounds | None:
        """What this node clamps to; None for another operator."""
        if node is None or node.op_type not in ("Relu", "Clip"):
            return None
        low, high = (0.0, math.inf) if node.op_type == "Relu" else FREE
        given = [self.weights.get(name) for name in node.input[1:]]
        if node.op_type == "Clip":
            low, high = (
                default if value is None else float(value)
                for value, default in zip((*given, None, None), FREE, strict=False)
            )
        return low, high

    def _emit(self, node: Any, readers: Mapping[str, list[Any]]) -> str:
        """The name of what was made: the node's own output, or that of the clamp after it."""
        emit = EMITTERS.get(node.op_type)
        if emit is None:
            raise UnsupportedError(f"operator {node.op_type} is not among {sorted(EMITTERS)}")
        following, *others = readers.get(node.output[0], [None])
        bounds = self.bounds(following) if node.op_type in CLAMPING and not others else None
        out = node.output[0] if bounds is None else following.output[0]
        emit(self, node, out, bounds or FREE)
        return str(out)

    def _is_picture_in_a_row(self, name: str) -> bool:
        return name in self.rows and self.plan.shapes[name][1:] != (1, 1)


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _window(node: Any, kernel: tuple[int, ...]) -> Window:
    said = _attributes(node)
    if len(kernel) != 2:
        raise UnsupportedError(f"{node.op_type} over {len(kernel)} dimensions")
    if said.get("auto_pad", b"NOTSET") != b"NOTSET" or said.get("ceil_mode"):
        raise UnsupportedError(f"{node.op_type} with {said}")
    strides, dilations = (said.get(name, (1, 1)) for name in ("strides", "dilations"))
    top, left, bottom, right = said.get("pads", (0, 0, 0, 0))
    size = (kernel[0], kernel[1])
    return Window(size, tuple(strides), tuple(dilations), (top, left, bottom, right))


def _clamped(bounds: Bounds) -> dict[str, float]:
    return {"low": bounds[0], "high": bounds[1]}


def _constants(e: Emission, node: Any) -> list[Floats]:
    names = node.input[1:]
    if not all(name in e.weights for name in names):
        raise UnsupportedError(f"{node.op_type} with weights that are computed")
    return [e.weights[name] for name in names]


def _convolution(e: Emission, node: Any, out: str, bounds: Bounds) -> None:
    kernel, bias = _constants(e, node)
    groups = _attributes(node).get("group", 1)
    window = _window(node, kernel.shape[2:])
    e.plan.add(
        Kind.CONVOLUTION,
        [node.input[0]],
        out,
        (kernel.shape[0], *window.over(e.shape(node.input[0]))),
        groups=groups,
        **e.weights_of(node.input[1], kernel),
        **e.bias_of(bias),
        **window.fields(),
        **_clamped(bounds),
    )


_PLAIN_GEMM = {"transA": 0, "alpha": 1.0, "beta": 1.0}


def _linear(e: Emission, node: Any, out: str, bounds: Bounds) -> None:
    """A Gemm, or a MatMul by a constant matrix: a linear layer without a bias."""
    said = _attributes(node)
    if any(said.get(name, default) != default for name, default in _PLAIN_GEMM.items()):
        raise UnsupportedError(f"{node.op_type} with {said}")
    matrix, *rest = _constants(e, node)
    if matrix.ndim != 2 or node.input[0] not in e.rows:
        raise UnsupportedError(f"{node.op_type} of other than a row by a matrix")
    matrix = matrix if said.get("transB") else matrix.T
    channels, height, width = e.plan.shapes[node.input[0]]
    # The network reads a flattened picture channel by channel; here its channels lie last.
    kernel = matrix.reshape(len(matrix), channels, height, width)
    bias = rest[0] if rest else np.zeros(len(matrix), np.float32)
    e.rows.add(out)
    e.plan.add(
        Kind.FULLY_CONNECTED,
        [node.input[0]],
        out,
        (len(matrix), 1, 1),
        **e.weights_of(node.input[1], kernel),
        **e.bias_of(bias),
        kernel_height=height,
        kernel_width=width,
        **_clamped(bounds),
    )


def _pool(e: Emission, node: Any, out: str, bounds: Bounds) -> None:
    said = _attributes(node)
    window, shape = _window(node, tuple(said["kernel_shape"])), e.shape(node.input[0])
    largest = node.op_type == "MaxPool"
    if window == Window((1, 1)) and bounds == FREE:
        e.plan.add_alias(out, node.input[0])  # an adaptive pooling that has nothing to do
        return
    if window.kernel == (1, 1):
        raise UnsupportedError(f"{node.op_type} of single points")
    if not largest and (window.dilations != (1, 1) or (any(window.pads) and _counts_pads(said))):
        raise UnsupportedError(f"AveragePool with {said}")
    e.plan.add(
        Kind.MAX_POOL if largest else Kind.AVERAGE_POOL,
        [node.input[0]],
        out,
        (shape[0], *window.over(shape)),
        **window.fields(),
        **_clamped(bounds),
    )


def _counts_pads(said: Mapping[str, Any]) -> bool:
    return bool(said.get("count_include_pad"))


def _global_average(e: Emission, node: Any, out: str, bounds: Bounds) -> None:
    channels, *_ = e.shape(node.input[0])
    e.plan.add(Kind.GLOBAL_AVERAGE, node.input, out, (channels, 1, 1), **_clamped(bounds))


def _binary(e: Emission, node: Any, out: str, bounds: Bounds) -> None:
    one, other = (e.shape(name) for name in node.input)
    if len({name in e.rows for name in node.input}) != 1:
        raise UnsupportedError(f"{node.op_type} of a row and a picture")
    channels, height, width = np.broadcast_shapes(one, other)
    if node.input[0] in e.rows:
        e.rows.add(out)
    kind = Kind.ADD if node.op_type == "Add" else Kind.MULTIPLY
    e.plan.add(kind, node.input, out, (channels, height, width), **_clamped(bounds))


def _elementwise(e: Emission, node: Any, out: str, bounds: Bounds) -> None:
    source = node.input[0]
    shape, said = e.shape(source), {}
    kind = {"Sigmoid": Kind.SIGMOID, "HardSwish": Kind.HARD_SWISH}.get(node.op_type, Kind.CLAMP)
    if node.op_type == "HardSigmoid":
        attributes = _attributes(node)
        kind = Kind.HARD_SIGMOID
        said = {"scale": attributes.get("alpha", 0.2), "shift": attributes.get("beta", 0.5)}
    elif kind is Kind.CLAMP:
        own = e.bounds(node)
        assert own is not None, "Relu and Clip have bounds"
        said = _clamped(own)
    if source in e.rows:
        e.rows.add(out)
    e.plan.add(kind, [source], out, shape, **said)


def _flatten(e: Emission, node: Any, out: str, bounds: Bounds) -> None:
    if _attributes(node).get("axis", 1) != 1:
        raise UnsupportedError("a Flatten other than of pictures into rows")
    e.plan.add_alias(out, node.input[0])
    e.rows.add(out)


def _pad(e: Emission, node: Any, out: str, bounds: Bounds) -> None:
    pads, *value = (e.weights.get(name) for name in node.input[1:3])
    mode = _attributes(node).get("mode", b"constant")
    if mode != b"constant" or pads is None or len(pads) != 8 or pads[[0, 1, 4, 5]].any():
        raise UnsupportedError(f"a Pad other than of height and width by a number ({mode!r})")
    top, left, bottom, right = (int(pads[i]) for i in (2, 3, 6, 7))
    channels, height, width = e.shape(node.input[0])
    around = {"top": top, "right": right, "bottom": bottom, "left": left}
    shape = (channels, height + top + bottom, width + left + right)
    filled = float(value[0]) if value and value[0] is not None else 0.0
    e.plan.add(Kind.PAD, [node.input[0]], out, shape, scale=filled, **around)


Emitter = Callable[[Emission, Any, str, Bounds], None]
"""(emission, node, name of the output, what it is clamped to)."""

CLAMPING = (
    *("Conv", "Gemm", "MatMul", "Add", "Mul", "MaxPool", "AveragePool"),
    "GlobalAveragePool",
)
"""Operators that clamp their own answer."""

EMITTERS: dict[str, Emitter] = {
    "Add": _binary,
    "AveragePool": _pool,
    "Clip": _elementwise,
    "Conv": _convolution,
    "Flatten": _flatten,
    "Gemm": _linear,
    "GlobalAveragePool": _global_average,
    "HardSigmoid": _elementwise,
    "HardSwish": _elementwise,
    "MatMul": _linear,
    "MaxPool": _pool,
    "Mul": _binary,
    "Pad": _pad,
    "Relu": _elementwise,
    "Sigmoid": _elementwise,
}
"""By ONNX operator. Whatever is not here is refused."""
