"""Latencies of the same models on several boards, runtimes and states, out of measured runs.

Input: Runs. Output: Cells: for each board in each state, the ms of each model.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from compiler.dataset import Run, Runs, lower_median
from compiler.transfer.rank import RankCorrelation, TransferError, rank_correlation

FloatArray = NDArray[np.float64]

AXES = ("board", "runtime", "precision", "threads", "governor", "freq_khz")
"""What tells two cells apart. freq_khz: only where the governor is userspace, for any other moves
the clock by itself; "-" else."""
NOTHING = "-"

Cell = tuple[str, ...]
"""A value for each of AXES."""


@dataclass(frozen=True)
class Cells:
    """ms_by_cell: cell → model name → ms, the lower median over runs. simulated: where one run is.

    A model is one file in each format (runtime and precision), and goes by its name.
    """

    ms_by_cell: Mapping[Cell, Mapping[str, float]]
    source: str
    simulated: bool

    def label(self, cell: Cell) -> str:
        """The board, and of the rest what differs anywhere: "pi4-01 runtime=ort threads=1"."""
        return " ".join(
            [cell[0]]
            + [
                f"{axis}={value}"
                for position, (axis, value) in enumerate(zip(AXES, cell, strict=True))
                if position and len({other[position] for other in self.ms_by_cell}) > 1
            ]
        )

    def find(self, side: str) -> Cell:
        """The one cell that ``side`` names: a board, or KEY=VALUE,… of AXES.

        Raises TransferError where it names none or several.
        """
        where = _parse(side)
        fitting = [
            cell
            for cell in self.ms_by_cell
            if all(cell[AXES.index(axis)] == value for axis, value in where.items())
        ]
        if not fitting:
            raise TransferError(
                f"{self.source}: no run of {side}. Next: name one of {_some(self.labels)}"
            )
        if len(fitting) > 1:
            apart = [a for i, a in enumerate(AXES) if len({cell[i] for cell in fitting}) > 1]
            example = {axis: fitting[0][AXES.index(axis)] for axis in ("board", *apart)}
            named = ",".join(f"{axis}={value}" for axis, value in example.items())
            raise TransferError(
                f"{self.source}: {side} was measured with several of {', '.join(apart)}. "
                f"Next: name one, such as {named}"
            )
        return fitting[0]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(map(self.label, self.ms_by_cell))

    def shared(self, *cells: Cell) -> tuple[str, ...]:
        """Names of the models that all of these cells measured, sorted."""
        return tuple(sorted(set.intersection(*(set(self.ms_by_cell[cell]) for cell in cells))))

    def ms(self, cell: Cell, models: Sequence[str]) -> FloatArray:
        """(n_models,) ms of models that the cell measured."""
        return np.array([self.ms_by_cell[cell][model] for model in models])


def read_cells(runs: Runs, pattern: str = "*") -> Cells:
    """The cells of the models whose names fit the pattern (as a shell's: ``resnet-*``).

    Raises TransferError where no name fits, or where a name stands for several files of one format.
    """
    found: dict[Cell, dict[str, list[float]]] = {}
    files: dict[tuple[str, str, str], set[str]] = {}
    for run in runs.runs:
        if fnmatch.fnmatchcase(run.model_name, pattern):
            found.setdefault(_cell(run), {}).setdefault(run.model_name, []).append(run.p50_ms)
            key = (run.model_name, run.runtime, run.precision)
            files.setdefault(key, set()).add(run.model_sha256)
    if not found:
        names = sorted({run.model_name for run in runs.runs})
        raise TransferError(
            f"{runs.source}: no model is named {pattern}. Next: name one of {_some(names)}"
        )
    for (name, *_), hashes in sorted(files.items()):
        if len(hashes) > 1:
            raise TransferError(
                f"{runs.source}: {name} stands for {len(hashes)} different models. "
                "Next: name one campaign"
            )
    return Cells(
        {
            cell: {model: lower_median(ms) for model, ms in models.items()}
            for cell, models in sorted(found.items())
        },
        runs.source,
        runs.simulated,
    )


def every_pair(cells: Cells, coverage: float = 0.95) -> dict[tuple[str, str], RankCorrelation]:
    """Rank correlation of every two cells, by their labels, over the models that both measured.

    Pairs that share fewer than two models are left out.
    """
    found = {}
    for one, other in combinations(cells.ms_by_cell, 2):
        models = cells.shared(one, other)
        if len(models) > 1:
            found[cells.label(one), cells.label(other)] = rank_correlation(
                cells.ms(one, models), cells.ms(other, models), coverage
            )
    return found


def _cell(run: Run) -> Cell:
    held = run.governor == "userspace" and run.freq_khz is not None
    return (
        run.board_id,
        run.runtime,
        run.precision,
        str(run.threads),
        run.governor or NOTHING,
        str(run.freq_khz) if held else NOTHING,
    )


def _parse(side: str) -> dict[str, str]:
    if "=" not in side:
        return {"board": side}
    where = {}
    for part in side.split(","):
        axis, _, value = part.partition("=")
        if axis not in AXES or not value:
            raise TransferError(
                f"{side!r}: {part!r} is not KEY=VALUE. Next: name a key of {', '.join(AXES)}"
            )
        where[axis] = value
    return where


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
