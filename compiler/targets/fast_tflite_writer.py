"""A TFLite flatbuffer in the making: tensors, operators, and at the end its bytes.

Input: tensors by name with their shapes, operators with their options. Output: bytes that every
interpreter since TensorFlow 2.0 loads. It knows the file format and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Shape = tuple[int, ...]

_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
}


class FlatbufferWriter:
    """Collects one subgraph. Names are the graph's own; they are not written.

    shapes: of every named tensor, channels last. flattened: of tensors that are a picture's rows,
    the picture's shape.
    """

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[int, int] = {}
        self._buffers: list[Any] = [schema.BufferT()]  # the first one is empty by convention
        self._index: dict[str, int] = {}
        self._inputs: list[int] = []
        self.shapes: dict[str, Shape] = {}
        self.flattened: dict[str, Shape] = {}

    def add_input(self, name: str, shape: Shape) -> None:
        """float32."""
        self._inputs.append(self.add_tensor(name, shape))

    def add_tensor(self, name: str, shape: Shape) -> int:
        """A float32 tensor that an operator fills. Returns its index."""
        self.shapes[name] = shape
        self._index[name] = self._append(shape, schema.TensorType.FLOAT32, 0)
        return self._index[name]

    def add_constant(self, values: NDArray[Any]) -> int:
        """float32 or int32. Returns its index."""
        values = np.ascontiguousarray(values)
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), dtype=np.uint8)
        self._buffers.append(buffer)
        return self._append(values.shape, _TYPES[values.dtype], len(self._buffers) - 1)

    def index(self, name: str) -> int:
        return self._index[name]

    def add_operator(
        self,
        code: int,
        inputs: Sequence[int],
        out: str,
        shape: Shape,
        options: Any,
    ) -> None:
        """code: schema.BuiltinOperator. options: the object of that operator's options, or None."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(code, len(self._codes))
        operator.inputs = np.array(inputs, dtype=np.int32)
        operator.outputs = np.array([self.add_tensor(out, shape)], dtype=np.int32)
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self._operators.append(operator)

    def finish(self, output: str) -> bytes:
        """The whole file."""
        import flatbuffers  # type: ignore[import-untyped]

        graph = schema.SubGraphT()
        graph.name = b"main"
        graph.tensors, graph.operators = self._tensors, self._operators
        graph.inputs = np.array(self._inputs, dtype=np.int32)
        graph.outputs = np.array([self._index[output]], dtype=np.int32)
        model = schema.ModelT()
        model.version = 3
        model.description = b"fleetcut candidate"
        model.operatorCodes = [_operator_code(code) for code in self._codes]
        model.subgraphs, model.buffers = [graph], self._buffers
        builder = flatbuffers.Builder(1024 + sum(len(b.data) for b in self._buffers[1:]))
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _append(self, shape: Sequence[int], kind: int, buffer: int) -> int:
        tensor = schema.TensorT()
        tensor.shape = np.array(shape, dtype=np.int32)
        tensor.type = kind
        tensor.buffer = buffer
        tensor.name = b"t%d" % len(self._tensors)
        self._tensors.append(tensor)
        return len(self._tensors) - 1


def _operator_code(code: int) -> Any:
    entry = schema.OperatorCodeT()
    # Readers before TensorFlow 2.4 know the one field, later ones the other.
    entry.deprecatedBuiltinCode = min(code, 127)
    entry.builtinCode = code
    entry.version = 1
    return entry
