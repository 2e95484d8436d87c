"""A TFLite flatbuffer in the making: tensors, operators, and at the end its bytes.

Input: tensors by name with their shapes, operators with their options. Output: bytes that every
interpreter since TensorFlow 2.0 loads. It knows the file format and no network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from compiler.targets.tflite_flatbuffer import packed

Shape = tuple[int, ...]

_TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
}


class FlatbufferWriter:
    """Collects one subgraph. Names are the graph's own; they are not written.

    shapes: of every named tensor, channels last.
    """

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._codes: dict[int, int] = {}
        self._buffers: list[Any] = [schema.BufferT()]  # the first one is empty by convention
        self._index: dict[str, int] = {}
        self._inputs: list[int] = []
        self._constants: dict[tuple[str, Shape, bytes], int] = {}
        self.shapes: dict[str, Shape] = {}

    def add_input(self, name: str, shape: Shape) -> None:
        """float32."""
        self._inputs.append(self.add_tensor(name, shape))

    def add_tensor(self, name: str, shape: Shape) -> int:
        """A float32 tensor that an operator fills. Returns its index."""
        self.shapes[name] = shape
        self._index[name] = self._append(shape, schema.TensorType.FLOAT32, 0)
        return self._index[name]

    def add_constant(self, values: NDArray[Any]) -> int:
        """float32 or int32. Returns its index.

        Equal values are written once: layers may share a matrix, as an anchor's do.
        """
        data = values.tobytes()
        key = (values.dtype.str, values.shape, hashlib.sha256(data).digest())
        if key not in self._constants:
            buffer = schema.BufferT()
            buffer.data = data
            self._buffers.append(buffer)
            position = len(self._buffers) - 1
            self._constants[key] = self._append(values.shape, _TYPES[values.dtype], position)
        return self._constants[key]

    def add_alias(self, name: str, of: str) -> None:
        """One more name for a tensor."""
        self._index[name], self.shapes[name] = self._index[of], self.shapes[of]

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
        return packed(model)

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
