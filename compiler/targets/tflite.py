"""A network as TFLite, the form that ai-edge-litert and tflite-runtime run.

Input: a network in eval mode and one example (1, C, H, W). Output: BuiltModel around
model.tflite, whose input is (1, H, W, C).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.targets.built import (
    ATOL_FP32,
    BuiltFile,
    BuiltModel,
    Floats,
    parity,
    raw_bytes,
    reference_output,
    require_fp32,
    versions,
)
from compiler.targets.quiet import contained
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

ALIGNMENT = 16
"""Bytes; of Buffer.data in tensorflow/lite/schema/schema.fbs."""


def build_tflite(
    network: nn.Module,
    example: Tensor,
    out: Path,
    target: Target,
    calibration: Tensor | None = None,
) -> BuiltModel:
    """Writes out/model.tflite with channels last, batch 1, checked against PyTorch.

    Raises TargetError when the converter fails or the interpreter deviates by more than
    ATOL_FP32, ValueError for a network in training mode or an unfit example.
    """
    require_fp32(target)
    expected = reference_output(network, example)
    channels_last = np.ascontiguousarray(example.permute(0, 2, 3, 1).numpy())
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.tflite"
    with contained(target, "converting to TFLite"):
        _convert(network, example, path)
        path.write_bytes(with_weights_inside(path.read_bytes()))
        found = run_tflite(path.read_bytes(), channels_last)
    return BuiltModel(
        kind="tflite",
        target=target,
        model_file=path.name,
        files=(BuiltFile(path.name, path),),
        input_layout="NHWC",
        input_shape=channels_last.shape,
        output_shape=expected.shape,
        golden_input=raw_bytes(channels_last),
        golden_output=raw_bytes(expected),
        atol=ATOL_FP32,
        max_abs_err=parity(target, expected, found),
        tool_versions=versions("torch", "litert-torch", "litert-converter", "ai-edge-litert"),
    )


def run_tflite(model: bytes, x: Floats) -> Floats:
    """ai-edge-litert's answer on this machine, one thread. x: (1, H, W, C)."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    answer: Floats = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return answer


def with_weights_inside(model: bytes) -> bytes:
    """The same model with every buffer inside the flatbuffer; unchanged when none is outside.

    Converters may put weights behind the flatbuffer (Buffer.offset), which tflite-runtime up to
    2.13 cannot read ("Input tensor N lacks data").
    """
    from ai_edge_litert import schema_py_generated as schema

    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    outside = [buffer for buffer in parsed.buffers if buffer.offset]
    if not outside:
        return model
    for buffer in outside:
        buffer.data = np.frombuffer(model, np.uint8, buffer.size, buffer.offset)
        buffer.offset = buffer.size = 0
    return packed(parsed)


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


def _convert(network: nn.Module, example: Tensor, path: Path) -> None:
    import litert_torch

    # The wrapper is a new module, born in training mode, whatever the network's mode is.
    wrapped = litert_torch.to_channel_last_io(network, args=[0]).eval()
    litert_torch.convert(wrapped, (example.permute(0, 2, 3, 1).contiguous(),)).export(str(path))
