"""Raw little-endian bytes to numpy arrays and back.

Input: a TensorSpec and bytes. Output: an array of that type and shape. Raises RunFailedError.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from device_agents.errors import RunFailedError
from device_agents.runtimes import TensorSpec


def array_of(spec: TensorSpec, data: bytes) -> Any:
    """A writable array in the machine's own byte order."""
    dtype = np.dtype(spec.dtype)
    expected = spec.count() * dtype.itemsize
    if len(data) != expected:
        raise RunFailedError(
            "model",
            f"input {spec.name!r} takes {expected} bytes of {spec.dtype}, given {len(data)}",
            "make the golden tensors with the model they belong to",
        )
    little = np.frombuffer(data, dtype.newbyteorder("<"))
    return little.astype(dtype).reshape(spec.shape)


def bytes_of(answer: Any) -> bytes:
    array = np.asarray(answer)
    return bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
