"""Where networks are trained, and in which arithmetic.

Input: what the machine has, and a recipe's word on precision. Output: a torch device and the
type of an autocast, None for plain float32. The branches for CUDA are untested: no machine that
runs the tests has one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from compiler.errors import CompilerError

Precision = Literal["auto", "fp32", "bf16"]


class PrecisionError(CompilerError, ValueError):
    """An arithmetic that this device lacks."""


def chosen() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def of(network: nn.Module) -> torch.device:
    """Where a network lies: where its first parameter does; the CPU for one without."""
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def autocast_type(device: torch.device, precision: Precision) -> torch.dtype | None:
    """What convolutions and products are computed in; weights and losses stay float32.

    auto: float32 on a CPU; on a GPU bfloat16, or float16 (with scaled gradients) where it has no
    bfloat16. Raises PrecisionError for bf16 on a device that would only emulate it.
    """
    if precision == "fp32" or (precision == "auto" and device.type == "cpu"):
        return None
    if _has_bfloat16(device):
        return torch.bfloat16
    if precision == "auto":
        return torch.float16
    raise PrecisionError(
        f"this {device.type} has no bfloat16 arithmetic (a CPU needs AVX512-BF16 or AMX). "
        "Next: set precision: auto in the recipe"
    )


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # AVX512 without BF16 computes it too, by widening: slower than float32.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
