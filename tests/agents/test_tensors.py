import math
import struct

import pytest

from device_agents.errors import RunFailedError
from device_agents.runtimes import TensorSpec
from device_agents.tensors import draw, max_abs_err


def pack(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def test_the_same_seed_gives_the_same_bytes_on_every_python():
    (data,) = draw([TensorSpec("x", "float32", (1, 3))], 7)
    assert data == draw([TensorSpec("x", "float32", (3,))], 7)[0]
    assert data != draw([TensorSpec("x", "float32", (3,))], 8)[0]
    assert struct.unpack("<3f", data) == pytest.approx((-0.35233447, -0.69830167, 0.30186895), 1e-6)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("float64", 8), ("float16", 2), ("int8", 1), ("uint8", 1), ("int64", 8), ("bool", 1)],
)
def test_types_and_sizes(dtype, size):
    assert len(draw([TensorSpec("x", dtype, (2, 3))], 0)[0]) == 6 * size


def test_indices_are_in_every_table():
    (data,) = draw([TensorSpec("ids", "int32", (50,))], 0)
    assert set(struct.unpack("<50i", data)) == {0, 1}


def test_a_type_without_numbers_is_a_record():
    with pytest.raises(RunFailedError, match="tensor\\(string\\)"):
        draw([TensorSpec("x", "tensor(string)", (1,))], 0)


def test_distance():
    assert max_abs_err(pack(1, 2, 3), pack(1, 2.5, 2.75)) == 0.5
    assert max_abs_err(b"", b"") == 0.0


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (pack(1), pack(1, 2)),
        (pack(1), b"\0\0\0"),
        (pack(1), pack(math.nan)),
        (pack(1), pack(math.inf)),
        (pack(math.nan), pack(1)),
    ],
)
def test_no_distance_can_be_told(expected, found):
    with pytest.raises(RunFailedError) as caught:
        max_abs_err(expected, found)
    assert caught.value.error.kind == "model"
