"""A network as TFLite, the form that ai-edge-litert and tflite-runtime run.

Input: a network in eval mode, one example (1, C, H, W), and samples for int8. Output: BuiltModel
around model.tflite, whose input is (1, H, W, C).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compiler.targets.built import (
    BuiltModel,
    Floats,
    one_file_model,
    reference_output,
    require_calibration,
    versions,
)
from compiler.targets.quiet import contained
from compiler.targets.tflite_flatbuffer import with_weights_inside
from compiler.targets.tflite_int8 import int8_tflite
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

TOOLS = ("torch", "litert-torch", "litert-converter", "ai-edge-litert")


def build_tflite(
    network: nn.Module,
    example: Tensor,
    out: Path,
    target: Target,
    calibration: Tensor | None = None,
) -> BuiltModel:
    """Writes out/model.tflite with channels last, batch 1, checked against PyTorch.

    Raises TargetError when the converter fails, the interpreter deviates by more than ATOL_FP32 or
    int8 lacks its samples; ValueError for a network in training mode or an unfit example.
    """
    expected = reference_output(network, example)
    int8 = target.precision == "int8"
    samples = require_calibration(target, example, calibration) if int8 else None
    out.mkdir(parents=True, exist_ok=True)
    path = out / "model.tflite"
    with contained(target, "converting to TFLite"):
        _convert(network, example, path)
        model = with_weights_inside(path.read_bytes())
        if samples is not None:
            model = int8_tflite(model, _channels_last(samples))
        path.write_bytes(model)
        return one_file_model(
            "tflite",
            target,
            path,
            "NHWC",
            _channels_last(example.numpy()),
            expected,
            tflite_answer(model),
            versions(*(TOOLS if samples is None else (*TOOLS, "ai-edge-quantizer"))),
        )


def run_tflite(model: bytes, x: Floats) -> Floats:
    """ai-edge-litert's answer on this machine, one thread. x: (1, H, W, C)."""
    return tflite_answer(model)(x)


def tflite_answer(model: bytes) -> Callable[[Floats], Floats]:
    """The same for many inputs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]["index"]
    wanted = interpreter.get_output_details()[0]["index"]

    def answer(x: Floats) -> Floats:
        interpreter.set_tensor(given, x)
        interpreter.invoke()
        found: Floats = interpreter.get_tensor(wanted)
        return found

    return answer


def _channels_last(x: Floats) -> Floats:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def _convert(network: nn.Module, example: Tensor, path: Path) -> None:
    import litert_torch

    # The wrapper is a new module, born in training mode, whatever the network's mode is.
    wrapped = litert_torch.to_channel_last_io(network, args=[0]).eval()
    litert_torch.convert(wrapped, (example.permute(0, 2, 3, 1).contiguous(),)).export(str(path))
