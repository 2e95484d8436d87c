"""Two sides of a lab's records, paired by board, cell and repeat, and compared.

Input: StoredRuns in the order in which they were stored, and two Sides. Output: Compared: a row a
board and cell, and one a cell over all its boards. Only valid runs count.
Raises SelectionError where the sides hold nothing that can be paired.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeAlias

from device_agents.contract import Condition, RunSpec
from harness.campaign_axes import is_canary
from harness.campaign_file import REPEATS_MAX
from harness.comparison import (
    ALPHA,
    Level,
    PairedComparison,
    Pairs,
    compare_boards,
    control_false_discoveries,
    level_of,
    pairs_of,
)
from harness.drift import CanaryRun, Drift, drift_of
from harness.errors import SelectionError
from harness.store import StoredRun

NOTHING = "none"
"""How a condition that a run does not ask for is written."""

CONDITIONS = tuple(field.name for field in fields(Condition))
AXES = ("campaign", "model", "runtime", "precision", "threads", *CONDITIONS)

Cell: TypeAlias = tuple[tuple[str, str], ...]
"""(axis, value) of everything that both sides of a row share, in the order of AXES."""


@dataclass(frozen=True)
class Side:
    """One side. where: axis → the value that its runs have there; other axes are free."""

    name: str
    where: Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """How B compares with A on one board, or with board_id None on all boards of the cell.

    a_p50_ms, b_p50_ms: typical p50, the median over the pairs. apart: A and B did not alternate,
    so that a drift of the board between them looks like a change. canary_moved: fraction by which
    the board's canary strayed most from its middle, where that is more than its noise; the rows'
    latencies are corrected for it. None: it did not, or there are too few canaries to say.
    canaries: how many told so.
    """

    board_id: str | None
    n_boards: int
    cell: Cell
    a_p50_ms: float
    b_p50_ms: float
    apart: bool
    canaries: int
    canary_moved: float | None
    simulated: bool
    comparison: PairedComparison


@dataclass(frozen=True)
class Compared:
    """All rows. n_invalid: runs of both sides left out. n_unpaired: valid ones without a mate."""

    boards: tuple[Row, ...]
    fleet: tuple[Row, ...]
    n_invalid: int
    n_unpaired: int


def axes_of(run: StoredRun) -> dict[str, str]:
    """Where a run lies on each of AXES."""
    return axes_of_spec(run.record.spec, run.model_name)


def axes_of_spec(spec: RunSpec, model_name: str) -> dict[str, str]:
    """Where a run that is still to be made lies on each of AXES."""
    values = {name: getattr(spec.condition, name) for name in CONDITIONS}
    return {
        "campaign": spec.campaign_id,
        "model": model_name,
        "runtime": spec.runtime,
        "precision": spec.precision,
        "threads": str(spec.threads),
        **{name: NOTHING if value is None else str(value) for name, value in values.items()},
    }


@dataclass(frozen=True)
class _Run:
    """position: where it stands in its board's order."""

    level: Level
    position: int
    simulated: bool


@dataclass
class _Found:
    """What the records hold of the two sides. by_key: (board, cell, side) → repeat → run."""

    by_key: dict[tuple[str, Cell, int], dict[int, _Run]]
    canaries: dict[str, list[CanaryRun]]
    n_invalid: int = 0


def compare_runs(runs: Iterable[StoredRun], a: Side, b: Side, *, alpha: float = ALPHA) -> Compared:
    """Compare side B with side A. Runs that belong to neither may be among ``runs``."""
    if set(a.where) != set(b.where):
        raise SelectionError(
            f"{a.name!r} and {b.name!r} do not name the same axes. "
            "Next: give both sides the same keys"
        )
    if dict(a.where) == dict(b.where):
        raise SelectionError(f"{a.name!r} is compared with itself. Next: name two things")
    found = _sort_out(runs, (a, b))
    boards, pairs_by_cell, n_paired = [], defaultdict(list), 0
    drifts = {board: drift_of(canaries) for board, canaries in found.canaries.items()}
    for board_id, cell in sorted({key[:2] for key in found.by_key}):
        sides = [found.by_key.get((board_id, cell, side), {}) for side in (0, 1)]
        mates = sorted(set(sides[0]) & set(sides[1]))
        if not mates:
            continue
        n_paired += 2 * len(mates)
        paired = [[side[repeat] for repeat in mates] for side in sides]
        row, pairs = _row(board_id, cell, paired, drifts.get(board_id), alpha)
        boards.append(row)
        pairs_by_cell[cell].append((row, pairs))
    if not boards:
        raise SelectionError(
            f"no valid run of {a.name!r} has a mate of {b.name!r}: the same board, cell and "
            f"repeat ({found.n_invalid} runs are invalid). Next: fleetcut results"
        )
    fleet = [_fleet_row(cell, of, alpha) for cell, of in pairs_by_cell.items() if len(of) > 1]
    n_valid = sum(len(of) for of in found.by_key.values())
    return Compared(
        _judged_together(boards, alpha),
        _judged_together(fleet, alpha),
        found.n_invalid,
        n_valid - n_paired,
    )


def _sort_out(runs: Iterable[StoredRun], sides: Sequence[Side]) -> _Found:
    found = _Found({}, defaultdict(list))
    positions: dict[str, int] = defaultdict(int)
    for run in runs:
        spec, axes = run.record.spec, axes_of(run)
        positions[spec.board_id] += 1
        belongs = [i for i, side in enumerate(sides) if side.where.items() <= axes.items()]
        valid = run.record.verdict is not None and run.record.verdict.valid
        if is_canary(spec):
            if valid:
                same = replace(spec, campaign_id="", repeat=0).run_id
                level = level_of(run.record.latency_ns)
                canary = CanaryRun(same, positions[spec.board_id], level.log_p50)
                found.canaries[spec.board_id].append(canary)
            continue
        if not belongs:
            continue
        if not valid:
            found.n_invalid += 1
            continue
        cell = tuple((axis, axes[axis]) for axis in AXES if axis not in sides[0].where)
        key = (spec.board_id, cell, belongs[0])
        found.by_key.setdefault(key, {})[spec.repeat % REPEATS_MAX] = _Run(
            level_of(run.record.latency_ns), positions[spec.board_id], run.record.simulated
        )
    return found


def _row(
    board_id: str, cell: Cell, paired: Sequence[Sequence[_Run]], drift: Drift | None, alpha: float
) -> tuple[Row, Pairs]:
    levels = [
        [
            replace(run.level, log_p50=run.level.log_p50 - (drift.at(run.position) if drift else 0))
            for run in side
        ]
        for side in paired
    ]
    pairs = pairs_of(*levels)
    first, second = ([run.position for run in side] for side in paired)
    row = Row(
        board_id=board_id,
        n_boards=1,
        cell=cell,
        a_p50_ms=_middle_ms([run.level for run in paired[0]]),
        b_p50_ms=_middle_ms([run.level for run in paired[1]]),
        apart=len(first) > 1 and (max(first) < min(second) or max(second) < min(first)),
        canaries=drift.n if drift else 0,
        canary_moved=drift.moved if drift else None,
        simulated=any(run.simulated for side in paired for run in side),
        comparison=compare_boards([pairs], alpha=alpha),
    )
    return row, pairs


def _fleet_row(cell: Cell, of: Sequence[tuple[Row, Pairs]], alpha: float) -> Row:
    rows = [row for row, _ in of]
    moved = [row.canary_moved for row in rows if row.canary_moved is not None]
    return Row(
        board_id=None,
        n_boards=len(rows),
        cell=cell,
        a_p50_ms=math.exp(sum(math.log(row.a_p50_ms) for row in rows) / len(rows)),
        b_p50_ms=math.exp(sum(math.log(row.b_p50_ms) for row in rows) / len(rows)),
        apart=any(row.apart for row in rows),
        canaries=min(row.canaries for row in rows),
        canary_moved=max(moved, key=abs, default=None),
        simulated=any(row.simulated for row in rows),
        comparison=compare_boards([pairs for _, pairs in of], alpha=alpha),
    )


def _middle_ms(levels: Sequence[Level]) -> float:
    return math.exp(sorted(level.log_p50 for level in levels)[len(levels) // 2]) / 1e6


def _judged_together(rows: Sequence[Row], alpha: float) -> tuple[Row, ...]:
    together = control_false_discoveries([row.comparison for row in rows], alpha=alpha)
    return tuple(replace(row, comparison=c) for row, c in zip(rows, together, strict=True))
