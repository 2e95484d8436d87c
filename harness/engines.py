"""TensorRT engines, built on boards from ONNX artifacts: engines are not portable.

Input: an artifact and an AgentSession. Output: Engine.
Raises BoardError, and EngineError for an artifact that no engine is made of.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from harness.deploy import LocalArtifact
from harness.errors import HarnessError
from harness.session import AgentSession

BUILD_TIMEOUT_S = 1900.0
"""A little more than the board gives trtexec itself."""

INPUT_NAME = "input"
"""As the compiler names it in every ONNX model."""

FP16_ATOL_FRACTION = 0.01
"""Of the golden output's range: half precision keeps eleven bits, and sums lose some of them."""

Precision = Literal["fp32", "fp16"]


class EngineError(HarnessError):
    """An artifact that TensorRT builds no engine of."""


@dataclass(frozen=True)
class Engine:
    """What a board built. path: on the board. gpu_ms: median of trtexec's own timing, None untold.

    built: False where the board had it already.
    """

    board_id: str
    path: str
    sha256: str
    tensorrt: str
    gpu: str
    gpu_ms: float | None
    max_abs_err: float
    built: bool


def refuse_unfit(artifact: LocalArtifact) -> None:
    """Raises EngineError unless it is ONNX in float32.

    int8 models here have unsigned activations, as CPUs want them; TensorRT takes signed ones.
    """
    manifest = artifact.manifest
    if manifest.kind != "onnx" or manifest.target.precision != "fp32":
        raise EngineError(
            f"{artifact.folder}: is {manifest.kind} in {manifest.target.precision}; engines are "
            "built from onnx in fp32. Next: name that artifact"
        )


def build_engine(agent: AgentSession, artifact: LocalArtifact, precision: Precision) -> Engine:
    """Push what is needed, build or find the engine, hold its answer against the golden one."""
    manifest = artifact.manifest
    golden = [
        manifest.file(name).sha256 for name in (manifest.golden_input, manifest.golden_output)
    ]
    model = manifest.file(manifest.model_file).sha256
    wanted = {model, *golden}
    agent.push_blobs({k: path for k, path in artifact.blobs().items() if k in wanted})
    answer = agent.ask(
        "engine",
        model,
        *("--input-name", INPUT_NAME, "--golden", *golden),
        *("--precision", precision, "--atol", repr(_atol(artifact, precision))),
        timeout_s=BUILD_TIMEOUT_S,
    )
    gpu_ms = answer.get("gpu_ms")
    return Engine(
        agent.board.board_id,
        str(answer.get("path"))[:400],
        str(answer.get("sha256"))[:64],
        str(answer.get("tensorrt"))[:40],
        str(answer.get("device") or answer.get("gpu"))[:100],
        float(gpu_ms) if isinstance(gpu_ms, int | float) else None,
        float(answer.get("max_abs_err", "nan")),
        answer.get("built") is True,
    )


def _atol(artifact: LocalArtifact, precision: Precision) -> float:
    manifest = artifact.manifest
    if precision == "fp32":
        return manifest.atol
    data = (artifact.folder / manifest.golden_output).read_bytes()
    values = struct.unpack(f"<{len(data) // 4}f", data)
    return float(max(manifest.atol, FP16_ATOL_FRACTION * (max(values) - min(values))))
