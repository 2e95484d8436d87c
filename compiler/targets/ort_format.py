"""A network in ONNX Runtime's own format (.ort): optimised here, for one kind of board.

Input: a network in eval mode, one example (1, C, H, W), and samples for int8. Output: BuiltModel
around model.ort, which loads several times faster than model.onnx, for nothing is left to optimise.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.targets.built import (
    BuiltModel,
    TargetError,
    one_file_model,
    reference_output,
    versions,
)
from compiler.targets.onnx import ARM_MACHINES, TOOLS, onnx_answer, onnx_bytes
from compiler.targets.ort_canonical import canonical_ort
from compiler.targets.quiet import contained
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

MACHINES = (*ARM_MACHINES, "x86_64")

BLOCKED_LAYOUT = "NchwcTransformer"
"""Reorders weights into blocks of as many channels as *this* machine's vectors hold. A machine with
other vectors reads them wrongly, so it is left out: the file must be right before it is fast."""


def build_ort(
    network: nn.Module,
    example: Tensor,
    out: Path,
    target: Target,
    calibration: Tensor | None = None,
) -> BuiltModel:
    """Writes out/model.ort, fixed to the target's machine, checked against PyTorch.

    Raises TargetError for a machine that is not named, and as ``build_onnx`` does.
    """
    if target.machine not in MACHINES:
        raise TargetError(
            target,
            f"an .ort file is fixed to its machine, which {target.machine!r} does not name",
            f"set machine to one of {', '.join(MACHINES)}, or build onnx",
        )
    expected = reference_output(network, example)
    model = onnx_bytes(network, example, target, calibration)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.ort"
    with contained(target, "converting to ORT format"):
        path.write_bytes(ort_format(model, arm=target.machine in ARM_MACHINES))
        return one_file_model(
            "ort",
            target,
            path,
            "NCHW",
            example.numpy(),
            expected,
            onnx_answer(path.read_bytes()),
            versions(*TOOLS),
        )


def ort_format(model: bytes, *, arm: bool) -> bytes:
    """What onnxruntime makes of an ONNX model before it runs it, as a file.

    The settings of onnxruntime.tools.convert_onnx_models_to_ort with --optimization_style Fixed and
    --target_platform arm or amd64, but for the blocked layout, which that leaves in for amd64.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", "1" if arm else "0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.ort"
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(
            model,
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=[BLOCKED_LAYOUT],
        )
        return canonical_ort(path.read_bytes())
