"""OneProxy's public latencies: 1,999 cells of NAS-Bench-201 measured on boards, phones and servers.

Input: the folder of the data. Output: Shapes a device. A column counts where its runs were
measured; one that is estimated layer by layer, or another one again, is left out by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.surrogate_contenders import Shapes
from compiler.errors import CompilerError

FLEET = "real devices, measured by others (OneProxy, arXiv 2111.01203)"
FILE = "nb201_1999x18_latency_ms.npz"
SHA256 = "60f61095c48bf0d97cc96aa1c44828168750057c994343f06c2516a43f6b6a2e"
LEFT_OUT = {
    "rice_eyeriss": "estimated: exactly additive",
    "rice_fpga": "estimated: exactly additive",
    "eagle_i7": "the same as eagle_gtx, rank correlation 0.999",
}

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(from, to) of a cell's nodes, 0 its input and 3 its output (2001.00326, figure 1)."""
NONE, SKIP, CONV1, CONV3, POOL = range(5)
OPERATORS = {SKIP: "skip", CONV1: "conv1", CONV3: "conv3", POOL: "pool"}
N_OPERATORS = 5
CELLS = 15
MACS_PER_CONV1 = 16 * 16 * 32 * 32
"""In each cell alike: channels double where the picture halves."""

Cell = tuple[int, ...]
"""The operator on each of EDGES."""


def read(folder: Path) -> tuple[list[Cell], dict[str, NDArray[np.float64]]]:
    """The cells, and ms (n,) a device in the file's order, -1 where a cell does not run.

    Raises CompilerError for another file.
    """
    path = folder / FILE
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise CompilerError(f"{path}: another file than this benchmark reads. Next: restore it")
    with np.load(path, allow_pickle=False) as found:
        latency_ms, devices, onehot = found["latency"], found["devices"], found["onehot"]
    # The last column is 1 throughout.
    operators = onehot[:, :-1].reshape(len(onehot), len(EDGES), N_OPERATORS).argmax(axis=2)
    cells = [tuple(row) for row in operators.tolist()]
    kept = [i for i, device in enumerate(devices) if str(device) not in LEFT_OUT]
    return cells, {str(devices[i]): latency_ms[:, i] for i in kept}


def shapes(cells: Sequence[Cell], ms: NDArray[np.float64]) -> Shapes:
    """The cells that ran, ms > 0."""
    ran = np.flatnonzero(ms > 0).tolist()
    here = [cells[row] for row in ran]
    counted = [features(cell) for cell in here]
    names = tuple(counted[0])
    conv1s = [live(cell).count(CONV1) + 9 * live(cell).count(CONV3) for cell in here]
    return Shapes(
        macs=np.array(conv1s, dtype=np.float64) * MACS_PER_CONV1 * CELLS,
        raw=np.array([list(_edges(cell, "").values()) for cell in here], dtype=np.float64),
        x=np.array([[row[name] for name in names] for row in counted], dtype=np.float64),
        names=names,
        ms=ms[ran],
    )


def live(cell: Cell) -> Cell:
    """The cell without the operators that no value flows through from its input to its output.

    Some runtimes leave them out, some only those whose values lead nowhere, some none.
    """
    reached = {0}
    for (source, target), _ in _used(cell):
        if source in reached:
            reached.add(target)
    used = needed(cell)
    return tuple(
        operator if source in reached else NONE
        for (source, _), operator in zip(EDGES, used, strict=True)
    )


def needed(cell: Cell) -> Cell:
    """The cell without the operators whose values lead nowhere; those of zeros stay."""
    leading = {3}
    for (source, target), _ in reversed(_used(cell)):
        if target in leading:
            leading.add(source)
    return tuple(
        operator if target in leading else NONE
        for (_, target), operator in zip(EDGES, cell, strict=True)
    )


def features(cell: Cell) -> dict[str, float]:
    """What the cell costs: operators, sums and depth, as written down, as needed and as live.

    distinct: as live, but what is computed twice from the same value counts once.
    """
    alive = live(cell)
    return {
        **_counts(cell, "all"),
        **_counts(needed(cell), "needed"),
        **_counts(alive, "live"),
        **_distinct(alive),
        "depth": _depth(alive, {CONV1, CONV3, POOL}),
        "depth.conv": _depth(alive, {CONV1, CONV3}),
        "depth.conv3": _depth(alive, {CONV3}),
        "convolved_nodes": len({s for (s, _), o in _used(alive) if o in (CONV1, CONV3)}),
        **_edges(cell, "all"),
        **_edges(needed(cell), "needed"),
        **_edges(alive, "live"),
    }


def _used(cell: Cell) -> list[tuple[tuple[int, int], int]]:
    """((from, to), operator) of the edges that have one."""
    return [(edge, op) for edge, op in zip(EDGES, cell, strict=True) if op != NONE]


def _counts(cell: Cell, part: str) -> dict[str, float]:
    targets = [target for (_, target), _ in _used(cell)]
    counts = {f"{part}.{name}": float(cell.count(op)) for op, name in OPERATORS.items()}
    return counts | {f"{part}.sums": float(len(targets) - len(set(targets)))}


def _distinct(alive: Cell) -> dict[str, float]:
    values: dict[int, str] = {0: "input"}
    computed: set[tuple[int, str]] = set()
    for node in (1, 2, 3):
        terms = []
        for (source, target), operator in _used(alive):
            if target == node:
                term = values[source]
                if operator != SKIP:
                    term = f"{operator}({term})"
                    computed.add((operator, term))
                terms.append(term)
        values[node] = terms[0] if len(terms) == 1 else f"[{'+'.join(sorted(terms))}]"
    return {
        f"distinct.{OPERATORS[operator]}": float(sum(op == operator for op, _ in computed))
        for operator in (CONV1, CONV3, POOL)
    }


def _depth(alive: Cell, counted: set[int]) -> float:
    """The most operators of these kinds on one path from input to output."""
    depth = {0: 0}
    for (source, target), operator in _used(alive):
        depth[target] = max(depth.get(target, 0), depth[source] + (operator in counted))
    return float(depth.get(3, 0))


def _edges(cell: Cell, part: str) -> dict[str, float]:
    """One 0 or 1 for each edge and operator."""
    return {
        f"{part}.{source}-{target}.{name}": float(operator == op)
        for ((source, target), operator) in zip(EDGES, cell, strict=True)
        for op, name in OPERATORS.items()
    }
