"""A candidate as TFLite in a fraction of a second: for the many that are measured, never shipped.

Input: a network in eval mode and one example (1, C, H, W). Output: the bytes of a flatbuffer whose
input is (1, H, W, C). It is written from the canonical ONNX graph, operator by operator; what
fast_tflite_ops does not know is refused, and ``build_tflite`` remains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.targets.built import TargetError
from compiler.targets.onnx import fast_onnx
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compiler.targets.fast_tflite_writer import FlatbufferWriter

PORTABLE = Target(name="tflite", machine="any", os="any", runtime="tflite")
"""What a candidate is made for before any board is chosen."""


def fast_tflite(network: nn.Module, example: Tensor) -> bytes:
    """The operators that ``build_tflite`` ships, without its converter: 0.2 s, not 10 s.

    Channels last, batch 1, activations fused into the operator before them as the converter does,
    weights inside the flatbuffer, operator versions of TensorFlow 2.0. Not checked against
    PyTorch. Raises TargetError for an operator that it does not know, ValueError for a network in
    training mode.
    """
    return tflite_of_onnx(fast_onnx(network, example))


def tflite_of_onnx(model: bytes) -> bytes:
    """The same for a canonical ONNX model (onnx_graph.canonical_onnx). Raises TargetError."""
    import onnx

    from compiler.targets.fast_tflite_ops import UnsupportedError
    from compiler.targets.fast_tflite_writer import FlatbufferWriter

    graph = onnx.load_model_from_string(model).graph
    writer = FlatbufferWriter()
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    (given,), (wanted,) = graph.input, graph.output
    shape = tuple(d.dim_value for d in given.type.tensor_type.shape.dim)
    writer.add_input(given.name, _channels_last(shape))
    try:
        _emit(graph, writer, weights)
    except UnsupportedError as error:
        raise TargetError(
            PORTABLE, f"writing a candidate as TFLite: {error}", "use build_tflite for this network"
        ) from None
    return writer.finish(wanted.name)


def _emit(graph: Any, writer: FlatbufferWriter, weights: dict[str, np.ndarray]) -> None:
    """Every node once, in the graph's order; what is fused goes with what it follows."""
    from compiler.targets.fast_tflite_ops import EMITTERS, FUSED, NOTHING, UnsupportedError

    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    done: set[str] = set()
    for node in graph.node:
        if node.output[0] in done:
            continue
        emit = EMITTERS.get(node.op_type)
        if emit is None:
            raise UnsupportedError(f"operator {node.op_type} is not among {sorted(EMITTERS)}")
        out, fused = node.output[0], NOTHING
        following = readers.get(out, [])
        if len(following) == 1 and node.op_type in FUSED:
            fused = FUSED[node.op_type](following[0], weights)
            if fused != NOTHING:
                out = following[0].output[0]
        emit(writer, node, out, fused, weights)
        done |= {node.output[0], out}


def _channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], *shape[2:], shape[1])
