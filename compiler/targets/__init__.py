"""What a network is shipped as: ONNX, ONNX Runtime's format, TFLite, a native executable.

Input: (network in eval mode, example (1, C, H, W), folder, Target, samples for int8).
Output: BuiltModel, or TargetError, which concerns that one target only.
"""

from __future__ import annotations

from collections.abc import Mapping

from compiler.targets.built import ATOL_FP32, Builder, BuiltFile, BuiltModel, TargetError
from compiler.targets.executable import build_executable, build_ort_executable
from compiler.targets.fast_tflite import fast_tflite
from compiler.targets.onnx import build_onnx, fast_onnx
from compiler.targets.ort_format import build_ort
from compiler.targets.tflite import build_tflite

TARGETS: Mapping[str, Builder] = {
    "onnx": build_onnx,
    "ort": build_ort,
    "tflite": build_tflite,
    "executable": build_executable,
    "executable-ort": build_ort_executable,
}

__all__ = [
    "ATOL_FP32",
    "TARGETS",
    "Builder",
    "BuiltFile",
    "BuiltModel",
    "TargetError",
    "build_executable",
    "build_onnx",
    "build_ort",
    "build_ort_executable",
    "build_tflite",
    "fast_onnx",
    "fast_tflite",
]
