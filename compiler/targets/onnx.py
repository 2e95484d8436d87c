"""A network as ONNX, the form that onnxruntime runs.

Input: a network in eval mode, one example (1, C, H, W), and samples for int8. Output: BuiltModel
around model.onnx, or for measuring only, the bytes of the same float graph, twenty times faster.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.targets.built import (
    BuiltModel,
    Floats,
    TargetError,
    one_file_model,
    reference_output,
    require_calibration,
    versions,
)
from compiler.targets.onnx_graph import OPSET, canonical_onnx
from compiler.targets.onnx_int8 import int8_onnx
from compiler.targets.quiet import contained
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

TOOLS = ("torch", "onnx", "onnxscript", "onnxruntime")

ARM_MACHINES = ("aarch64", "armv7l")
"""Where an int8 product is summed in 32 bits: nothing saturates."""

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

    Raises TargetError when the exporter fails, onnxruntime deviates by more than ATOL_FP32, or
    int8 lacks its samples; ValueError for a network in training mode or an unfit example.
    """
    expected = reference_output(network, example)
    model = onnx_bytes(network, example, target, calibration)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.onnx"
    path.write_bytes(model)
    with contained(target, "running the model in onnxruntime"):
        return one_file_model(
            "onnx",
            target,
            path,
            "NCHW",
            example.numpy(),
            expected,
            onnx_answer(model),
            versions(*TOOLS),
        )


def onnx_bytes(
    network: nn.Module, example: Tensor, target: Target, calibration: Tensor | None
) -> bytes:
    """The file, in the target's precision. Raises as ``build_onnx`` does."""
    if target.precision == "fp32":
        with contained(target, "exporting to ONNX"):
            return canonical_onnx(_export(network, example))
    samples = require_calibration(target, example, calibration)
    with contained(target, "exporting to ONNX"):
        model = canonical_onnx(_export(network, example))
    with contained(target, "quantising to int8"):
        return int8_onnx(model, samples, saturating=target.machine not in ARM_MACHINES)


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
    return onnx_answer(model)(x)


def onnx_answer(model: bytes) -> Callable[[Floats], Floats]:
    """The same for many inputs. model: of ONNX or of ONNX Runtime's own format."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def answer(x: Floats) -> Floats:
        (output,) = session.run(None, {name: x})
        found: Floats = output
        return found

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
