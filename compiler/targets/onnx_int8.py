"""An ONNX model in static int8: quantise and dequantise nodes around each operator.

Input: the bytes of a canonical float model and real samples. Output: bytes of the int8 model, of
which onnxruntime makes integer kernels when it loads it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from compiler.targets.built import Floats
from compiler.targets.onnx_graph import IR_VERSION


def int8_onnx(model: bytes, samples: Floats, *, saturating: bool) -> bytes:
    """Activations unsigned, weights signed and per channel (QDQ, U8S8).

    samples: (n, C, H, W), whose smallest and largest activations become the ranges. Signed
    activations were up to three times slower on x86. saturating: the board's CPU may sum pairs of
    products in 16 bits, as x86 without VNNI does; then weights take 7 bits
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
    Never ranges at run time ("dynamic"): they cost a convolution more than int8 saves.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        given, prepared, quantised = (
            Path(folder) / f"{name}.onnx" for name in ("float", "prepared", "int8")
        )
        given.write_bytes(model)
        quant_pre_process(given, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            _reader(onnx.load_model_from_string(model).graph.input[0].name, samples),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=saturating,
            calibrate_method=CalibrationMethod.MinMax,
        )
        proto = onnx.load(quantised)
    _plain(proto)
    onnx.checker.check_model(proto, full_check=True)
    serialized: bytes = proto.SerializeToString(deterministic=True)
    return serialized


def _plain(proto: Any) -> None:
    """Drops the tools' names, and operator sets that an older runtime might not know."""
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "fleetcut", ""
    del proto.metadata_props[:]
    used = {node.domain for node in proto.graph.node}
    kept = [entry for entry in proto.opset_import if entry.domain in used]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _reader(name: str, samples: Floats) -> object:
    """One input a call, then None, as onnxruntime's quantiser asks for."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(samples)

        def get_next(self) -> dict[str, Floats] | None:
            sample = next(self.rest, None)
            return None if sample is None else {name: sample[None]}

    return Reader()
