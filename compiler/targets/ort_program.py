"""What a native program over ONNX Runtime holds: an .ort file, or a graph beside its weights.

Input: a network in eval mode, one example (1, C, H, W), a target, and samples for int8. Output:
bytes that native_onnxruntime.cc reads where they lie.

onnxruntime computes float32 convolutions fastest in blocks of channels (NCHWc), as many as a
vector holds. Where the target's CPU is known to have AVX-512, as this one has, weights are arranged
so once and for all: nothing is left to do at a start. They lie beside the graph, as its inputs: an
.ort file gives them 16 bytes of alignment, and kernels that read 64 at once took 10 % longer.
"""

from __future__ import annotations

import platform
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.targets.onnx import ARM_MACHINES, onnx_bytes
from compiler.targets.ort_canonical import canonical_ort
from compiler.targets.ort_format import ort_format
from compiler.targets.quiet import contained
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

AVX512_CPU = "x86-64-v4"
"""GCC's name of a CPU whose blocks have 16 channels."""

MAGIC = b"fcNCHW16"
ALIGNMENT = 64
MAX_RANK = 4

_HEAD = struct.Struct("<8s3Q")
_WEIGHT = struct.Struct(f"<2Q{MAX_RANK}q")


def ort_program(
    network: nn.Module, example: Tensor, target: Target, calibration: Tensor | None
) -> bytes:
    """Raises as ``build_onnx`` does."""
    model = onnx_bytes(network, example, target, calibration)
    with contained(target, "optimising for ONNX Runtime"):
        if target.precision == "fp32" and _has_blocks_of_16(target):
            return blocked(model)
        return ort_format(model, arm=target.machine in ARM_MACHINES)


def _has_blocks_of_16(target: Target) -> bool:
    """On the target for certain, and here, where onnxruntime is to arrange weights for it."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    return (
        target.machine == platform.machine() == "x86_64"
        and target.cpu == AVX512_CPU
        and " avx512f" in flags
    )


def blocked(model: bytes) -> bytes:
    """What onnxruntime makes of an ONNX model on this CPU, its weights on cache lines.

    Little-endian: MAGIC, how many weights, offset and size of the graph in ORT format; of each
    weight, in the order of the graph's inputs after the first, offset, rank and sizes; then these.
    """
    import onnx
    from onnx import numpy_helper

    graph_model = onnx.load_from_string(_saved(model, "model.onnx", _everything))
    weights = [t for t in graph_model.graph.initializer if _is_weight(t)]
    for weight in weights:
        graph_model.graph.input.append(
            onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        )
        graph_model.graph.initializer.remove(weight)
    graph = canonical_ort(_saved(graph_model.SerializeToString(), "model.ort", _nothing))
    values = [numpy_helper.to_array(weight).astype("<f4").tobytes() for weight in weights]
    at = graph_at = _aligned(_HEAD.size + len(weights) * _WEIGHT.size)
    places = []
    for piece in (graph, *values):
        places.append(at)
        at += _aligned(len(piece))
    written = bytearray(at)
    _HEAD.pack_into(written, 0, MAGIC, len(weights), graph_at, len(graph))
    for number, weight in enumerate(weights):
        sizes = (*weight.dims, *[1] * (MAX_RANK - len(weight.dims)))
        start = _HEAD.size + number * _WEIGHT.size
        _WEIGHT.pack_into(written, start, places[1 + number], len(weight.dims), *sizes)
    for place, piece in zip(places, (graph, *values), strict=True):
        written[place : place + len(piece)] = piece
    return bytes(written)


def _is_weight(tensor: Any) -> bool:
    from onnx import TensorProto

    return tensor.data_type == TensorProto.FLOAT and 0 < len(tensor.dims) <= MAX_RANK


def _saved(model: bytes, name: str, asked: Callable[[Any], None]) -> bytes:
    """What onnxruntime writes once it has optimised a model, in the format of the name."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns that the file is for CPUs like this one
    options.intra_op_num_threads = 1
    asked(options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return path.read_bytes()


def _everything(options: Any) -> None:
    import onnxruntime

    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


def _nothing(options: Any) -> None:
    """What is optimised is only written anew."""
    import onnxruntime

    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
