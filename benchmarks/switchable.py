"""Latency over clocks, unpruned and switched; accuracy at each width beside networks of its own.

    python -m benchmarks.switchable [--quick] [--work DIR] --json OUT

Trains digits networks (built-in data), measures every sub-network at each clock of a virtual board
over SSH (real execution, SIMULATED clocks; OpenSSH in a namespace where that is possible, else the
embedded server). What was trained and measured stays in --work: a killed run goes on there.
About a quarter of an hour on one core; --quick: one network, fewer epochs and clocks.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.result import Bar, finish, parser
from benchmarks.switchable_boards import Clocks, latencies_ms
from benchmarks.switchable_training import Budget, Trained, trained
from compiler.errors import CompilerError
from compiler.switchable.policy import Policy, coefficient_of_variation, learn_policy
from harness.errors import HarnessError

FULL_KHZ = (600_000, 750_000, 900_000, 1_050_000, 1_200_000, 1_350_000, 1_500_000)
QUICK_KHZ = (600_000, 900_000, 1_200_000, 1_500_000)
COVERED = 0.10
"""Of the target: a clock at which no sub-network comes as near is none that the ratios cover."""

MOST_COV = 0.10
LEAST_GAIN = 5.0
MOST_LOST = 0.005
MOST_STORAGE = 1.1

Row = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    networks: tuple[str, ...]
    budget: Budget
    clocks: Clocks


FULL = Effort(("digits_resnet", "digits_mobilenet"), Budget(), Clocks(FULL_KHZ, repeats=4))
QUICK = Effort(
    ("digits_mobilenet",),
    Budget(ratios=(0.0, 0.25, 0.5, 0.75), epochs=2, pictures=512),
    Clocks(QUICK_KHZ, repeats=2),
)


def contest(folder: Path, name: str, effort: Effort) -> tuple[list[Row], list[Bar]]:
    """One network: its accuracies, its latencies, what the policy makes of them."""
    found = trained(folder / name, name, effort.budget)
    ms = latencies_ms(folder / name, name, found, effort.clocks)
    # Half of the repeats teach the policy, the others judge it.
    half = effort.clocks.repeats // 2
    seen, judged = np.median(ms[:half], axis=0), np.median(ms[half:], axis=0)
    policy = policy_of(seen, effort.clocks.khz)
    accuracy = accuracy_rows(name, found)
    over_clocks = clock_rows(name, policy, judged, effort.clocks.khz)
    return accuracy + over_clocks, bars_of(name, found, over_clocks)


def policy_of(ms: np.ndarray, khz: tuple[int, ...]) -> Policy:
    """ms: (n_clocks, n_sub_networks)."""
    return learn_policy(
        {
            position: dict(zip(map(float, khz), column.tolist(), strict=True))
            for position, column in enumerate(ms.T)
        }
    )


def accuracy_rows(name: str, found: Trained) -> list[Row]:
    return [
        {
            "network": name,
            "ratio": ratio,
            "mmacs": found.macs[position] / 1e6,
            "accuracy_switchable": found.accuracies[position],
            "accuracy_alone": found.accuracies_alone[position],
        }
        for position, ratio in enumerate(found.ratios)
    ]


def clock_rows(name: str, policy: Policy, ms: np.ndarray, khz: tuple[int, ...]) -> list[Row]:
    """From the highest clock down, as a board that heats up goes."""
    rows: list[Row] = []
    present: int | None = None
    for clock in sorted(khz, reverse=True):
        at = khz.index(clock)
        present = policy.choose(clock, present)
        rows.append(
            {
                "network": name,
                "clock_khz": clock,
                "covered": policy.covers(clock, COVERED),
                "unpruned_ms": float(ms[at, 0]),
                "chosen": present,
                "switched_ms": float(ms[at, present]),
                "predicted_ms": policy.laws[present].latency_ms(clock),
                "target_ms": policy.target_ms,
            }
        )
    return rows


def bars_of(name: str, found: Trained, rows: list[Row]) -> list[Bar]:
    covered = [row for row in rows if row["covered"]]
    switched = coefficient_of_variation([row["switched_ms"] for row in covered])
    unpruned = coefficient_of_variation([row["unpruned_ms"] for row in covered])
    lost = max(
        alone - together
        for alone, together in zip(found.accuracies_alone, found.accuracies, strict=True)
    )
    gain = unpruned / switched if len(covered) > 1 else 0.0
    what = f"{name}, {len(covered)} of {len(rows)} clocks covered"
    return [
        Bar(f"{name}: clocks that the ratios cover", len(covered), ">=", min(5, len(rows))),
        Bar(f"{what}: CoV of switched latency", switched, "<=", MOST_COV),
        Bar(f"{what}: CoV unpruned over switched", gain, ">=", LEAST_GAIN),
        Bar(f"{name}: accuracy lost to a network of its own, worst", lost, "<=", MOST_LOST),
        Bar(
            f"{name}: bytes of all sub-networks over those of the widest "
            f"({len(found.ratios)} apart: {found.bytes_apart / found.bytes_widest:.2f})",
            found.bytes_together / found.bytes_widest,
            "<=",
            MOST_STORAGE,
        ),
    ]


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--work", type=Path, help="kept, and gone on with")
    asked = options.parse_args()
    effort = QUICK if asked.quick else FULL
    rows: list[Row] = []
    bars: list[Bar] = []
    with tempfile.TemporaryDirectory(prefix="fleetcut-switchable-") as temporary:
        try:
            for name in effort.networks:
                more_rows, more_bars = contest(asked.work or Path(temporary), name, effort)
                rows += more_rows
                bars += more_bars
        except (HarnessError, CompilerError) as error:
            print(f"switchable: {error}", file=sys.stderr)
            return 2
    return finish("switchable", rows, bars, asked.json)


if __name__ == "__main__":
    sys.exit(main())
