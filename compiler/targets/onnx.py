"""A network as ONNX, the form that onnxruntime runs.

Input: a network in eval mode and one example (1, C, H, W). Output: BuiltModel around
model.onnx, or for measuring only, the bytes of the same graph made about twenty times faster.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.targets.built import (
    ATOL_FP32,
    BuiltFile,
    BuiltModel,
    Floats,
    TargetError,
    parity,
    raw_bytes,
    reference_output,
    require_fp32,
    versions,
)
from compiler.targets.onnx_graph import OPSET, canonical_onnx
from compiler.targets.quiet import contained
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

PORTABLE = Target(name="onnx", machine="any", os="any", runtime="onnxruntime")
"""What a candidate is exported for before any board is chosen."""


def build_onnx(
    network: nn.Module,
    example: Tensor,
    out: Path,
    target: Target,
    calibration: Tensor | None = None,
) -> BuiltModel:
    """Writes out/model.onnx, static in shape, batch 1, checked against PyTorch.

    Raises TargetError when the exporter fails or onnxruntime deviates by more than ATOL_FP32,
    ValueError for a network in training mode or an unfit example.
    """
    require_fp32(target)
    expected = reference_output(network, example)
    with contained(target, "exporting to ONNX"):
        model = canonical_onnx(_export(network, example))
        found = run_onnx(model, example.numpy())
    max_abs_err = parity(target, expected, found)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.onnx"
    path.write_bytes(model)
    return BuiltModel(
        kind="onnx",
        target=target,
        model_file=path.name,
        files=(BuiltFile(path.name, path),),
        input_layout="NCHW",
        input_shape=tuple(example.shape),
        output_shape=expected.shape,
        golden_input=raw_bytes(example.numpy()),
        golden_output=raw_bytes(expected),
        atol=ATOL_FP32,
        max_abs_err=max_abs_err,
        tool_versions=versions("torch", "onnx", "onnxscript", "onnxruntime"),
    )


def fast_onnx(network: nn.Module, example: Tensor) -> bytes:
    """The graph that ``build_onnx`` writes, by PyTorch's older exporter: 0.05 s, not 1 s.

    For the many candidates that are measured and never shipped. Both exporters' graphs are
    brought to one canonical form, so that they differ in the rounding of folded weights only;
    ``onnx_graph.same_structure`` proves it for an architecture. Not checked against PyTorch.
    Raises TargetError when the exporter fails, ValueError for a network in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode; call eval() first")
    with contained(PORTABLE, "exporting a candidate to ONNX"):
        return canonical_onnx(_export_by_torchscript(network, example))


def run_onnx(model: bytes, x: Floats) -> Floats:
    """The answer of onnxruntime on this machine's CPU, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x})
    answer: Floats = output
    return answer


def _export(network: nn.Module, example: Tensor) -> bytes:
    """By torch.export. Its graph holds file names and stack traces until it is made canonical."""
    import torch

    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        external_data=False,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["output"],
        verbose=False,
    )
    if program is None:
        raise TargetError(PORTABLE, "torch.onnx.export returned nothing", "check torch's version")
    serialized: bytes = program.model_proto.SerializeToString()
    return serialized


def _export_by_torchscript(network: nn.Module, example: Tensor) -> bytes:
    """By tracing: deprecated since torch 2.9, present in 2.13, which constraints.txt pins."""
    import torch

    buffer = io.BytesIO()
    torch.onnx.export(
        network,
        (example,),
        buffer,  # type: ignore[arg-type]  # this exporter writes streams too, untold by its types
        dynamo=False,
        opset_version=OPSET,
        input_names=["input"],
        output_names=["output"],
    )
    return buffer.getvalue()
