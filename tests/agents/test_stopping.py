import math
import random
from statistics import NormalDist

import pytest

from device_agents.stopping import (
    effective_count,
    halves_differ,
    is_enough,
    is_steady,
    median_interval_ns,
    window_size,
)


def test_windows_fit_the_bounds():
    assert window_size(5, 50) == 5
    assert window_size(1, 50) == 3
    assert window_size(100, 1000) == 10
    assert window_size(5, 5) == 2
    assert window_size(1, 3) == 0


def test_a_falling_start_is_not_steady_and_a_level_is():
    falling = [100_000 - 5_000 * i for i in range(10)]
    assert not is_steady(falling, 5)
    assert is_steady(falling + [50_000, 50_100] * 5, 5)


def test_too_little_is_not_steady():
    assert not is_steady([100] * 9, 5)
    assert not is_steady([100] * 100, 0)


def test_one_outlier_does_not_unsettle():
    assert is_steady([100, 101, 100, 102, 900, 100, 101, 102, 100, 101], 5)


def test_equal_medians_with_other_spread_are_not_steady():
    assert not is_steady([100, 100, 100, 100, 100, 40, 60, 100, 140, 160], 5)


REPEATS = 250


def one_level(rng: random.Random, n: int, rho: float) -> list[int]:
    """AR(1), stationary from its first value, median 1,000,000."""
    value, values = rng.gauss(0, 1), []
    for _ in range(n):
        values.append(1_000_000 + round(20_000 * value))
        value = rho * value + math.sqrt(1 - rho * rho) * rng.gauss(0, 1)
    return values


def two_levels(rng: random.Random, n: int, stay: float, upper: float) -> list[int]:
    """A share ``upper`` 10 % higher, at a level drawn anew with probability 1 - stay."""
    high, values = rng.random() < upper, []
    for _ in range(n):
        values.append(1_000_000 + 100_000 * high + round(5000 * rng.gauss(0, 1)))
        if rng.random() > stay:
            high = rng.random() < upper
    return values


def lower_median(upper: float) -> float:
    """Of two_levels; nothing of the upper level reaches so far down."""
    return 1_000_000 + 5000 * NormalDist().inv_cdf(0.5 / (1 - upper))


def coverage(draw, truth_ns: float) -> tuple[float, float]:
    """Of REPEATS series: the share with an interval, and how many of these cover."""
    intervals = [median_interval_ns(draw()) for _ in range(REPEATS)]
    given = [interval for interval in intervals if interval is not None]
    covered = sum(low <= truth_ns <= high for low, high in given)
    return len(given) / REPEATS, covered / len(given)


@pytest.mark.parametrize(("n", "rho"), [(60, 0.0), (60, 0.5), (200, 0.8), (400, 0.9)])
def test_intervals_cover_as_often_as_they_say(n, rho):
    rng = random.Random(n)
    given, covered = coverage(lambda: one_level(rng, n, rho), 1_000_000)
    assert given >= 0.75
    assert covered >= 0.93


@pytest.mark.parametrize(
    ("n", "stay", "upper"),
    [(60, 0.0, 0.2), (60, 0.5, 0.35), (60, 0.5, 0.45), (200, 0.8, 0.45), (400, 0.9, 0.2)],
)
def test_intervals_cover_between_two_levels(n, stay, upper):
    rng = random.Random(n)
    given, covered = coverage(lambda: two_levels(rng, n, stay, upper), lower_median(upper))
    assert given >= 0.75
    assert covered >= 0.93


def test_a_series_worth_too_little_has_no_interval():
    rng = random.Random(3)
    worth = [effective_count(one_level(rng, 60, 0.97)) for _ in range(50)]
    assert sorted(worth)[25] < 5
    assert coverage(lambda: one_level(rng, 60, 0.97), 1_000_000)[0] < 0.2


def autocorrelated(n: int, rho: float, seed: int) -> list[int]:
    rng = random.Random(seed)
    value, values = 0.0, []
    for _ in range(n):
        value = rho * value + rng.gauss(0, 1)
        values.append(1_000_000 + round(10_000 * value))
    return values


def test_autocorrelation_widens_the_interval():
    alike = autocorrelated(200, 0.9, 3)
    mixed = sorted(alike, key=lambda v: (v * 2654435761) % 1009)
    assert effective_count(alike) < 60
    assert effective_count(mixed) > 120
    wide, narrow = median_interval_ns(alike), median_interval_ns(mixed)
    assert wide is None or wide[1] - wide[0] > narrow[1] - narrow[0]


def test_effective_count_stays_within_its_bounds():
    assert effective_count([5] * 30) == 30
    assert 1 <= effective_count(list(range(100))) <= 5
    assert effective_count([1, 2] * 50) == 100


@pytest.mark.parametrize("n", [1, 5, 7])
def test_too_few_samples_have_no_interval(n):
    assert median_interval_ns(list(range(1, n + 1))) is None
    assert not is_enough([100] * n, 0.5)


def test_enough_is_a_narrow_interval():
    assert is_enough([100_000 + i % 3 for i in range(30)], 0.02)
    assert not is_enough([100_000 + (i * 7919) % 50_000 for i in range(30)], 0.02)


def test_halves():
    assert halves_differ([100] * 5 + [111] * 5, 0.10)
    assert not halves_differ([100] * 5 + [109] * 5, 0.10)
    assert not halves_differ([100], 0.10)
