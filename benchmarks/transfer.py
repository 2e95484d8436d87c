"""Latency on a board that was hardly measured, from boards that were: each way of transfer alone,
and the one that fleetcut chooses.

    python -m benchmarks.transfer [--quick] [--data DIR] [--work DIR] --json OUT

Input: OneProxy's public latencies (--data), and virtual boards that are measured over SSH. Output:
for each board, left out and then measured at 10, 20, 50 and 100 shapes, the rank correlation and
error of every method over all other shapes, and how often intervals hold. Measurements stay in
--work: a killed run goes on there, a finished one is only judged again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks import surrogate_oneproxy
from benchmarks.result import Bar, finish, parser, write
from benchmarks.transfer_data import FULL, QUICK, Fleet, boards, oneproxy
from compiler.errors import CompilerError
from compiler.surrogates import mape
from compiler.transfer.chosen import FAVOURITE, RAW, ChosenTransfer
from compiler.transfer.estimators import METHODS
from compiler.transfer.pool import Pool
from compiler.transfer.probes import MOST_PROBES, choose_probes
from compiler.transfer.rank import rank_correlation
from compiler.transfer.reuse import VALID_SRCC
from harness.errors import HarnessError

DATA = Path("../shared/data/oneproxy")
SIZES = (10, 20, 50, 100)
SEEDS = 8
OFFERED = 1000
"""Shapes that probes are chosen from in each draw, drawn by its seed."""
LEAST_JUDGED = 20
FRESH = 20261122
"""Of the draws judged here: methods and rules were compared on others, of the same boards."""

RANDOM, ACTIVE = "random", "chosen for information"
CHOSEN = "chosen"

WITHIN_BEST = 0.02
LEAST_SHARE = 0.9
MOST_BELOW_RAW = 0.01
GOAL_SRCC = 0.95
COVERAGE = 0.9
SRCC_COVERAGE = 0.95

FloatArray = NDArray[np.float64]
Row = dict[str, Any]


def fleet_rows(fleet: Fleet, sizes: Sequence[int], seeds: int) -> list[Row]:
    """One row a target, size, kind of probes and method: means over the seeds."""
    found: list[Row] = []
    for board in fleet.boards:
        pool, ms = fleet.target(board)
        for n in (size for size in sizes if size + LEAST_JUDGED <= len(pool)):
            for probes in (RANDOM, ACTIVE) if n <= MOST_PROBES else (RANDOM,):
                drawn = [_draw(pool, ms, n, probes, seed) for seed in range(seeds)]
                where = {
                    "fleet": fleet.fleet, "network": fleet.network, "board": board, "n": n,
                    "probes": probes,
                }  # fmt: skip
                found += [where | _mean(of_method) for of_method in zip(*drawn, strict=True)]
        print(f"{fleet.network} on {board}: {len(found)} rows", file=sys.stderr, flush=True)
    return found


def _draw(pool: Pool, ms: FloatArray, n: int, probes: str, seed: int) -> list[Row]:
    """Measure n shapes; judge each method on all the others."""
    order = np.random.default_rng([FRESH, seed, n]).permutation(len(pool))
    rows = order[:n]
    if probes == ACTIVE:
        offered = order[:OFFERED]
        rows = offered[choose_probes(pool.take(offered), n)]
    judged = np.setdiff1d(np.arange(len(pool)), rows)
    chosen = ChosenTransfer(seed=seed).fit(pool, rows, ms[rows])
    median, lower, upper = chosen.predict(judged)
    ours = {
        "coverage": float(((lower <= ms[judged]) & (ms[judged] <= upper)).mean()),
        "interval_width": float(np.median((upper - lower) / median)),
        "mixture_weight": chosen.weights_.get(FAVOURITE, 0.0),
    }
    nothing: Row = dict.fromkeys(ours)
    rows_of: list[Row] = [{"method": CHOSEN} | _errors(ms[judged], median) | ours]
    for name, make in METHODS.items():
        predicted = make().fit(pool, rows, ms[rows]).predict(judged)
        rows_of.append({"method": name} | _errors(ms[judged], predicted) | nothing)
    return rows_of


def _errors(measured: FloatArray, predicted: FloatArray) -> Row:
    rho = float(spearmanr(measured, predicted).statistic) if np.ptp(predicted) else 0.0
    return {"srcc": rho, "mape": mape(measured, predicted)}


def _mean(rows: Sequence[Row]) -> Row:
    return {
        key: float(np.mean([row[key] for row in rows])) if isinstance(value, float) else value
        for key, value in rows[0].items()
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """For each fleet, size and method the median and the worst over targets."""
    found: dict[tuple[str, int, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["fleet"], row["n"], row["probes"], row["method"]), []).append(row)
    return [
        {
            "fleet": fleet,
            "n": n,
            "probes": probes,
            "method": method,
            "targets": len(of),
            "median_srcc": float(np.median([row["srcc"] for row in of])),
            "worst_srcc": min(row["srcc"] for row in of),
            "median_mape": float(np.median([row["mape"] for row in of])),
            "worst_mape": max(row["mape"] for row in of),
        }
        for (fleet, n, probes, method), of in found.items()
    ]


def srcc_rows(fleet: Fleet, sizes: Sequence[int], seeds: int) -> list[Row]:
    """For each size, over every two boards: how often SRCC's interval from so many shapes holds the
    SRCC over all; and how often a pair below 0.9 is taken for valid.
    """
    pairs = list(combinations(range(len(fleet.boards)), 2))
    true = {(i, j): float(spearmanr(fleet.ms[:, i], fleet.ms[:, j]).statistic) for i, j in pairs}
    found: list[Row] = []
    for n in (size for size in sizes if size + LEAST_JUDGED <= len(fleet.ms)):
        held, width, invalid = [], [], []
        for (i, j), rho in true.items():
            for seed in range(seeds):
                drawn = np.random.default_rng([FRESH, seed, n, i, j]).permutation(len(fleet.ms))[:n]
                said = rank_correlation(fleet.ms[drawn, i], fleet.ms[drawn, j], SRCC_COVERAGE)
                held.append(said.lower <= rho <= said.upper)
                width.append(said.upper - said.lower)
                if rho < VALID_SRCC:
                    invalid.append(said.lower >= VALID_SRCC)
        found.append(
            {
                "fleet": fleet.fleet, "network": fleet.network, "n": n, "pairs": len(pairs),
                "draws": len(held), "srcc_coverage": float(np.mean(held)),
                "median_width": float(np.median(width)),
                "invalid_taken_for_valid": float(np.mean(invalid)) if invalid else None,
            }
        )  # fmt: skip
    return found


def bars(what: str, rows: Sequence[Row], of_srcc: Sequence[Row]) -> list[Bar]:
    """The promises for one fleet's rows."""
    found: list[Bar] = []
    for n in sorted({row["n"] for row in rows if row["n"] >= 20}):
        by_target: dict[str, dict[str, float]] = {}
        for row in rows:
            if row["n"] == n and row["probes"] == RANDOM:
                target = f"{row['network']} on {row['board']}"
                by_target.setdefault(target, {})[row["method"]] = row["srcc"]
        near = [s[CHOSEN] >= max(s.values()) - WITHIN_BEST for s in by_target.values()]
        below = {target: s[RAW] - s[CHOSEN] for target, s in by_target.items()}
        worst = max(below, key=lambda target: below[target])
        found += [
            Bar(
                f"{what}, {n} samples: share of {len(near)} targets on which the chosen method is "
                f"within {WITHIN_BEST} SRCC of the best",
                float(np.mean(near)), ">=", LEAST_SHARE,
            ),
            Bar(
                f"{what}, {n} samples: SRCC of the raw proxy less the chosen method's, worst "
                f"({worst})",
                below[worst], "<=", MOST_BELOW_RAW,
            ),
        ]  # fmt: skip
    ours = [row for row in rows if row["method"] == CHOSEN]
    few = [row["srcc"] for row in ours if row["n"] == MOST_PROBES and row["probes"] == ACTIVE]
    found.append(
        Bar(
            f"{what}, {MOST_PROBES} samples chosen for information: SRCC of the chosen method, "
            f"median of {len(few)} targets (goal)",
            float(np.median(few)), ">=", GOAL_SRCC,
        )
    )  # fmt: skip
    # Shapes of one target are covered or missed together: targets and sizes are what is counted.
    covered = np.array([row["coverage"] for row in ours])
    error = float(covered.std(ddof=1) / np.sqrt(len(covered)))
    draws = sum(row["draws"] for row in of_srcc)
    held = sum(row["srcc_coverage"] * row["draws"] for row in of_srcc) / draws
    apart = float(np.sqrt(SRCC_COVERAGE * (1 - SRCC_COVERAGE) / draws))
    found += [
        Bar(
            f"{what}: coverage of {COVERAGE:.0%} intervals, mean over targets and sizes, less two "
            "standard errors",
            float(covered.mean()), ">=", COVERAGE - 2 * error,
        ),
        Bar(
            f"{what}: coverage of SRCC's {SRCC_COVERAGE:.0%} intervals, {draws} draws, less two "
            "standard errors",
            held, ">=", SRCC_COVERAGE - 2 * apart,
        ),
    ]  # fmt: skip
    return found


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--data", type=Path, metavar="DIR", default=DATA, help="OneProxy's")
    options.add_argument("--work", type=Path, metavar="DIR", help="keep measurements here")
    options.add_argument("--no-boards", action="store_true", help="public latencies alone")
    asked = options.parse_args()
    sizes, seeds = (SIZES[:2], 3) if asked.quick else (SIZES, SEEDS)
    rows: list[Row] = []
    of_srcc: list[Row] = []
    found: list[Bar] = []
    with tempfile.TemporaryDirectory(prefix="fleetcut-bench-") as temporary:
        try:
            for what, fleets in _fleets(asked, asked.work or Path(temporary)):
                judged = [row for fleet in fleets for row in fleet_rows(fleet, sizes, seeds)]
                held = [row for fleet in fleets for row in srcc_rows(fleet, sizes, seeds)]
                rows, of_srcc = rows + judged, of_srcc + held
                found += bars(what, judged, held)
                write("transfer", summary(rows) + of_srcc + rows, found, asked.json)
        except (CompilerError, HarnessError) as error:
            print(f"benchmarks.transfer: {error}", file=sys.stderr)
            return 2
    if not rows:
        print(f"benchmarks.transfer: {asked.data} holds no data. Next: --data", file=sys.stderr)
        return 2
    return finish("transfer", summary(rows) + of_srcc + rows, found, asked.json)


def _fleets(asked: argparse.Namespace, work: Path) -> Iterator[tuple[str, list[Fleet]]]:
    """(what, fleets), public latencies first: they are judged while nothing is measured."""
    if (asked.data / surrogate_oneproxy.FILE).exists():
        yield "OneProxy", [oneproxy(asked.data)]
    else:
        print(f"skipped: OneProxy's latencies, no {asked.data}", file=sys.stderr)
    if not asked.no_boards:
        yield "virtual boards", boards(work, QUICK if asked.quick else FULL)


if __name__ == "__main__":
    sys.exit(main())
