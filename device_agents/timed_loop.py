"""The timed loop: inferences in short batches until there are enough, in the state asked for.

Input: a Runner, a StoppingRule, what the warm-up took, and a Keeper of the board's state. Output:
Timed: every latency, and when the loop stood still because the board had to be brought back.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Callable, List, Optional, Protocol, Sequence, Tuple

from device_agents.contract import StoppingRule
from device_agents.errors import RunFailedError
from device_agents.runtimes import Runner
from device_agents.stopping import is_enough

BATCH_NS = 50_000_000
"""About one batch of timed inferences; the stopping rule is looked at between two."""

REWARM = 3
"""Inferences after a pause: the first ones are slower, by up to 20 times for a small model."""

MOST_PAUSES = 20
"""A load too light to hold a hot band would be heated for ever."""

Pause = Tuple[int, int]
"""From and to, on time.monotonic_ns()."""


class Keeper(Protocol):
    """What brings a board's state back: heat.Heat."""

    def keep(self) -> bool:
        """Whether the state had left its band, or was about to, and was brought back."""


@dataclass(frozen=True)
class Timed:
    """latency_ns: in order. rewarmed: inferences after pauses, uncounted. timed_ns: less pauses."""

    latency_ns: Tuple[int, ...]
    pauses: Tuple[Pause, ...]
    rewarmed: int
    timed_ns: int


def time_until_enough(
    runner: Runner,
    rule: StoppingRule,
    warmup_ns: Sequence[int],
    keeper: Optional[Keeper] = None,
    clock_s: Callable[[], float] = time.monotonic,
) -> Timed:
    """Every latency of the loop, in batches short enough to end it in time.

    Raises RunFailedError where the keeper does, or where it is needed more than MOST_PAUSES times.
    """
    loop = _Loop(runner, rule, keeper)
    batch = max(1, int(BATCH_NS // max(1, median(warmup_ns))))
    begin_s = clock_s()
    look_at = rule.samples_min
    while len(loop.latency_ns) < rule.samples_max:
        taken = len(loop.latency_ns)
        bound = rule.samples_min if taken < rule.samples_min else rule.samples_max
        loop.time(min(batch, bound - taken))
        taken = len(loop.latency_ns)
        if taken < rule.samples_min:
            continue
        # Time that the loop stood still is not the run's.
        spent_s = clock_s() - begin_s - loop.paused_ns / 1e9
        if spent_s >= rule.max_seconds:
            break
        if taken >= look_at and spent_s >= rule.min_seconds:
            if is_enough(loop.latency_ns, rule.ci_fraction):
                break
            # Each look costs time in proportion to the samples: a tenth more before the next.
            look_at = taken * 11 // 10
    return loop.timed()


class _Loop:
    def __init__(self, runner: Runner, rule: StoppingRule, keeper: Optional[Keeper]) -> None:
        self._runner = runner
        self._keeper = keeper
        self._begin_ns = time.monotonic_ns()
        self.latency_ns: List[int] = []
        self._pauses: List[Pause] = []
        self._rewarmed = 0

    @property
    def paused_ns(self) -> int:
        return sum(end - begin for begin, end in self._pauses)

    def time(self, count: int) -> None:
        self._bring_back()
        self.latency_ns += self._runner.time_batch(count)

    def timed(self) -> Timed:
        whole_ns = time.monotonic_ns() - self._begin_ns
        return Timed(
            tuple(self.latency_ns), tuple(self._pauses), self._rewarmed, whole_ns - self.paused_ns
        )

    def _bring_back(self) -> None:
        begin_ns = time.monotonic_ns()
        if self._keeper is None or not self._keeper.keep():
            return
        self._runner.time_batch(REWARM)
        self._rewarmed += REWARM
        self._pauses.append((begin_ns, time.monotonic_ns()))
        if len(self._pauses) > MOST_PAUSES:
            raise RunFailedError(
                "condition",
                f"the band was left {MOST_PAUSES} times within {len(self.latency_ns)} inferences",
                "ask for a wider band, or one that this load holds by itself",
            )
