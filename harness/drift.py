"""How a board drifted while it measured, as its canary tells: one model timed again and again.

Input: the canary's runs on one board. Output: Drift: what to take off a run's log latency.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.comparison import TOLERANCE

FEWEST = 4
"""Canaries of one cell; fewer do not tell their noise from the board's drift."""

_MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class CanaryRun:
    """cell: equal for runs of equal content. position: in its board's order."""

    cell: str
    position: int
    log_p50: float


@dataclass(frozen=True)
class Drift:
    """A board's drift. moved: the canary's largest running excursion from its middle as a fraction;
    None where it stayed within its noise or one per cent, and then nothing is corrected.
    n: canaries that told. positions, logs: the running median to take off, by position.
    """

    n: int
    moved: float | None
    positions: tuple[int, ...]
    logs: tuple[float, ...]

    def at(self, position: int) -> float:
        """How much longer everything took at this position, as ln of a ratio."""
        if self.moved is None:
            return 0.0
        return float(np.interp(position, self.positions, self.logs))


def drift_of(canaries: Sequence[CanaryRun]) -> Drift | None:
    """The drift of one board; None where its canaries are too few to tell.

    Canaries of different cells (a canary runs under the condition that is due) are each compared
    with their own kind only.
    """
    by_cell: dict[str, list[CanaryRun]] = defaultdict(list)
    for canary in canaries:
        by_cell[canary.cell].append(canary)
    runs: list[tuple[int, float]] = []
    for of in by_cell.values():
        if len(of) >= FEWEST:
            middle = float(np.median([canary.log_p50 for canary in of]))
            runs += [(canary.position, canary.log_p50 - middle) for canary in of]
    if not runs:
        return None
    runs.sort()
    logs = np.array([log for _, log in runs])
    # Of three in a row the middle one: a single disturbed canary is no drift, a step stays a step.
    running = np.array([float(np.median(logs[max(0, i - 1) : i + 2])) for i in range(len(logs))])
    running[0], running[-1] = running[1], running[-2]
    steps = np.abs(np.diff(logs))
    noise = _MAD_TO_SIGMA * float(np.median(steps)) / math.sqrt(2)
    largest = float(running[np.argmax(np.abs(running))])
    beyond = abs(largest) > max(math.log1p(TOLERANCE), 3 * noise)
    return Drift(
        n=len(runs),
        moved=math.expm1(largest) if beyond else None,
        positions=tuple(position for position, _ in runs),
        logs=tuple(float(log) for log in running),
    )
