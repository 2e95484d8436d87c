"""The timed loop: inferences in short batches until there are enough, in the state asked for.

Input: a Runner, a StoppingRule, what the warm-up took, a Keeper of the board's state and a Meter.
Output: Timed: every latency, and when the loop stood still because the board had to be brought
back. Whenever the loop has stood still, for that or for anything else, it warms up again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Callable, List, Optional, Protocol, Sequence, Tuple

from device_agents.contract import StoppingRule
from device_agents.errors import RunFailedError
from device_agents.runtimes import Runner
from device_agents.stopping import is_enough, is_steady, window_size

BATCH_NS = 50_000_000
"""About one batch of timed inferences; the stopping rule is looked at between two."""

IDLE_NS = 50_000_000
"""A loop that stood still for longer warms up again: a slow sensor, a long look at the samples."""

AFTER_READING = 3
"""Inferences after the board's files were read, which empties caches: the first one took up to 20
times the median of a small model."""

MOST_RETURNS = 20
"""A load too light to hold a hot band would be heated for ever."""

Pause = Tuple[int, int]
"""From and to, on time.monotonic_ns()."""


class Keeper(Protocol):
    """What brings a board's state back: heat.Heat."""

    def keep(self, deadline_s: Optional[float] = None) -> bool:
        """Whether the state had left its band, or was about to, and was brought back.

        deadline_s: on time.monotonic().
        """


class Counter(Protocol):
    """What counts while inferences are timed, and not in a pause: scheduling.Meter."""

    def start(self) -> None:
        """From here on."""

    def stop(self) -> None:
        """Up to here."""


@dataclass(frozen=True)
class Timed:
    """The loop. warmup_count: inferences in it that do not count. timed_ns: its length, less
    pauses. steady: whether each warm-up of its own ended so; None where one was too short to say.
    """

    latency_ns: Tuple[int, ...]
    pauses: Tuple[Pause, ...] = ()
    warmup_count: int = 0
    timed_ns: int = 0
    steady: Optional[bool] = True

    def in_pause(self, monotonic_ns: int) -> bool:
        return any(begin_ns <= monotonic_ns <= end_ns for begin_ns, end_ns in self.pauses)


def warm_up(
    runner: Runner, rule: StoppingRule, kept_back: int = 0
) -> Tuple[List[int], Optional[bool]]:
    """Latencies of the warm-up and whether it got steady; None where it was too short to say.

    kept_back: inferences that the caller runs later, and that count towards the rule's bounds.
    """
    most = rule.warmup_max - kept_back
    window = window_size(rule.warmup_min, most)
    latency_ns: List[int] = []
    while len(latency_ns) < most:
        wanted = max(window or 1, rule.warmup_min - len(latency_ns))
        latency_ns += runner.time_batch(min(wanted, most - len(latency_ns)))
        if is_steady(latency_ns, window):
            return latency_ns, True
    return latency_ns, False if window else None


def worse(one: Optional[bool], other: Optional[bool]) -> Optional[bool]:
    """Of two warm-ups, whether both got steady; None where that cannot be said."""
    return False if False in (one, other) else None if None in (one, other) else True


def after_reading(rule: StoppingRule) -> int:
    """Of a warm-up how many inferences to keep back for after the board's state was read."""
    return min(AFTER_READING, rule.warmup_max - 1)


class TimedLoop:
    """One loop over one loaded model.

    keeper: None where no band is to be kept; keep_until_s: its deadline, on time.monotonic().
    """

    def __init__(
        self,
        runner: Runner,
        rule: StoppingRule,
        warmup_ns: Sequence[int],
        counter: Counter,
        keeper: Optional[Keeper] = None,
        keep_until_s: Optional[float] = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._runner = runner
        self._rule = rule
        self._batch = max(1, int(BATCH_NS // max(1, median(warmup_ns))))
        self._counter = counter
        self._keeper = keeper
        self._keep_until_s = keep_until_s
        self._clock_ns = clock_ns
        self._latency_ns: List[int] = []
        self._pauses: List[Pause] = []
        self._returns = 0
        self._warmup_count = 0
        self._steady: Optional[bool] = True
        self._look_at = rule.samples_min

    def run(self) -> Timed:
        """Every latency, in batches short enough to end the loop in time.

        Raises RunFailedError where the keeper does, or where it is needed too often.
        """
        began_ns = stopped_ns = self._clock_ns()
        if self._keeper is not None:
            self._keep_state(stopped_ns)
        self._counter.start()
        while True:
            self._latency_ns += self._runner.time_batch(self._next_batch())
            stopped_ns = self._clock_ns()
            spent_ns = stopped_ns - began_ns - self._paused_ns
            look = self._is_to_look(spent_ns)
            if self._is_at_its_end(spent_ns):
                self._counter.stop()
                break
            if look or self._keeper is not None:
                self._counter.stop()
                if look and is_enough(self._latency_ns, self._rule.ci_fraction):
                    break
                self._keep_state(stopped_ns)
                self._counter.start()
        return Timed(
            latency_ns=tuple(self._latency_ns),
            pauses=tuple(self._pauses),
            warmup_count=self._warmup_count,
            timed_ns=spent_ns,
            steady=self._steady,
        )

    @property
    def _paused_ns(self) -> int:
        return sum(end_ns - begin_ns for begin_ns, end_ns in self._pauses)

    def _next_batch(self) -> int:
        taken, rule = len(self._latency_ns), self._rule
        bound = rule.samples_min if taken < rule.samples_min else rule.samples_max
        return min(self._batch, bound - taken)

    def _is_at_its_end(self, spent_ns: int) -> bool:
        taken, rule = len(self._latency_ns), self._rule
        if taken < rule.samples_min:
            return False
        return taken >= rule.samples_max or spent_ns >= rule.max_seconds * 1e9

    def _is_to_look(self, spent_ns: int) -> bool:
        taken = len(self._latency_ns)
        if taken < self._look_at or spent_ns < self._rule.min_seconds * 1e9:
            return False
        # Each look costs time in proportion to the samples: a tenth more before the next.
        self._look_at = taken * 11 // 10
        return True

    def _keep_state(self, stopped_ns: int) -> None:
        """Bring the state back if it is to be; warm up again after that and any other pause."""
        if not self._brought_back() and self._clock_ns() - stopped_ns <= IDLE_NS:
            return
        kept_back = after_reading(self._rule)
        latency_ns, steady = warm_up(self._runner, self._rule, kept_back)
        latency_ns += self._runner.time_batch(kept_back)
        self._warmup_count += len(latency_ns)
        self._steady = worse(self._steady, steady)
        self._pauses.append((stopped_ns, self._clock_ns()))

    def _brought_back(self) -> bool:
        if self._keeper is None or not self._keeper.keep(self._keep_until_s):
            return False
        self._returns += 1
        if self._returns > MOST_RETURNS:
            raise RunFailedError(
                "condition",
                f"the band was left {self._returns} times within "
                f"{len(self._latency_ns)} inferences",
                "ask for a wider band, or one that this load holds by itself",
            )
        return True
