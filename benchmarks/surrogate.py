"""Latency predicted from at most 200 measured shapes: fleetcut beside simpler models.

    python -m benchmarks.surrogate [--quick] [--work DIR] [--data DIR] --json OUT

Input: nothing; virtual boards are started, and with --data OneProxy's public latencies are judged
too. Output: errors and intervals of every contender on shapes that none of them saw. Measurements
stay in --work: a killed run goes on there, a finished one is only fitted again.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import surrogate_boards, surrogate_oneproxy
from benchmarks.result import Bar, finish, parser
from benchmarks.surrogate_boards import Effort
from benchmarks.surrogate_contenders import COVERAGE, FLEETCUT, PEERS, SEED, judge, nested
from compiler.errors import CompilerError
from harness.errors import HarnessError

DATA = Path("../shared/data/oneproxy")

FULL = Effort(("digits_mobilenet", "digits_resnet"), (25, 50, 100, 200), held_out=100, repeats=2)
QUICK = Effort(("digits_resnet",), (12, 24), held_out=12, repeats=1)

CELLS = (50, 100, 200)
ALL_BUT_FEW = 1600
"""Of OneProxy's 1,999 cells: what error is left however much is measured."""
DRAWS = 3
"""Of the cells to learn from."""

MOST_MAPE = 0.05
LEAST_WITHIN = 0.95

Row = dict[str, Any]


def board_rows(folder: Path, effort: Effort) -> list[Row]:
    """Learning curves on every virtual board and network."""
    rows: list[Row] = []
    for one in surrogate_boards.measured(folder, effort):
        where = {"fleet": surrogate_boards.FLEET, "board": one.board, "network": one.network}
        for chosen in nested(len(one.train), effort.sizes, surrogate_boards.CORNERS):
            for row in judge(one.train.take(chosen), one.judged):
                rows.append(where | row | {"repeat_difference": one.repeat_difference})
    return rows


def device_rows(folder: Path, quick: bool) -> list[Row]:
    """Learning curves on every device of OneProxy, the mean over draws of the cells."""
    cells, ms_by_device = surrogate_oneproxy.read(folder)
    devices = list(ms_by_device)[:: 5 if quick else 1]
    rows: list[Row] = []
    for device in devices:
        shapes = surrogate_oneproxy.shapes(cells, ms_by_device[device])
        where = {"fleet": surrogate_oneproxy.FLEET, "board": device, "network": "nasbench201"}
        draws = 1 if quick else DRAWS
        for n_train in CELLS[-1:] if quick else (*CELLS, min(ALL_BUT_FEW, len(shapes) * 4 // 5)):
            drawn: list[list[Row]] = []
            for draw in range(draws if n_train in CELLS else 1):
                order = np.random.default_rng([SEED, draw]).permutation(len(shapes))
                train, judged = shapes.take(order[:n_train]), shapes.take(order[n_train:])
                drawn.append(judge(train, judged))
            for of_contender in zip(*drawn, strict=True):
                rows.append(where | mean_row(of_contender) | {"repeat_difference": None})
        print(f"{device}: {len(rows)} rows", file=sys.stderr, flush=True)
    return rows


def mean_row(rows: Sequence[Row]) -> Row:
    """One row for several draws: means, the worst error, every family chosen."""
    mean = {
        key: float(np.mean([row[key] for row in rows])) if isinstance(value, float) else value
        for key, value in rows[0].items()
    }
    families = dict.fromkeys(row["family"] for row in rows)
    mean["worst_ape"] = max(row["worst_ape"] for row in rows)
    mean["family"] = None if None in families else ", ".join(families)
    return mean


def bars(what: str, rows: Sequence[Row], n_train: int) -> list[Bar]:
    """The promises at n_train shapes. Each over all boards, which are those of ``rows``.

    The judged shapes are a sample, so coverage may fall short by two standard errors.
    """
    ours = [row for row in rows if row["contender"] == FLEETCUT and row["n_train"] <= n_train]
    largest = {_where(row): row for row in ours}  # ascending: the last is the largest
    last = list(largest.values())
    slowest, loosest = _worst(last, "mape"), _worst(last, "within10", min)
    least = _worst(last, "coverage", min)
    judged = [row["n_held_out"] for row in last]
    covered = float(np.average([row["coverage"] for row in last], weights=judged))
    error = math.sqrt(COVERAGE * (1 - COVERAGE) / sum(judged))
    head = f"{what}, {n_train} shapes or fewer:"
    return [
        Bar(f"{head} MAPE, worst ({_where(slowest)})", slowest["mape"], "<=", MOST_MAPE),
        Bar(
            f"{head} share within ±10 %, worst ({_where(loosest)})",
            loosest["within10"], ">=", LEAST_WITHIN,
        ),
        Bar(
            f"{head} coverage of 90 % intervals, {sum(judged)} judged together, less two standard "
            f"errors (least: {least['coverage']:.3f}, {_where(least)})",
            covered, ">=", COVERAGE - 2 * error,
        ),
    ]  # fmt: skip


def median_bars(what: str, rows: Sequence[Row], n_train: int) -> list[Bar]:
    """The same of the median board, where single ones are noisier than the bar allows."""
    last = [row for row in rows if row["contender"] == FLEETCUT and row["n_train"] == n_train]
    head = f"{what}, {n_train} shapes:"
    mape, within = (float(np.median([row[key] for row in last])) for key in ("mape", "within10"))
    return [
        Bar(f"{head} MAPE, median of {len(last)} boards", mape, "<=", MOST_MAPE),
        Bar(f"{head} share within ±10 %, median board", within, ">=", LEAST_WITHIN),
    ]


def peer_bars(what: str, rows: Sequence[Row], n_train: int) -> list[Bar]:
    """The error of fleetcut over each peer's from the same shapes, where it is largest."""
    mape = {
        (_where(row), row["contender"]): row["mape"] for row in rows if row["n_train"] <= n_train
    }
    found = []
    for peer in PEERS:
        ratios = {w: mape[w, FLEETCUT] / mape[w, peer] for w, name in mape if name == peer}
        worst = max(ratios, key=lambda where: ratios[where])
        found.append(Bar(f"{what}: MAPE ÷ that of {peer}, worst ({worst})", ratios[worst], "<=", 1))
    return found


def _where(row: Row) -> str:
    return f"{row['network']} on {row['board']}"


def _worst(rows: Sequence[Row], key: str, worst: Callable[..., Row] = max) -> Row:
    return worst(rows, key=lambda row: row[key])


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--work", type=Path, metavar="DIR", help="keep measurements here")
    options.add_argument("--data", type=Path, metavar="DIR", default=DATA, help="OneProxy's")
    asked = options.parse_args()
    effort = QUICK if asked.quick else FULL
    most = effort.sizes[-1]
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-") as temporary:
        try:
            rows = board_rows(asked.work or Path(temporary), effort)
        except (CompilerError, HarnessError) as error:
            print(f"benchmarks.surrogate: {error}", file=sys.stderr)
            return 2
    found = bars("virtual boards", rows, most) + peer_bars("virtual boards", rows, most)
    if (asked.data / surrogate_oneproxy.FILE).exists():
        public = device_rows(asked.data, asked.quick)
        found += bars("OneProxy", public, CELLS[-1]) + median_bars("OneProxy", public, CELLS[-1])
        rows += public
    else:
        print(f"skipped: OneProxy's latencies, no {asked.data}", file=sys.stderr)
    return finish("surrogate", rows, found, asked.json)


if __name__ == "__main__":
    sys.exit(main())
