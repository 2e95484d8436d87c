"""What came of a night: of each cell, of each board, and in one word with its exit status.

Input: what judging found. Output: a NightReport; JSON-ready documents.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from harness.nightly.night import CANARY, in_words
from harness.pairing import Row

CellState: TypeAlias = Literal[
    "same", "unclear", "faster", "new", "unconfirmed", "regression", "missing", "invalid", "dead"
]
Outcome: TypeAlias = Literal["calm", "regression", "dead_board", "missing", "invalid"]

EXIT_STATUS: dict[Outcome, int] = {
    "calm": 0,
    "regression": 10,
    "dead_board": 11,
    "missing": 12,
    "invalid": 13,
}
"""The worst comes first after calm; 1 to 3 stay what they are for every verb."""


@dataclass(frozen=True)
class CellOutcome:
    """What tonight says of one cell on one board.

    runs: expected. measured: gave latencies. valid: of these, count. fact: why there is no
    verdict, or what is to be known of it. p50_ns: tonight's, typical. row: tonight beside the
    baseline. again: the runs that had to confirm beside it. suspect: where the cause lies, as the
    board's canary tells.
    """

    board_id: str
    cell: str
    state: CellState
    runs: int
    measured: int
    valid: int
    fact: str = ""
    baseline_night: str | None = None
    p50_ns: int | None = None
    row: Row | None = None
    again: Row | None = None
    suspect: Literal["board", "model"] | None = None
    simulated: bool = False

    @property
    def name(self) -> str:
        return in_words(self.cell)

    @property
    def model(self) -> str:
        """The name of the model alone."""
        first = self.cell.partition(" runtime=")[0]
        return first.removeprefix("model=").removesuffix(CANARY)

    def is_canary(self) -> bool:
        return CANARY in self.cell

    def change(self) -> float | None:
        """Fraction by which the p50 is above the baseline's."""
        return None if self.row is None else self.row.comparison.change


@dataclass(frozen=True)
class BoardOutcome:
    """failure: why the board is dead to us, with what to do; None where it is not."""

    board_id: str
    failure: str | None
    simulated: bool


@dataclass(frozen=True)
class NightReport:
    """started_unix_s, ended_unix_s: by this machine's clock. alpha: of the changes called, at
    most this share is false. min_change: fraction below which a change is no regression.
    """

    campaign_id: str
    night_id: str
    started_unix_s: float
    ended_unix_s: float
    alpha: float
    min_change: float
    pairs_needed: int
    boards: tuple[BoardOutcome, ...]
    cells: tuple[CellOutcome, ...]

    def outcomes(self) -> tuple[Outcome, ...]:
        """All that happened, the worst first; calm alone where nothing did."""
        states = {cell.state for cell in self.cells}
        happened: dict[Outcome, bool] = {
            "regression": "regression" in states,
            "dead_board": any(board.failure for board in self.boards),
            "missing": "missing" in states,
            "invalid": "invalid" in states,
        }
        return tuple(outcome for outcome, so in happened.items() if so) or ("calm",)

    def exit_status(self) -> int:
        """Of the worst outcome."""
        return EXIT_STATUS[self.outcomes()[0]]

    def simulated(self) -> bool:
        return any(board.simulated for board in self.boards)

    def of(self, *states: CellState) -> tuple[CellOutcome, ...]:
        """The cells in these states, the largest change first."""
        found = [cell for cell in self.cells if cell.state in states]
        return tuple(sorted(found, key=lambda c: (-(c.change() or 0.0), c.board_id, c.cell)))

    def counts(self) -> dict[str, int]:
        """State → cells."""
        return dict(sorted(Counter(cell.state for cell in self.cells).items()))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "campaign_id": self.campaign_id,
            "night_id": self.night_id,
            "started_unix_s": self.started_unix_s,
            "ended_unix_s": self.ended_unix_s,
            "outcome": self.outcomes()[0],
            "outcomes": list(self.outcomes()),
            "exit_status": self.exit_status(),
            "simulated": self.simulated(),
            "alpha": self.alpha,
            "min_change": self.min_change,
            "pairs_needed": self.pairs_needed,
            "boards": [asdict(board) for board in self.boards],
            "cells": [_cell_document(cell) for cell in self.cells],
        }


def _cell_document(cell: CellOutcome) -> dict[str, Any]:
    plain = {name: getattr(cell, name) for name in CellOutcome.__dataclass_fields__}
    return plain | {
        "model": cell.model,
        "row": _row_document(cell.row),
        "again": _row_document(cell.again),
    }


def _row_document(row: Row | None) -> dict[str, Any] | None:
    if row is None:
        return None
    comparison = asdict(row.comparison)
    if not math.isfinite(row.comparison.change_high):
        comparison |= {"change_low": None, "change_high": None}  # JSON has no infinity
    return {"baseline_p50_ms": row.a_p50_ms, "tonight_p50_ms": row.b_p50_ms} | comparison
