"""Which cells regressed, and of which nothing can be said: from stored runs, purely.

Input: StoredRuns of tonight and of the baselines, in the order of insertion. Output: CellOutcomes.

Tonight's runs and the baseline's lie a day apart, so they are paired by their rank: the first that
counts with the first. A regression has to be seen twice, and the canary is compared as a cell of
its own instead of being divided out: a board that became slower is news too.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from device_agents.contract import MeasurementRecord
from harness.campaign_file import REPEATS_MAX
from harness.errors import SelectionError
from harness.nightly.night import CANARY, cell_of, slot_of
from harness.nightly.outcomes import CellOutcome
from harness.pairing import NOTHING, Row, Side, compare_runs
from harness.statistics import median_ns
from harness.store import BaselineCell, StoredRun

_BASELINE = Side("baseline", {"campaign": "baseline"})
_TONIGHT = Side("tonight", {"campaign": "tonight"})

_VALID, _INVALID, _FAILED = 2, 1, 0


@dataclass
class Tally:
    """What tonight's runs of one cell came to. best: slot → the best of its tries.

    p50s_ns: of those that count.
    """

    best: dict[int, tuple[int, str]] = field(default_factory=dict)
    p50s_ns: list[int] = field(default_factory=list)
    simulated: bool = False

    def add(self, record: MeasurementRecord, slot: int) -> None:
        rank, reason = _worth(record)
        self.best[slot] = max(self.best.get(slot, (-1, "")), (rank, reason))
        self.simulated |= record.simulated
        if rank == _VALID:
            self.p50s_ns.append(median_ns(record.latency_ns))

    def p50_ns(self) -> int | None:
        """The typical one: the median over the runs that count."""
        return median_ns(self.p50s_ns) if self.p50s_ns else None

    @property
    def valid(self) -> int:
        return sum(rank == _VALID for rank, _ in self.best.values())

    @property
    def measured(self) -> int:
        return sum(rank >= _INVALID for rank, _ in self.best.values())

    def reasons(self, rank: int) -> str:
        """Why runs are no better than that, the most frequent first."""
        said = Counter(reason for worth, reason in self.best.values() if worth == rank)
        return "; ".join(f"{n} × {reason}" for reason, n in said.most_common(3))


NIGHTS_LEAST = 6
"""Of fewer nights nobody can say how much they differ by themselves."""

NIGHTS_MOST = 30

_SIGMAS = 3.0
_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Rules:
    """alpha: of the changes called, at most this share is false. min_change: a fraction.

    by_cell: where nights differ by more than min_change by themselves, the change to reach.
    """

    alpha: float
    min_change: float
    pairs_needed: int
    by_cell: Mapping[BaselineCell, float] = field(default_factory=dict)

    def least(self, cell: BaselineCell) -> float:
        """The least change of this cell that is a regression."""
        return max(self.min_change, self.by_cell.get(cell, 0.0))


def usual_change(p50s_ns: Sequence[int]) -> float | None:
    """The change that is seldom exceeded from one night to another: three sigmas of it.

    p50s_ns: of earlier nights, in order. From the steps between neighbours, by their median: a
    regression that stays is one step, and hides no later one. None where they are too few.
    """
    if len(p50s_ns) < NIGHTS_LEAST:
        return None
    steps = np.abs(np.diff(np.log(np.asarray(p50s_ns, dtype=np.float64))))
    return math.expm1(_SIGMAS * _MAD_TO_SIGMA * float(np.median(steps)))


@dataclass(frozen=True)
class Seen:
    """Tonight beside the baseline. rows: of the cells that both have."""

    rows: Mapping[BaselineCell, Row]
    tallies: Mapping[BaselineCell, Tally]

    def tally(self, cell: BaselineCell) -> Tally:
        return self.tallies.get(cell, Tally())


def look(
    runs: Iterable[StoredRun],
    tonight_id: str,
    baselines: Mapping[BaselineCell, str],
    alpha: float,
    cells: Container[BaselineCell] | None = None,
) -> Seen:
    """Compare tonight's runs, of ``cells`` alone where they are given, with each cell's baseline.

    False discoveries are controlled over all of them (Benjamini and Hochberg 1995).
    """
    tallies: dict[BaselineCell, Tally] = defaultdict(Tally)
    aligned = _aligned(runs, tonight_id, baselines, tallies, cells)
    try:
        compared = compare_runs(aligned, _BASELINE, _TONIGHT, alpha=alpha)
    except SelectionError:
        # Nothing of both sides: the first night, or a night of which nothing counts.
        return Seen({}, tallies)
    return Seen({_cell_of_row(row): row for row in compared.boards}, tallies)


def _aligned(
    runs: Iterable[StoredRun],
    tonight_id: str,
    baselines: Mapping[BaselineCell, str],
    tallies: dict[BaselineCell, Tally],
    cells: Container[BaselineCell] | None,
) -> Iterator[StoredRun]:
    """Runs that count, as two campaigns named "baseline" and "tonight", numbered by rank."""
    ranks: Counter[tuple[BaselineCell, str]] = Counter()
    for run in runs:
        record, spec = run.record, run.record.spec
        cell = cell_of(spec, run.model_name)
        if cells is not None and cell not in cells:
            continue
        if spec.campaign_id == tonight_id:
            side: Literal["tonight", "baseline"] = "tonight"
            tallies[cell].add(record, slot_of(spec) % REPEATS_MAX)
        elif baselines.get(cell) == spec.campaign_id:
            side = "baseline"
        else:
            continue
        if _worth(record)[0] < _VALID:
            continue
        name = run.model_name + (CANARY if CANARY in cell.cell else "")
        rank, ranks[cell, side] = ranks[cell, side], ranks[cell, side] + 1
        as_side = replace(spec, campaign_id=side, repeat=rank)
        yield StoredRun(replace(record, spec=as_side), name)


def _worth(record: MeasurementRecord) -> tuple[int, str]:
    if record.error is not None:
        return _FAILED, f"{record.error.kind}: {record.error.fact}"[:120]
    if record.verdict is not None and record.verdict.valid:
        return _VALID, ""
    reasons = record.verdict.reasons if record.verdict else ()
    return _INVALID, ", ".join(reason.value for reason in reasons)


def _cell_of_row(row: Row) -> BaselineCell:
    assert row.board_id is not None, "a board's row names it"
    return BaselineCell(row.board_id, " ".join(f"{k}={v}" for k, v in row.cell if v != NOTHING))


def judge(
    expected: Mapping[BaselineCell, int],
    baselines: Mapping[BaselineCell, str],
    dead: Container[str],
    seen: Seen,
    rules: Rules,
) -> tuple[CellOutcome, ...]:
    """Every cell that tonight or a baseline should have; regressions still to be confirmed."""
    return tuple(
        _judge(cell, expected.get(cell), baselines.get(cell), cell.board_id in dead, seen, rules)
        for cell in sorted({*expected, *baselines}, key=lambda c: (c.board_id, c.cell))
    )


def _judge(
    cell: BaselineCell,
    expected: int | None,
    baseline: str | None,
    is_dead: bool,
    seen: Seen,
    rules: Rules,
) -> CellOutcome:
    tally, row = seen.tally(cell), seen.rows.get(cell)
    outcome = CellOutcome(
        cell.board_id,
        cell.cell,
        "unclear",
        runs=expected or 0,
        measured=tally.measured,
        valid=tally.valid,
        baseline_night=baseline,
        row=row,
        simulated=tally.simulated,
        p50_ns=tally.p50_ns(),
    )
    # Canaries are few by design: what they cannot say is no news.
    needed = 0 if outcome.is_canary() else rules.pairs_needed
    if is_dead:
        return replace(outcome, state="dead", fact="its board is dead")
    if expected is None:
        return replace(
            outcome, state="missing", fact="has a baseline, and is not in the campaign any more"
        )
    if (lacking := too_few(tally, expected, needed)) is not None:
        return replace(outcome, state=lacking[0], fact=lacking[1])
    if baseline is None:
        return replace(outcome, state="new", fact="becomes its own baseline")
    state = _state_of(cell, row, rules)
    slightly = state == "same" and row is not None and row.comparison.verdict == "slower"
    return replace(outcome, state=state, fact=_small(cell, rules) if slightly else "")


def _small(cell: BaselineCell, rules: Rules) -> str:
    if rules.least(cell) > rules.min_change:
        return f"slower, as nights differ by themselves: up to {rules.least(cell):.1%}"
    return "slower, by less than matters"


def too_few(
    tally: Tally, expected: int, needed: int
) -> tuple[Literal["missing", "invalid"], str] | None:
    """Why nothing can be said of a cell: results are missing, or there are some not to be believed.

    None where enough count.
    """
    if tally.measured < needed:
        absent = expected - len(tally.best)
        why = [tally.reasons(_FAILED), f"{absent} × no record" if absent > 0 else ""]
        said = "; ".join(filter(None, why))
        return "missing", f"{tally.measured} of {expected} runs, {needed} are needed ({said})"
    if tally.valid < needed:
        said = tally.reasons(_INVALID)
        return "invalid", f"{tally.valid} of {expected} runs count, {needed} are needed ({said})"
    return None


def _state_of(
    cell: BaselineCell, row: Row | None, rules: Rules
) -> Literal["same", "unclear", "faster", "regression"]:
    if row is None:
        return "unclear"
    verdict, change = row.comparison.verdict, row.comparison.change
    if verdict == "slower":
        return "regression" if change >= rules.least(cell) else "same"
    return verdict


def confirm(
    candidates: Sequence[CellOutcome],
    again: Seen,
    runs_again: Mapping[BaselineCell, int],
    rules: Rules,
) -> tuple[CellOutcome, ...]:
    """The candidates, judged by what was measured once more. again: of these cells alone."""
    return tuple(_confirm(candidate, again, runs_again, rules) for candidate in candidates)


def _confirm(
    candidate: CellOutcome, again: Seen, runs_again: Mapping[BaselineCell, int], rules: Rules
) -> CellOutcome:
    cell = BaselineCell(candidate.board_id, candidate.cell)
    tally, row = again.tally(cell), again.rows.get(cell)
    needed = 0 if candidate.is_canary() else rules.pairs_needed
    if (lacking := too_few(tally, runs_again.get(cell, 0), needed)) is not None:
        return replace(candidate, state=lacking[0], fact=f"to confirm: {lacking[1]}")
    if _state_of(cell, row, rules) == "regression":
        return replace(candidate, again=row)
    return replace(
        candidate, state="unconfirmed", again=row, fact="slower at first, not when measured again"
    )


def blame(cells: Sequence[CellOutcome]) -> tuple[CellOutcome, ...]:
    """The same, each regression with its suspect: the board, if its canary changed half as much."""
    canaries: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        if cell.is_canary() and (change := cell.change()) is not None:
            canaries[cell.board_id].append(change)
    return tuple(_blame(cell, canaries.get(cell.board_id, [])) for cell in cells)


def _blame(cell: CellOutcome, canaries: Sequence[float]) -> CellOutcome:
    change = cell.change()
    if cell.state != "regression" or change is None:
        return cell
    if cell.is_canary():
        return replace(cell, suspect="board")
    if not canaries:
        return cell
    return replace(cell, suspect="board" if max(canaries) >= change / 2 else "model")
