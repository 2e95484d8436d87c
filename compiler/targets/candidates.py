"""Models that are measured and never shipped, in the form that the recipe's runtime loads.

Input: a runtime's name and a network, or an ONNX model. Output: the bytes of a file, and the end
of its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.targets.fast_tflite import fast_tflite, tflite_of_onnx
from compiler.targets.onnx import fast_onnx

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIX = {"ort": ".onnx", "tflite": ".tflite"}
"""By the recipe's runtime."""


def candidate(runtime: str, network: nn.Module, example: Tensor) -> bytes:
    """Raises TargetError where the network cannot be said in that form."""
    return {"ort": fast_onnx, "tflite": fast_tflite}[runtime](network, example)


def from_onnx(runtime: str, model: bytes) -> bytes:
    """The same model for the runtime. Raises TargetError."""
    return model if runtime == "ort" else tflite_of_onnx(model)
