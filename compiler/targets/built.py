"""What every target builder takes and returns, and the bound that each of them keeps.

Input: a torch network in eval mode, one example (1, C, H, W) of float32, and for int8 the real
samples (n, C, H, W) that its ranges are learned from.
Output: BuiltModel; TargetError when a target cannot be built here or is not faithful.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compiler.errors import CompilerError
from device_agents.contract.artifacts import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

Floats = NDArray[np.float32]

ATOL_FP32 = 1e-4
"""Largest absolute deviation from PyTorch that a float32 target may show, on any runtime.

It is not scaled by the output: logits are of order 10 and float32 loses about 1e-5 there, so a
scaled bound would only loosen the check where a wrong network gives large numbers.
"""

INT8_STEPS = 5
"""How far a board's int8 answer may be from the workstation's, in steps of the output's range.

Kernels of different machines round a sum's last bit differently; what a layer rounds the other way
moves those behind it.
"""

LEAST_CALIBRATION = 8
"""Samples. Ranges from fewer clip what the next picture shows."""


class TargetError(CompilerError):
    """A target that cannot be built here. The other targets of the same run are unaffected.

    fact: what is wrong; next_step: what the reader can do about it.
    """

    def __init__(self, target: Target, fact: str, next_step: str) -> None:
        self.target = target
        self.fact = fact
        self.next_step = next_step
        super().__init__(f"{target.name}: {fact}. Next: {next_step}")


@dataclass(frozen=True)
class BuiltFile:
    """One file of a built model. name: its name in the artifact; path: where it lies now."""

    name: str
    path: Path
    executable: bool = False


@dataclass(frozen=True)
class BuiltModel:
    """A network in the form of one target, with the proof that it is the same network.

    golden_input, golden_output: raw little-endian float32 in the model's own layout
    (input_layout "NCHW" or "NHWC"). max_abs_err: of the target's runtime on this machine against
    PyTorch, on the golden input. atol: what a board may deviate from golden_output.
    fp32: golden_output is PyTorch's, and max_abs_err is at most atol.
    int8: golden_output is the form's own, atol is int8_atol of it, and answers(x) tells what the
    form answers on this machine to x (n, C, H, W) float32, as (n, classes) float32: how accurate
    it is decides whether it ships. None for fp32, whose accuracy is the network's.
    licences: the licence texts that must travel with the files. tool_versions: (tool, version),
    sorted.
    """

    kind: str
    target: Target
    model_file: str
    files: tuple[BuiltFile, ...]
    input_layout: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    golden_input: bytes
    golden_output: bytes
    atol: float
    max_abs_err: float
    tool_versions: tuple[tuple[str, str], ...]
    licences: tuple[str, ...] = ()
    answers: Callable[[Floats], Floats] | None = None


class Builder(Protocol):
    """What makes one form of a network."""

    def __call__(
        self,
        network: nn.Module,
        example: Tensor,
        out: Path,
        target: Target,
        calibration: Tensor | None = None,
    ) -> BuiltModel:
        """calibration: real samples (n, C, H, W) float32, which int8 needs and fp32 ignores.

        Raises TargetError, ValueError for a network in training mode or an unfit example.
        """


def reference_output(network: nn.Module, example: Tensor) -> Floats:
    """The network's own answer to ``example`` (1, C, H, W), float32, on one thread.

    One thread, because the order of a sum depends on how it was split, and golden bytes must
    not depend on the workstation's core count. Raises ValueError for a network in training mode
    or an example of another shape or type.
    """
    import torch

    if network.training:
        raise ValueError("the network is in training mode; call eval() first")
    if example.ndim != 4 or example.shape[0] != 1 or example.dtype != torch.float32:
        raise ValueError(
            f"the example is {tuple(example.shape)} {example.dtype}, expected (1, C, H, W) float32"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            output = network(example)
    finally:
        torch.set_num_threads(threads)
    if not isinstance(output, torch.Tensor) or output.dtype != torch.float32:
        raise ValueError("the network must return one float32 tensor")
    answer: Floats = output.numpy()
    return np.ascontiguousarray(answer)


def parity(target: Target, expected: Floats, found: Floats, atol: float = ATOL_FP32) -> float:
    """The largest absolute deviation. Raises TargetError above ``atol`` or for another shape."""
    if found.shape != expected.shape:
        raise TargetError(
            target,
            f"the built model answers {found.shape}, the network {expected.shape}",
            "report this network: the converter changed its output",
        )
    max_abs_err = float(np.max(np.abs(found.astype(np.float64) - expected.astype(np.float64))))
    if not max_abs_err <= atol or math.isinf(max_abs_err):  # also when it is NaN
        raise TargetError(
            target,
            f"the built model deviates by {max_abs_err:.3g} from PyTorch (bound {atol:g}, "
            f"largest output {float(np.max(np.abs(expected))):.3g})",
            "do not ship it; look for an operator that the converter approximates",
        )
    return max_abs_err


def int8_atol(golden_output: Floats) -> float:
    """INT8_STEPS of 255 over the range of the form's own golden output, ATOL_FP32 at least."""
    return max(ATOL_FP32, INT8_STEPS / 255 * float(np.ptp(golden_output)))


def require_calibration(target: Target, example: Tensor, calibration: Tensor | None) -> Floats:
    """The samples (n, C, H, W) that int8 ranges are learned from. Raises TargetError."""
    import torch

    found = "none" if calibration is None else f"{tuple(calibration.shape)} {calibration.dtype}"
    if (
        calibration is None
        or calibration.dtype != torch.float32
        or calibration.shape[1:] != example.shape[1:]
        or len(calibration) < LEAST_CALIBRATION
    ):
        wanted = ("n", *example.shape[1:])
        raise TargetError(
            target,
            f"int8 needs real samples ({', '.join(map(str, wanted))}) float32, n at least "
            f"{LEAST_CALIBRATION}; there are {found}",
            "give it held-out pictures of the recipe's data set",
        )
    samples: Floats = calibration.numpy()
    return np.ascontiguousarray(samples)


def one_file_model(
    kind: str,
    target: Target,
    path: Path,
    layout: str,
    example: Floats,
    expected: Floats,
    answer: Callable[[Floats], Floats],
    tool_versions: tuple[tuple[str, str], ...],
) -> BuiltModel:
    """The BuiltModel around the one file ``path``, once it has answered as it must.

    example: in the model's own layout. expected: PyTorch's answer to it. answer: the model's, on
    this machine, to one input in its own layout. Raises TargetError for fp32 that deviates by more
    than ATOL_FP32, and for an answer of another shape or that is not finite.
    """
    found = answer(example)
    int8 = target.precision == "int8"
    return BuiltModel(
        kind=kind,
        target=target,
        model_file=path.name,
        files=(BuiltFile(path.name, path),),
        input_layout=layout,
        input_shape=example.shape,
        output_shape=expected.shape,
        golden_input=raw_bytes(example),
        golden_output=raw_bytes(found if int8 else expected),
        atol=int8_atol(found) if int8 else ATOL_FP32,
        max_abs_err=parity(target, expected, found, math.inf if int8 else ATOL_FP32),
        tool_versions=tool_versions,
        answers=answers_one_by_one(answer, layout) if int8 else None,
    )


def answers_one_by_one(
    answer: Callable[[Floats], Floats], layout: str
) -> Callable[[Floats], Floats]:
    """``BuiltModel.answers`` of a model of batch 1 in its own layout."""

    def answers(x: Floats) -> Floats:
        own = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        return np.concatenate([answer(own[i : i + 1]) for i in range(len(own))])

    return answers


def require_fp32(target: Target) -> None:
    """Raises TargetError unless the target asks for float32."""
    if target.precision != "fp32":
        raise TargetError(
            target, f"precision {target.precision!r} cannot be built", "set precision: fp32"
        )


def raw_bytes(array: NDArray[Any]) -> bytes:
    """Little-endian float32 in C order: the form of golden files and of native executables."""
    return np.ascontiguousarray(array, dtype="<f4").tobytes()


def versions(*packages: str) -> tuple[tuple[str, str], ...]:
    """(distribution, version), sorted. Raises PackageNotFoundError for one not installed."""
    return tuple(sorted((name, importlib.metadata.version(name)) for name in packages))
