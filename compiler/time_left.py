"""How long a piece of work still takes, from how long its first part took.

Input: units done, as they are done. Output: seconds left, and the words for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

SECONDS_LEFT = "seconds_left"
"""Name of the estimate among an epoch's figures."""


class TimeLeft:
    """Units alike are assumed to take alike, by a monotonic clock.

    total: units in all; done: of them before this process began, which tell nothing of its pace.
    """

    def __init__(
        self, total: int, done: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total
        self._done = done
        self._clock = clock
        self._started_s = clock()

    def after(self, done: int) -> float:
        """Seconds left once ``done`` units are done; more than were done at the start."""
        pace_s = (self._clock() - self._started_s) / (done - self._done)
        return pace_s * (self._total - done)


def show(figures: Mapping[str, float]) -> str:
    """Figures of an epoch in one short line: "val_accuracy 0.91, 4 min left"."""
    parts = [f"{name} {value:.4g}" for name, value in figures.items() if name != SECONDS_LEFT]
    left_s = figures.get(SECONDS_LEFT, 0.0)
    return ", ".join(parts + ([words(left_s)] if left_s else []))


def words(left_s: float) -> str:
    """Seconds up to two minutes, minutes up to two hours, then hours: "4 min left"."""
    if left_s < 120:
        return f"{left_s:.0f} s left"
    if left_s < 2 * 3600:
        return f"{left_s / 60:.0f} min left"
    return f"{left_s / 3600:.1f} h left"
