"""Whether fleetcut's numbers can be trusted: its p50s, its telemetry, comparisons and verdicts.

    python -m benchmarks.measurement [--quick] [--work DIR] --json OUT

Input: nothing; virtual boards are started. Output, from one run on one machine: p50 beside
pyperf's and a plain loop's, telemetry's cost, false alarms and planted slow-downs by fleetcut's
rule and its peers', verdicts beside what physics did. Raw samples stay in --work, compressed: a
killed run goes on there, and a finished one is only judged again.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import (
    measurement_comparisons,
    measurement_counted,
    measurement_p50,
    measurement_telemetry,
    measurement_throttling,
)
from benchmarks.measurement_boards import SEED, Boards, model_file
from benchmarks.measurement_comparisons import FULL_KHZ, SLOW_KHZ
from benchmarks.measurement_p50 import VALUES, P50Part, in_turns, on_one_cpu
from benchmarks.measurement_throttling import Judged, next_kind, plan
from benchmarks.result import Bar, finish, parser, write
from harness.errors import HarnessError
from harness.virtual.spec import RackSpec, VirtualBoardSpec

NAME = "measurement"
BOARD = "nominal"
TWO_CLOCKS = "two-clocks"
MODEL = "digits_resnet"
"""Of every part but the first: 1 ms, so that many runs fit into the time."""

RACK = RackSpec(
    boards=(
        VirtualBoardSpec(BOARD, base_stretch=1.0),
        VirtualBoardSpec(TWO_CLOCKS, base_stretch=1.02, freqs_khz=(SLOW_KHZ, FULL_KHZ)),
    ),
    seed=SEED,
)
"""At the host's own speed; and one that is always a little slower, so that what slows it down costs
the same at both of its clocks.
"""

Row = dict[str, Any]
Part = tuple[list[Row], list[Bar]]


@dataclass(frozen=True)
class Effort:
    """How much of each part.

    comparisons: of A/A, and as many of A/B. throttled: runs that physics is to throttle while they
    are timed. clean: runs that it is to leave alone. counted_*: the same on the board whose time
    is counted.
    """

    p50_rounds: int
    p50_rounds_most: int
    telemetry_pairs: int
    comparisons: int
    pairs: int
    throttled: int
    clean: int
    counted_throttled: int
    counted_clean: int


FULL = Effort(
    p50_rounds=8, p50_rounds_most=16, telemetry_pairs=200, comparisons=40, pairs=25,
    throttled=36, clean=60, counted_throttled=16, counted_clean=60,
)  # fmt: skip
QUICK = Effort(
    p50_rounds=1, p50_rounds_most=1, telemetry_pairs=4, comparisons=1, pairs=10,
    throttled=2, clean=2, counted_throttled=1, counted_clean=2,
)  # fmt: skip


def p50(folder: Path, effort: Effort) -> Part:
    with on_one_cpu(), in_turns(), Boards(folder / "nominal", RACK) as boards:
        models = tuple(model_file(folder / "models", name) for name in VALUES)
        part = P50Part(boards, BOARD, models)
        rounds = []
        for number in range(effort.p50_rounds_most):
            rounds.append(part.round(number))
            _say("p50", number + 1, effort.p50_rounds_most)
            if number + 1 >= effort.p50_rounds and measurement_p50.settled(rounds):
                break
    rows = measurement_p50.p50_rows(rounds)
    return rows, measurement_p50.p50_bars(rows)


def telemetry(folder: Path, effort: Effort) -> Part:
    with Boards(folder / "nominal", RACK) as boards:
        model = model_file(folder / "models", MODEL)
        cost = measurement_telemetry.measured(
            folder, boards.root(BOARD), model.path, effort.telemetry_pairs
        )
    row = measurement_telemetry.telemetry_row(cost)
    return [row], measurement_telemetry.telemetry_bars(row)


def comparisons(folder: Path, effort: Effort) -> Part:
    """A/A and A/B by turns, so that a machine that changes changes for both."""
    found = []
    with on_one_cpu(), Boards(folder / "nominal", RACK) as boards:
        model = model_file(folder / "models", MODEL)
        for number in range(effort.comparisons):
            for planted in (False, True):
                name = f"{'ab' if planted else 'aa'}-{number:02d}"
                found.append(
                    measurement_comparisons.measured(
                        boards, TWO_CLOCKS, model, name=name, planted=planted, pairs=effort.pairs
                    )
                )
            _say("comparisons", number + 1, effort.comparisons)
    rows = measurement_comparisons.comparison_rows(found)
    return rows, measurement_comparisons.comparison_bars(rows)


def throttling(folder: Path, effort: Effort) -> Part:
    runs: list[Judged] = []
    planned = plan(effort.throttled, effort.clean)
    with on_one_cpu(), Boards(folder / "hot", measurement_throttling.RACK) as boards:
        model = model_file(folder / "models", MODEL)
        while kind := next_kind(planned, runs, effort.throttled):
            runs.append(measurement_throttling.measured(boards, model, len(runs), kind))
            _say("throttling", len(runs), len(planned))
    rows = measurement_throttling.throttling_rows("throttling", runs)
    where = "virtual boards"
    return rows, [
        measurement_throttling.throttled_bar(where, runs),
        measurement_throttling.clean_bar(where, runs),
    ]


def counted(folder: Path, effort: Effort) -> Part:
    runs: list[Judged] = []
    planned = measurement_counted.sessions(effort.counted_clean, effort.counted_throttled)
    model = measurement_counted.small_model(folder / "models")
    with measurement_counted.CountedBoard(folder / "counted") as board:
        for number, (kind, count) in enumerate(planned):
            runs += measurement_counted.measured(board, model, number, kind, count)
            _say("counted", number + 1, len(planned))
    rows = measurement_throttling.throttling_rows("counted", runs)
    where = "arm64, counted time"
    return rows, [
        measurement_throttling.throttled_bar(where, runs),
        measurement_throttling.clean_bar(where, runs),
    ]


PARTS: dict[str, Callable[[Path, Effort], Part]] = {
    "p50": p50,
    "telemetry": telemetry,
    "comparisons": comparisons,
    "throttling": throttling,
    "counted": counted,
}


def parts(folder: Path, effort: Effort, names: list[str]) -> Iterator[Part]:
    """One part after the other. Raises HarnessError."""
    for name in names:
        yield PARTS[name](folder, effort)


def _say(part: str, done: int, total: int) -> None:
    print(f"{part}: {done} of {total}", file=sys.stderr, flush=True)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--work", type=Path, metavar="DIR", help="keep samples here")
    options.add_argument("--parts", default=",".join(PARTS), help="comma separated")
    asked = options.parse_args()
    names = asked.parts.split(",")
    if unknown := [name for name in names if name not in PARTS]:
        options.error(f"no part {unknown[0]!r}: choose some of {','.join(PARTS)}")
    rows: list[Row] = []
    bars: list[Bar] = []
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-") as temporary:
        folder = (asked.work or Path(temporary)) / ("quick" if asked.quick else "full")
        try:
            for more_rows, more_bars in parts(folder, QUICK if asked.quick else FULL, names):
                rows += more_rows
                bars += more_bars
                write(NAME, rows, bars, asked.json)
        except HarnessError as error:
            print(f"benchmarks.measurement: {error}", file=sys.stderr)
            return 2
    return finish(NAME, rows, bars, asked.json)


if __name__ == "__main__":
    sys.exit(main())
