"""The table that xnnpack_network.c walks: operators, the places of their tensors, the weights.

Input: tensors by name and operators over them; for a switchable network several such plans and the
policy. Output: the bytes that xnnpack_plan.h describes. It knows the format and no network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = 0x31504E58
SWITCHABLE_MAGIC = 0x31534E58
ALIGNED_FLOATS = 16
"""64 bytes, XNNPACK's own alignment."""

BLOCK = 16
"""Output channels that lie side by side in shared weights; a bias and factors are as long."""

SLACK_FLOATS = 4
"""XNNPACK reads 16 bytes beyond a tensor (XNN_EXTRA_BYTES)."""

Shape = tuple[int, int, int]
"""Channels, height, width of one tensor; (n, 1, 1) for a row of n."""

Floats = NDArray[np.float32]


class Kind(IntEnum):
    """``enum fleetcut_kind``."""

    CONVOLUTION = 0
    FULLY_CONNECTED = 1
    ADD = 2
    MULTIPLY = 3
    CLAMP = 4
    HARD_SWISH = 5
    SIGMOID = 6
    HARD_SIGMOID = 7
    MAX_POOL = 8
    AVERAGE_POOL = 9
    GLOBAL_AVERAGE = 10
    PAD = 11


_TENSOR = np.dtype([(name, "<u4") for name in ("channels", "height", "width", "at")])
_WINDOW = (
    *("kernel_height", "kernel_width", "stride_height", "stride_width"),
    *("dilation_height", "dilation_width", "top", "right", "bottom", "left"),
)
_WEIGHTS = ("weights", "bias", "shared", "factors")
_OPERATOR = np.dtype(
    [
        ("kind", "<u4"),
        *((name, _TENSOR) for name in ("input", "second", "output")),
        *((name, "<u4") for name in ("groups", *_WINDOW, *_WEIGHTS)),
        *((name, "<f4") for name in ("low", "high", "scale", "shift")),
    ]
)
_PLAN = np.dtype(
    [
        *((name, "<u4") for name in ("magic", "operators", "arena", "weights", "weights_count")),
        *((name, _TENSOR) for name in ("input", "output")),
    ]
)
_RATIO = np.dtype(
    [
        *((name, "<f8") for name in ("ratio", "a_ms", "b_ms_khz")),
        *((name, "<u4") for name in ("plan", "golden")),
    ]
)
_SWITCHABLE = np.dtype(
    [("magic", "<u4"), ("networks", "<u4"), ("target_ms", "<f8"), ("hysteresis", "<f8")]
)
_PLAIN = {
    **dict.fromkeys(_WINDOW[:6], 1),
    **{"groups": 1, "low": -math.inf, "high": math.inf},
}


@dataclass(frozen=True)
class Window:
    """What a convolution or a pooling looks at. pads: rows above, columns left, below, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def over(self, shape: Shape) -> tuple[int, int]:
        """Height and width of what comes of a tensor."""
        padded = (shape[1] + self.pads[0] + self.pads[2], shape[2] + self.pads[1] + self.pads[3])
        height, width = (
            (size - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, stride, dilation in zip(
                padded, self.kernel, self.strides, self.dilations, strict=True
            )
        )
        return height, width

    def fields(self) -> dict[str, int]:
        top, left, bottom, right = self.pads
        around = (top, right, bottom, left)
        numbers = (*self.kernel, *self.strides, *self.dilations, *around)
        return dict(zip(_WINDOW, numbers, strict=True))


@dataclass(frozen=True)
class _Operator:
    kind: Kind
    inputs: tuple[str, ...]
    output: str
    fields: Mapping[str, Any]


class Weights:
    """What lies behind the table of a plan, or behind those of several."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self.count = 0

    def add(self, values: Floats) -> int:
        """Where they lie, in floats from the first weight. Zeros follow, up to the next block."""
        at = self.count
        room = aligned(values.size, ALIGNED_FLOATS)
        data = np.ascontiguousarray(values, dtype="<f4").tobytes()
        self._parts.append(data.ljust(4 * room, b"\0"))
        self.count += room
        return at

    def to_bytes(self) -> bytes:
        return b"".join(self._parts)


def aligned(size: int, to: int) -> int:
    """The next multiple."""
    return -(-size // to) * to


@dataclass
class PlanWriter:
    """Collects one network. shapes: of every tensor, by name; it may have more names than one."""

    weights: Weights = field(default_factory=Weights)
    shapes: dict[str, Shape] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _operators: list[_Operator] = field(default_factory=list)

    def add_input(self, name: str, shape: Shape) -> None:
        self._names[name], self.shapes[name] = name, shape

    def add_alias(self, name: str, of: str) -> None:
        """One more name for a tensor."""
        self._names[name], self.shapes[name] = self._names[of], self.shapes[of]

    def add(self, kind: Kind, inputs: Sequence[str], out: str, shape: Shape, **said: Any) -> None:
        """said: fields of the record that are not plain, by their names in xnnpack_plan.h."""
        names = tuple(self._names[name] for name in inputs)
        self.add_input(out, shape)
        self._operators.append(_Operator(kind, names, out, said))

    def size(self) -> int:
        """Bytes of the table, as ``table`` gives it."""
        return aligned(_PLAN.itemsize + len(self._operators) * _OPERATOR.itemsize, 64)

    def table(self, source: str, answer: str, weights: int) -> bytes:
        """The plan without its weights, from the network's input to its output.

        weights: bytes from the start of this table to where they will lie.
        """
        source, answer = self._names[source], self._names[answer]
        places, arena = self._places(source, answer)
        records = np.zeros(len(self._operators), _OPERATOR)
        for record, operator in zip(records, self._operators, strict=True):
            record["kind"] = operator.kind
            ends = zip(("input", "second"), operator.inputs, strict=False)
            for end, name in (*ends, ("output", operator.output)):
                record[end] = (*self.shapes[name], places[name])
            for name, value in {**_PLAIN, **operator.fields}.items():
                record[name] = value
        header = np.zeros((), _PLAN)
        numbers = (MAGIC, len(records), arena, weights, self.weights.count)
        header[()] = (*numbers, *((*self.shapes[n], places[n]) for n in (source, answer)))
        return (header.tobytes() + records.tobytes()).ljust(self.size(), b"\0")

    def finish(self, source: str, answer: str) -> bytes:
        """The whole plan."""
        return self.table(source, answer, self.size()) + self.weights.to_bytes()

    def _places(self, source: str, answer: str) -> tuple[dict[str, int], int]:
        """Where each tensor lies, and how many floats that takes.

        The largest first, each at the lowest place that is free as long as it lives
        (https://arxiv.org/abs/2001.03288, greedy by size).
        """
        lives = {source: (-1, -1)}
        for time, operator in enumerate(self._operators):
            for name in operator.inputs:
                lives[name] = (lives[name][0], time)
            lives[operator.output] = (time, time)
        lives[answer] = (lives[answer][0], len(self._operators))
        places: dict[str, int] = {}
        for name in sorted(lives, key=lambda name: (-math.prod(self.shapes[name]), lives[name])):
            places[name] = self._lowest(name, places, lives)
        return places, max(places[name] + self._room(name) for name in places)

    def _lowest(
        self, name: str, places: Mapping[str, int], lives: Mapping[str, tuple[int, int]]
    ) -> int:
        born, dies = lives[name]
        beside = sorted(
            (place, place + self._room(other))
            for other, place in places.items()
            if lives[other][0] <= dies and born <= lives[other][1]
        )
        at = 0
        for start, end in beside:
            if at + self._room(name) <= start:
                break
            at = max(at, end)
        return at

    def _room(self, name: str) -> int:
        """Floats, up to where the next tensor may begin."""
        return aligned(math.prod(self.shapes[name]) + SLACK_FLOATS, ALIGNED_FLOATS)


@dataclass(frozen=True)
class SubNetwork:
    """One plan of a switchable network.

    ratio: of its channels that are cut off. a_ms, b_ms_khz: its latency over the clock. golden:
    where its answer to the golden input lies, in floats from the first weight.
    """

    plan: PlanWriter
    ratio: float
    a_ms: float
    b_ms_khz: float
    golden: int


def switchable(
    networks: Sequence[SubNetwork],
    target_ms: float,
    hysteresis: float,
    ends: tuple[str, str],
) -> bytes:
    """All plans, the widest first, and the weights that they share. ends: input and output."""
    head = np.array((SWITCHABLE_MAGIC, len(networks), target_ms, hysteresis), _SWITCHABLE)
    at = aligned(_SWITCHABLE.itemsize + len(networks) * _RATIO.itemsize, 64)
    weights = at + sum(network.plan.size() for network in networks)
    ratios, tables = np.zeros(len(networks), _RATIO), []
    for k, network in enumerate(networks):
        ratios[k] = (network.ratio, network.a_ms, network.b_ms_khz, at, network.golden)
        tables.append(network.plan.table(*ends, weights - at))
        at += network.plan.size()
    begin = (head.tobytes() + ratios.tobytes()).ljust(at - sum(map(len, tables)), b"\0")
    return b"".join((begin, *tables, networks[0].plan.weights.to_bytes()))
