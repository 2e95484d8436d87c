"""The loop on a runner whose inferences move the clock: every number is known beforehand."""

import pytest

from device_agents.contract import StoppingRule
from device_agents.errors import RunFailedError
from device_agents.timed_loop import IDLE_NS, MOST_RETURNS, TimedLoop, warm_up, worse

MS = 1_000_000


class Board:
    """A runner, a keeper, a counter and the clock of one board.

    latency: ns of the i-th inference. returns: what ``keep`` answers in turn, False at the end.
    """

    def __init__(self, latency=lambda i: 50 * MS, returns=(), keep_ns=0) -> None:
        self.latency = latency
        self.returns = list(returns)
        self.keep_ns = keep_ns
        self.now_ns = 1_000
        self.count = 0
        self.batches = []
        self.counted_ns = 0
        self.deadlines = []

    def time_batch(self, count):
        latency_ns = [self.latency(self.count + i) for i in range(count)]
        self.count += count
        self.batches.append(count)
        self.now_ns += sum(latency_ns)
        return latency_ns

    def keep(self, deadline_s=None):
        self.deadlines.append(deadline_s)
        returned = self.returns.pop(0) if self.returns else False
        self.now_ns += 5_000 * MS if returned else self.keep_ns
        return returned

    def start(self):
        self.counted_ns -= self.now_ns

    def stop(self):
        self.counted_ns += self.now_ns

    def run(self, rule, warmup_ns=(50 * MS,), keeps=False, keep_until_s=None):
        return TimedLoop(
            self, rule, warmup_ns, self, self if keeps else None, keep_until_s, lambda: self.now_ns
        ).run()


def noisy(i: int) -> int:
    return 100_000 + (i * 7919) % 90_001


@pytest.mark.parametrize(
    ("latency", "expected"), [(lambda i: 1000 + i % 2, 30), (noisy, 200), (lambda i: 1000, 30)]
)
def test_it_ends_by_its_interval_or_its_maximum(latency, expected):
    rule = StoppingRule(samples_min=30, samples_max=200, ci_fraction=0.02)
    assert len(Board(latency).run(rule, [1000]).latency_ns) == expected


@pytest.mark.parametrize(("max_seconds", "expected"), [(0.1, 5), (0.35, 7), (9.0, 20)])
def test_it_ends_by_its_seconds_but_not_before_its_least_samples(max_seconds, expected):
    rule = StoppingRule(samples_min=5, samples_max=20, ci_fraction=0.0001, max_seconds=max_seconds)
    board = Board(lambda i: 50 * MS + noisy(i))
    assert len(board.run(rule).latency_ns) == expected
    assert max(board.batches) == 1


def test_it_lasts_its_least_seconds():
    rule = StoppingRule(samples_min=10, samples_max=1000, max_seconds=9, min_seconds=2)
    assert len(Board().run(rule).latency_ns) == 40


def test_no_batch_runs_past_the_bounds():
    rule = StoppingRule(samples_min=7, samples_max=23, ci_fraction=0.0001)
    board = Board(noisy)
    assert len(board.run(rule, [1]).latency_ns) == 23
    assert board.batches == [7, 16]


def test_it_stands_still_while_the_state_is_brought_back_and_warms_up_again():
    rule = StoppingRule(samples_min=2, samples_max=4, ci_fraction=0.0001)
    # The first five after the pause are slow.
    board = Board(lambda i: (90 if 1 <= i < 6 else 50) * MS, returns=[False, True])
    timed = board.run(rule, keeps=True)
    assert timed.latency_ns == (50 * MS,) * 4
    assert timed.warmup_count == board.count - 4 == 18  # three windows of five, and three
    assert timed.steady is True
    ((begin_ns, end_ns),) = timed.pauses
    assert begin_ns == 1_000 + 50 * MS
    assert end_ns == board.now_ns - 3 * 50 * MS
    assert timed.in_pause(begin_ns + 1)
    assert not timed.in_pause(end_ns + 1)
    assert timed.timed_ns == board.counted_ns == 4 * 50 * MS


def test_a_state_that_moved_before_the_loop_is_brought_back_first():
    rule = StoppingRule(samples_min=4, samples_max=4)
    board = Board(returns=[True])
    timed = board.run(rule, keeps=True, keep_until_s=12.5)
    ((begin_ns, _),) = timed.pauses
    assert begin_ns == 1_000
    assert timed.timed_ns == board.counted_ns == 4 * 50 * MS
    assert set(board.deadlines) == {12.5}


def test_warming_up_again_is_bounded_and_told():
    rule = StoppingRule(warmup_min=5, warmup_max=20, samples_min=2, samples_max=2)
    board = Board(lambda i: (50 + 20 * i) * MS, returns=[True])
    timed = board.run(rule, keeps=True)
    assert timed.warmup_count == 20
    assert timed.steady is False


def test_a_slow_sensor_is_a_pause_too():
    rule = StoppingRule(samples_min=2, samples_max=2)
    assert Board(keep_ns=IDLE_NS).run(rule, keeps=True).pauses == ()
    timed = Board(keep_ns=IDLE_NS + 1).run(rule, keeps=True)
    assert len(timed.pauses) == 2
    assert timed.timed_ns == 2 * 50 * MS


def test_a_band_that_cannot_be_held_ends_the_run():
    rule = StoppingRule(samples_min=30, samples_max=400)
    with pytest.raises(RunFailedError, match="the band was left") as caught:
        Board(returns=[True] * (MOST_RETURNS + 1)).run(rule, keeps=True)
    assert caught.value.error.kind == "condition"


def test_warm_up_keeps_some_back():
    rule = StoppingRule(warmup_min=5, warmup_max=20)
    latency_ns, steady = warm_up(Board(lambda i: (50 + 20 * i) * MS), rule, 3)
    assert (len(latency_ns), steady) == (17, False)


def test_of_two_warm_ups_the_worse_counts():
    assert worse(True, True) is True
    assert worse(None, True) is None
    assert worse(True, False) is worse(False, None) is False
