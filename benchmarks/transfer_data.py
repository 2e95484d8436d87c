"""Latencies of the same shapes on several boards: OneProxy's devices, and boards measured here.

Input: a folder. Output: Fleets, each the same shapes on every board.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks import surrogate_boards, surrogate_oneproxy
from benchmarks.surrogate_boards import Effort, Measured
from benchmarks.surrogate_contenders import SEED
from compiler.transfer.pool import Pool
from harness.virtual.spec import (
    MEMORY_BOUND,
    MEMORY_BOUND_BYTES_PER_S,
    RUNTIME_BOUND,
    RUNTIME_BOUND_MALLOC_NS,
    RackSpec,
    VirtualBoardSpec,
)

FloatArray = NDArray[np.float64]
Widths = tuple[float, ...]

BOARDS = RackSpec(
    boards=(
        VirtualBoardSpec("nominal-1500"),
        VirtualBoardSpec("powersave-600", governor="powersave"),
        VirtualBoardSpec(
            "memory-bound", behaviour=MEMORY_BOUND, memory_bytes_per_s=MEMORY_BOUND_BYTES_PER_S
        ),
        VirtualBoardSpec(
            "runtime-bound", behaviour=RUNTIME_BOUND, malloc_ns=RUNTIME_BOUND_MALLOC_NS
        ),
    ),
    seed=SEED,
)
"""Two of one kind at different clocks, and two that differ in which shapes are slow."""

RUNTIMES: tuple[Literal["ort", "tflite"], ...] = ("ort", "tflite")
FULL = Effort(("digits_mobilenet", "digits_resnet"), (120,), held_out=40, repeats=1)
QUICK = Effort(("digits_resnet",), (30,), held_out=10, repeats=1)


@dataclass(frozen=True)
class Fleet:
    """One network's shapes on every board. ms: (n, n_boards), > 0. x: (n, n_features)."""

    fleet: str
    network: str
    boards: tuple[str, ...]
    ms: FloatArray
    x: FloatArray

    def target(self, board: str) -> tuple[Pool, FloatArray]:
        """What is known when this board is new, and (n,) what it would measure."""
        column = self.boards.index(board)
        others = tuple(name for name in self.boards if name != board)
        return Pool(np.delete(self.ms, column, axis=1), self.x, others), self.ms[:, column]


def oneproxy(folder: Path) -> Fleet:
    """The cells that ran on every device, none of whose columns is estimated or another's twin."""
    cells, ms_by_device = surrogate_oneproxy.read(folder)
    ms = np.stack(list(ms_by_device.values()), axis=1)
    everywhere = (ms > 0).all(axis=1)
    shapes = surrogate_oneproxy.shapes(cells, np.where(everywhere, 1.0, -1.0))
    return Fleet(
        surrogate_oneproxy.FLEET, "nasbench201", tuple(ms_by_device), ms[everywhere], shapes.x
    )


def boards(folder: Path, effort: Effort) -> list[Fleet]:
    """Every board with every runtime, measured over SSH now or read from the folder."""
    measured = [
        replace(one, board=f"{one.board} {runtime}")
        for runtime in RUNTIMES
        for one in surrogate_boards.measured(
            folder / runtime, replace(effort, runtime=runtime), BOARDS
        )
    ]
    return [_fleet([m for m in measured if m.network == network]) for network in effort.networks]


def _fleet(measured: Sequence[Measured]) -> Fleet:
    """The shapes that every board measured, told apart by their widths."""
    by_board = [
        {
            tuple(widths): ms
            for part in (one.train, one.judged)
            for widths, ms in zip(part.raw.tolist(), part.ms.tolist(), strict=True)
        }
        for one in measured
    ]
    x: dict[Widths, FloatArray] = {
        tuple(widths): row
        for part in (measured[0].train, measured[0].judged)
        for widths, row in zip(part.raw.tolist(), part.x, strict=True)
    }
    shared = [widths for widths in x if all(widths in of_board for of_board in by_board)]
    return Fleet(
        surrogate_boards.FLEET,
        measured[0].network,
        tuple(one.board for one in measured),
        np.array([[of_board[widths] for of_board in by_board] for widths in shared]),
        np.stack([x[widths] for widths in shared]),
    )
