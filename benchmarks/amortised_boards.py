"""Boards for designs without a search: some to learn from, some held out, all measured over SSH.

Input: a folder and how much to measure. Output: for each virtual board what the designer may know
of it and the shapes it ran. Execution is real; clocks, memory and allocation costs are simulated.
What was measured stays in the folder: a killed run goes on there, a finished one is only read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks import surrogate_boards
from benchmarks.surrogate_boards import Effort
from benchmarks.surrogate_contenders import SEED, Shapes
from compiler.amortised.device import DeviceFeatures, device_features
from compiler.anchors import write_anchors
from compiler.dataset import read_runs
from compiler.proposals import ProposedModel, has_proposal, load_proposal, propose
from compiler.pruning.widths import Widths
from compiler.targets.candidates import from_onnx
from compiler.work import WorkFolder
from harness.virtual.spec import (
    MEMORY_BOUND,
    MEMORY_BOUND_BYTES_PER_S,
    RUNTIME_BOUND,
    RUNTIME_BOUND_MALLOC_NS,
    RackSpec,
    VirtualBoardSpec,
)

KNOWN = (
    VirtualBoardSpec("nominal-1500"),
    VirtualBoardSpec("powersave-600", governor="powersave"),
    VirtualBoardSpec(
        "memory-bound", behaviour=MEMORY_BOUND, memory_bytes_per_s=MEMORY_BOUND_BYTES_PER_S
    ),
    VirtualBoardSpec("runtime-bound", behaviour=RUNTIME_BOUND, malloc_ns=RUNTIME_BOUND_MALLOC_NS),
)
HELD_OUT = (
    VirtualBoardSpec(
        "held-out-memory",
        behaviour=MEMORY_BOUND,
        freqs_khz=(600_000, 1_000_000),
        memory_bytes_per_s=2 * MEMORY_BOUND_BYTES_PER_S,
    ),
    VirtualBoardSpec(
        "held-out-runtime",
        behaviour=RUNTIME_BOUND,
        freqs_khz=(600_000, 1_200_000),
        malloc_ns=RUNTIME_BOUND_MALLOC_NS // 2,
    ),
)
"""Between the known ones, at other clocks: of them the designer learns nothing but anchors."""

RACK = RackSpec(boards=(*KNOWN, *HELD_OUT), seed=SEED)
ANCHOR_REPEATS = 3


@dataclass(frozen=True)
class Measured:
    """One board: what is known without its shapes, and the shapes that it ran, ms (n,)."""

    device: DeviceFeatures
    widths: tuple[Widths, ...]
    shapes: Shapes

    @property
    def ms(self) -> NDArray[np.float64]:
        return self.shapes.ms


def measured(folder: Path, effort: Effort) -> tuple[Measured, ...]:
    """Every board of RACK, in its order; effort names one network. Raises HarnessError."""
    devices = _anchored(folder / "anchors", effort)
    found = surrogate_boards.measured(folder / "shapes", effort, RACK)
    return tuple(Measured(devices[one.board], _widths(one.train.raw), one.train) for one in found)


def _widths(raw: NDArray[np.float64]) -> tuple[Widths, ...]:
    return tuple(tuple(int(width) for width in row) for row in raw)


def _anchored(folder: Path, effort: Effort) -> dict[str, DeviceFeatures]:
    recipe = effort.recipe()
    work = WorkFolder(folder, recipe)
    if not has_proposal(work, "anchors"):
        paths = write_anchors(work.proposal("anchors"), recipe.seed)
        models = [
            ProposedModel(name, from_onnx(recipe.runtime, path.read_bytes()), {})
            for name, path in paths.items()
        ]
        boards = [board.board_id for board in RACK.boards]
        propose(work, recipe, "anchors", models, boards=boards, repeats=ANCHOR_REPEATS)
    dataset = folder / "dataset"
    if not (dataset / "dataset.json").exists():
        campaign = load_proposal(work, "anchors").campaign_path
        surrogate_boards.measure_campaign(folder, campaign, dataset, RACK)
    runs = read_runs(dataset)
    return {
        board.board_id: device_features(runs, board.board_id, recipe.runtime)
        for board in RACK.boards
    }


def simulated(base: DeviceFeatures, name: str, vector: NDArray[np.float64]) -> DeviceFeatures:
    """The device whose vector this is, but for what all boards of this machine share with base."""
    n = len(base.anchor_ms)
    return replace(
        base,
        name=name,
        anchor_ms=tuple(np.exp(vector[:n]).tolist()),
        effective_freq_khz=round(float(np.exp(vector[n]))) if vector[n + 1] else None,
    )
