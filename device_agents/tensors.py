"""Inputs drawn from a seed, and the distance between two outputs; standard library only.

Input: a TensorSpec and a seed, or raw little-endian float32. Output: raw bytes, or a float.
The same seed gives the same bytes on every board and Python: random.Random is specified.
"""

from __future__ import annotations

import array
import math
import random
import struct
import sys
from typing import List, Sequence

from device_agents.errors import RunFailedError
from device_agents.runtimes import TensorSpec

_INT_BYTES = {
    "bool": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "uint16": 2,
    "int32": 4,
    "uint32": 4,
    "int64": 8,
    "uint64": 8,
}


def draw(specs: Sequence[TensorSpec], seed: int) -> List[bytes]:
    """One tensor a spec: floats uniform in [-1, 1); 8-bit integers over their whole range.

    Wider integers and booleans are 0 or 1: they are indices, and both are in every table.
    """
    rng = random.Random(seed)  # noqa: S311 - an input, not a secret
    return [_draw(spec, rng) for spec in specs]


def floats(data: bytes) -> array.array[float]:
    """Raw little-endian float32. Raises RunFailedError when the length is no multiple of 4."""
    values = array.array("f")
    if len(data) % values.itemsize:
        raise RunFailedError(
            "model",
            f"a golden tensor of {len(data)} bytes is not float32",
            "write golden tensors as raw little-endian float32",
        )
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def max_abs_err(expected: bytes, found: bytes) -> float:
    """Largest absolute difference of two raw float32 tensors. Raises RunFailedError.

    Raised for other lengths, and for NaN or infinity, from which no distance can be told.
    """
    expected_values, found_values = floats(expected), floats(found)
    if len(expected_values) != len(found_values):
        raise RunFailedError(
            "model",
            f"the output has {len(found_values)} values, the golden one {len(expected_values)}",
            "make the golden tensors with the model they belong to",
        )
    worst = 0.0
    for expected_value, found_value in zip(expected_values, found_values):
        difference = abs(expected_value - found_value)
        if not math.isfinite(difference):
            raise RunFailedError(
                "model",
                f"the output holds {found_value} where {expected_value} is expected",
                "compare the model's output on the workstation",
            )
        worst = max(worst, difference)
    return worst


def _draw(spec: TensorSpec, rng: random.Random) -> bytes:
    count = spec.count()
    if spec.dtype in ("float32", "float64"):
        values = array.array(
            "f" if spec.dtype == "float32" else "d",
            (2 * rng.random() - 1 for _ in range(count)),
        )
        if sys.byteorder == "big":
            values.byteswap()
        return values.tobytes()
    if spec.dtype == "float16":
        return struct.pack(f"<{count}e", *(2 * rng.random() - 1 for _ in range(count)))
    if spec.dtype in ("int8", "uint8"):
        return rng.getrandbits(8 * count).to_bytes(count, "little")
    if spec.dtype in _INT_BYTES:
        size = _INT_BYTES[spec.dtype]
        return b"".join(rng.getrandbits(1).to_bytes(size, "little") for _ in range(count))
    raise RunFailedError(
        "model",
        f"input {spec.name!r} is of type {spec.dtype}, for which no input can be drawn",
        "give the model numeric inputs",
    )
