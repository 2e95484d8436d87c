"""The table that xnnpack_network.c walks: operators, the places of their tensors, the weights.

Input: tensors by name and operators over them. Output: its bytes, as xnnpack_plan.h says. It knows
the format and no network.
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
ALIGNED_FLOATS = 16
"""64 bytes, XNNPACK's own alignment."""

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
_OPERATOR = np.dtype(
    [
        ("kind", "<u4"),
        *((name, _TENSOR) for name in ("input", "second", "output")),
        *((name, "<u4") for name in ("groups", *_WINDOW, "weights", "bias")),
        *((name, "<f4") for name in ("low", "high", "scale", "shift")),
    ]
)
_PLAN = np.dtype(
    [
        *((name, "<u4") for name in ("magic", "operators", "arena", "weights", "weights_count")),
        *((name, _TENSOR) for name in ("input", "output")),
    ]
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


@dataclass
class PlanWriter:
    """Collects one network. shapes: of every tensor, by name; it may have more names than one."""

    shapes: dict[str, Shape] = field(default_factory=dict)
    _names: dict[str, str] = field(default_factory=dict)
    _operators: list[_Operator] = field(default_factory=list)
    _weights: list[bytes] = field(default_factory=list)
    _weights_count: int = 0

    def add_input(self, name: str, shape: Shape) -> None:
        self._names[name], self.shapes[name] = name, shape

    def add_alias(self, name: str, of: str) -> None:
        """One more name for a tensor."""
        self._names[name], self.shapes[name] = self._names[of], self.shapes[of]

    def add_weights(self, values: Floats) -> int:
        """Where they lie, in floats from the first weight."""
        at = self._weights_count
        room = -(-values.size // ALIGNED_FLOATS) * ALIGNED_FLOATS
        data = np.ascontiguousarray(values, dtype="<f4").tobytes()
        self._weights.append(data.ljust(4 * room, b"\0"))
        self._weights_count += room
        return at

    def add(self, kind: Kind, inputs: Sequence[str], out: str, shape: Shape, **said: Any) -> None:
        """said: fields of the record that are not plain, by their names in xnnpack_plan.h."""
        names = tuple(self._names[name] for name in inputs)
        self.add_input(out, shape)
        self._operators.append(_Operator(kind, names, out, said))

    def finish(self, source: str, answer: str) -> bytes:
        """The whole plan, from the network's input to its output."""
        source, answer = self._names[source], self._names[answer]
        places, arena = self._places(source, answer)
        table = np.zeros(len(self._operators), _OPERATOR)
        for record, operator in zip(table, self._operators, strict=True):
            record["kind"] = operator.kind
            ends = zip(("input", "second"), operator.inputs, strict=False)
            for end, name in (*ends, ("output", operator.output)):
                record[end] = (*self.shapes[name], places[name])
            for name, value in {**_PLAIN, **operator.fields}.items():
                record[name] = value
        start = _PLAN.itemsize + table.nbytes
        padding = -start % (4 * ALIGNED_FLOATS)
        header = np.zeros((), _PLAN)
        numbers = (MAGIC, len(table), arena, start + padding, self._weights_count)
        ends = ((*self.shapes[name], places[name]) for name in (source, answer))
        header[()] = (*numbers, *ends)
        return b"".join((header.tobytes(), table.tobytes(), bytes(padding), *self._weights))

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
        floats = math.prod(self.shapes[name]) + SLACK_FLOATS
        return -(-floats // ALIGNED_FLOATS) * ALIGNED_FLOATS
