"""TFLite files as every runtime of the table reads them: weights inside, aligned.

Input: the bytes of a TFLite model. Output: bytes of the same model.
"""

from __future__ import annotations

from typing import Any

import numpy as np

ALIGNMENT = 16
"""Bytes; of Buffer.data in tensorflow/lite/schema/schema.fbs."""


def with_weights_inside(model: bytes) -> bytes:
    """The same model with every buffer inside the flatbuffer; unchanged when none is outside.

    Converters may put weights behind the flatbuffer (Buffer.offset), which tflite-runtime up to
    2.13 cannot read ("Input tensor N lacks data").
    """
    parsed = _parsed(model)
    return _repacked(model, parsed) if any(b.offset for b in parsed.buffers) else model


def repacked(model: bytes) -> bytes:
    """The same model with every buffer inside and aligned, whoever wrote it."""
    return _repacked(model, _parsed(model))


def packed(model: Any) -> bytes:
    """The file of a schema.ModelT.

    Every buffer starts at a multiple of ALIGNMENT, as TFLite's schema asks (force_align), which
    the Python classes generated from it do not do.
    """
    import flatbuffers  # type: ignore[import-untyped]

    model.buffers = [_Aligned(buffer) for buffer in model.buffers]
    size = sum(len(buffer.data) for buffer in model.buffers)
    builder = flatbuffers.Builder(size + 4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _parsed(model: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(model, 0)


def _repacked(model: bytes, parsed: Any) -> bytes:
    for buffer in parsed.buffers:
        if buffer.offset:
            buffer.data = np.frombuffer(model, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return packed(parsed)


class _Aligned:
    """A schema.BufferT that is written aligned; its data lie inside the flatbuffer."""

    def __init__(self, buffer: Any) -> None:
        self.data = b"" if buffer.data is None else bytes(buffer.data)

    def Pack(self, builder: Any) -> int:  # noqa: N802  # what ModelT.Pack calls
        from ai_edge_litert import schema_py_generated as schema

        if self.data:
            # The vector is built back to front: its length is to lie just before a multiple.
            builder.Prep(ALIGNMENT, len(self.data))
            data = builder.CreateByteVector(self.data)
        schema.BufferStart(builder)
        if self.data:
            schema.BufferAddData(builder, data)
        return int(schema.BufferEnd(builder))
