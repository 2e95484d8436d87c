"""The little of ONNX's file format that turns weights into inputs, and back.

Input: bytes of an ONNX model. Output: the same with other initializers or inputs, and what its
initializers are. A board has onnxruntime, which tells none of it, and not the onnx package.
Source: protobuf.dev/programming-guides/encoding and onnx/onnx.proto, whose field numbers stand
here. A message that comes twice is merged by every reader: parts are added by appending.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List, Sequence, Tuple, Union

FLOAT = 1
_GRAPH = 7
_INITIALIZER, _INPUT = 5, 11
_NODE = 1
_VARINT, _BYTES = 0, 2

Value = Union[int, bytes]


class WireError(ValueError):
    """Bytes that are no message of that kind."""


@dataclass(frozen=True)
class Initializer:
    """One tensor of the model. data_type: ONNX's number of it.

    raw: its bytes; None where they lie in a file beside the model, from ``offset`` on.
    """

    name: str
    dims: Tuple[int, ...]
    data_type: int
    raw: Union[bytes, None]
    offset: int


@dataclass(frozen=True)
class Node:
    """One operator and the names of what it reads."""

    op_type: str
    domain: str
    inputs: Tuple[str, ...]


def with_initializers(model: bytes, tensors: Sequence[Tuple[str, Tuple[int, ...]]]) -> bytes:
    """float32 tensors added whose values lie elsewhere: onnxruntime is handed them by name."""
    parts = []
    for name, dims in tensors:
        where = _entry(13, _entry(1, b"location") + _entry(2, b"weights"))
        shape = b"".join(_number(1, size) for size in dims)
        body = shape + _number(2, FLOAT) + _entry(8, name.encode()) + where + _number(14, 1)
        parts.append(_entry(_INITIALIZER, body))
    return model + _entry(_GRAPH, b"".join(parts))


def with_inputs(model: bytes, tensors: Sequence[Tuple[str, Tuple[int, ...]]]) -> bytes:
    """float32 inputs added, of fixed shapes."""
    parts = []
    for name, dims in tensors:
        shape = b"".join(_entry(1, _number(1, size)) for size in dims)
        kind = _entry(1, _number(1, FLOAT) + _entry(2, shape))
        parts.append(_entry(_INPUT, _entry(1, name.encode()) + _entry(2, kind)))
    return model + _entry(_GRAPH, b"".join(parts))


def initializers(model: bytes) -> List[Initializer]:
    """Raises WireError."""
    return [_initializer(body) for body in _in_graph(model, _INITIALIZER)]


def nodes(model: bytes) -> List[Node]:
    """Raises WireError."""
    found = []
    for body in _in_graph(model, _NODE):
        pairs = list(_fields(body))
        texts = {number: _text(value) for number, value in pairs if number in (4, 7)}
        inputs = tuple(_text(value) for number, value in pairs if number == 1)
        found.append(Node(texts.get(4, ""), texts.get(7, ""), inputs))
    return found


def without_initializers(model: bytes, names: Sequence[str]) -> bytes:
    """The model without those initializers. Raises WireError."""
    gone = set(names)
    out = bytearray()
    for number, value in _fields(model):
        if number == _GRAPH and isinstance(value, bytes):
            kept = bytearray()
            for inner, body in _fields(value):
                tensor = body if inner == _INITIALIZER and isinstance(body, bytes) else b""
                if _initializer(tensor).name not in gone:
                    kept += _field(inner, body)
            out += _entry(_GRAPH, bytes(kept))
        else:
            out += _field(number, value)
    return bytes(out)


def _in_graph(model: bytes, wanted: int) -> Iterator[bytes]:
    for number, value in _fields(model):
        if number == _GRAPH and isinstance(value, bytes):
            for inner, body in _fields(value):
                if inner == wanted and isinstance(body, bytes):
                    yield body


def _initializer(body: bytes) -> Initializer:
    name, dims, data_type, offset = "", [], 0, 0
    raw: Union[bytes, None] = None
    for number, value in _fields(body):
        if number == 1:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 8:
            name = _text(value)
        elif number in (4, 9) and isinstance(value, bytes):
            raw = value
        elif number == 13 and isinstance(value, bytes):
            texts = {inner: _text(text) for inner, text in _fields(value)}
            if texts.get(1) == "offset":
                offset = int(texts.get(2, "0"))
    return Initializer(name, tuple(dims), data_type, raw, offset)


def _fields(data: bytes) -> Iterator[Tuple[int, Value]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind != _BYTES:
            # Fixed-size fields stand in attributes alone, into which nothing here looks.
            raise WireError(f"wire type {kind} at byte {at}")
        size, at = _varint(data, at)
        if at + size > len(data):
            raise WireError(f"{size} bytes are missing at byte {at}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise WireError(f"a number is cut off at byte {at}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varints(data: bytes) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _text(value: Value) -> str:
    if not isinstance(value, bytes):
        raise WireError("a number where a text is expected")
    return value.decode("utf-8", "replace")


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _encoded(number << 3 | _VARINT) + _encoded(value)


def _entry(number: int, body: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(body)) + body


def _field(number: int, value: Value) -> bytes:
    return _number(number, value) if isinstance(value, int) else _entry(number, value)
