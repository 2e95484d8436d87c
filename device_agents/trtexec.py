"""NVIDIA's trtexec: its command lines, and what it prints.

Input: a version, a precision, paths; its output as text. Output: an argument list; facts.
The forms below are those of TensorRT 8.5 (JetPack 5.1) to 10: its documentation and its source,
samples/trtexec and samples/common/sampleReporting.cpp. No Jetson was at hand: untested there.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any, List, Optional, Tuple

PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/bin/trtexec", "/usr/local/bin/trtexec")
"""JetPack installs the first, which is on nobody's PATH."""

Version = Tuple[int, int, int]

_HEADER = re.compile(r"^&&&& RUNNING TensorRT\.trtexec \[TensorRT v(\d+)\]", re.MULTILINE)
_DEVICE = re.compile(r"\[I\] Selected Device: (.+?)\s*$", re.MULTILINE)
_GPU_TIME = re.compile(r"\[I\] GPU Compute Time: min = .*? median = ([0-9.e+-]+) ms")
_ERROR = re.compile(r"^.*\[E\] (.+?)\s*$", re.MULTILINE)


def parse_version(text: str) -> Optional[Version]:
    """From the line that every run begins with: v8502 is 8.5.2, v100300 is 10.3.0."""
    match = _HEADER.search(text)
    if match is None:
        return None
    number = int(match.group(1))
    # NV_TENSORRT_VERSION: major * 1000 + minor * 100 + patch, from 10 on * 10000.
    scale = 1000 if number < 10000 else 10000
    return number // scale, number % scale // 100, number % 100


def passed(text: str) -> bool:
    """Whether it says of itself that it succeeded; its exit status alone did not always tell."""
    return "&&&& PASSED TensorRT.trtexec" in text


def first_error(text: str) -> str:
    """What it complained of first; the last line where it names no error."""
    match = _ERROR.search(text)
    lines = text.strip().splitlines()
    return match.group(1) if match else lines[-1] if lines else "no word of why"


def device(text: str) -> Optional[str]:
    """The GPU's name as CUDA has it, "Orin"."""
    match = _DEVICE.search(text)
    return match.group(1) if match else None


def gpu_ms(text: str) -> Optional[float]:
    """Median time of one inference on the GPU, in ms, without copies to it and back."""
    match = _GPU_TIME.search(text)
    return float(match.group(1)) if match else None


def parse_output(text: str) -> bytes:
    """The last inference's one output as raw little-endian float32. Raises ValueError.

    text: of --exportOutput, ``[{"name", "dimensions", "values": [...]}]``, six digits a value.
    """
    document: Any = json.loads(text)
    if not isinstance(document, list) or len(document) != 1:
        raise ValueError("not one output")
    values = document[0].get("values") if isinstance(document[0], dict) else None
    if not isinstance(values, list) or not values:
        raise ValueError("an output without values")
    if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError("a value that is no number")
    return struct.pack(f"<{len(values)}f", *values)


def build_command(
    trtexec: str,
    precision: str,
    model: Path,
    engine: Path,
    golden_input: Path,
    input_name: str,
    output: Path,
) -> List[str]:
    """Builds the engine, runs it for some seconds on the golden input and writes its answer."""
    return [
        trtexec,
        f"--onnx={model}",
        f"--saveEngine={engine}",
        # TF32 has ten bits of mantissa, which do not keep a golden test's bound.
        "--fp16" if precision == "fp16" else "--noTF32",
        f"--loadInputs={input_name}:{golden_input}",
        f"--exportOutput={output}",
    ]


def supported(version: Version, precision: str) -> bool:
    """From 11 on a network's own types decide, and ours are float32."""
    return precision == "fp32" or (precision == "fp16" and version[0] < 11)
