"""When warm-up is over and when enough has been timed.

Input: latencies in ns, in order. Output: steady or not, and the 95 % interval of their median.
Method: docs of pyperf (two windows, quartiles, MAD) for steadiness; order statistics at the
effective sample size for the interval, because neighbouring latencies are alike. What a series is
worth is itself an estimate from that series, and comes out too high for short ones: it is
corrected for the mean that is estimated too, taken at the level where it is least, and refused
where it is little. Simulated in test_stopping.py: of the intervals that are given, 93 to 99 % cover
for n >= 60, if the series is worth 20 independent samples or more.
"""

from __future__ import annotations

import math
from statistics import median
from typing import List, Optional, Sequence, Tuple

_Z_95 = 1.959964
_STEADY_FRACTION = 0.05
_QUARTILE_FRACTION = 0.10
_WINDOW_MIN = 3
_WINDOW_MAX = 10
_LAGS_MAX = 200
_EFFECTIVE_MIN = 8.0
_LEVELS = (0.5, 0.3, 0.7)
_ITERATIONS = 20


def window_size(warmup_min: int, warmup_max: int) -> int:
    """Inferences in each of the two windows; 0 where warmup_max has no room for two."""
    size = min(max(_WINDOW_MIN, min(_WINDOW_MAX, warmup_min)), warmup_max // 2)
    return size if size >= 2 else 0


def is_steady(latency_ns: Sequence[int], window: int) -> bool:
    """Whether the last two windows look alike in median and quartiles.

    Alike: medians closer than 5 % of the earlier one or than the larger median absolute deviation;
    quartiles closer than 10 % of it or than twice the smaller deviation, so that a window of much
    wider spread is not taken for the same. False while there are fewer than two windows.
    """
    if window < 2 or len(latency_ns) < 2 * window:
        return False
    earlier, later = latency_ns[-2 * window : -window], latency_ns[-window:]
    centre_ns = median(earlier)
    mads_ns = (_mad_ns(earlier), _mad_ns(later))
    if abs(median(later) - centre_ns) > max(_STEADY_FRACTION * centre_ns, max(mads_ns)):
        return False
    bound_ns = max(_QUARTILE_FRACTION * centre_ns, 2 * min(mads_ns))
    pairs = zip(_quartiles_ns(earlier), _quartiles_ns(later))
    return all(abs(a - b) <= bound_ns for a, b in pairs)


def median_interval_ns(latency_ns: Sequence[int]) -> Optional[Tuple[int, int]]:
    """Distribution-free 95 % interval of the median; None where the samples do not support one.

    The ranks are those of independent samples, moved apart by sqrt(n / effective n) and by
    Student's t for as many. Fewer than 8 independent ones are too few to know how few they are.
    """
    n = len(latency_ns)
    if n < _EFFECTIVE_MIN:
        return None
    effective = effective_count(latency_ns)
    if effective < _EFFECTIVE_MIN:
        return None
    half = _student_95(effective - 1) / 2 * math.sqrt(n) * math.sqrt(n / effective)
    low, high = math.floor(n / 2 - half), math.ceil(n / 2 + half)
    if low < 0 or high > n - 1:
        return None
    ordered = sorted(latency_ns)
    return ordered[low], ordered[high]


def effective_count(latency_ns: Sequence[int]) -> float:
    """How many independent samples tell as much of the median; between 1 and n.

    n / (1 + 2 Σ r_k), r_k the correlation at lag k of the series "above the median or not", whose
    mean the median's rank is. Where the samples move between two levels, the median lies within
    one of them, and the series about it is mostly that level's own noise: so the 0.3 and 0.7
    quantiles are asked as well, and the least of the three stands.
    """
    ordered = sorted(latency_ns)
    n = len(ordered)
    levels_ns = [ordered[min(n - 1, int(level * n))] for level in _LEVELS]
    return min(
        _effective_of([float((ns > level_ns) - (ns < level_ns)) for ns in latency_ns])
        for level_ns in levels_ns
    )


def is_enough(latency_ns: Sequence[int], ci_fraction: float) -> bool:
    """Whether the interval of the median is narrower than ci_fraction of it."""
    interval_ns = median_interval_ns(latency_ns)
    if interval_ns is None:
        return False
    return interval_ns[1] - interval_ns[0] < ci_fraction * median(latency_ns)


def halves_differ(latency_ns: Sequence[int], fraction: float) -> bool:
    """Whether the medians of the two halves lie further apart than ``fraction`` of the smaller."""
    if len(latency_ns) < 2:
        return False
    middle = len(latency_ns) // 2
    first_ns, second_ns = median(latency_ns[:middle]), median(latency_ns[middle:])
    return abs(first_ns - second_ns) > fraction * min(first_ns, second_ns)


def _effective_of(values: Sequence[float]) -> float:
    """N / (1 + 2 Σ r_k), summed up to the first pair of lags that is not positive (Geyer 1992,
    initial positive sequence).

    The mean is the sample's own, so every r_k is too low by about a share τ / n of itself and of
    one; τ = 1 + 2 Σ r_k is not known before: it is found by repetition.
    """
    n = len(values)
    mean = sum(values) / n
    centred = [value - mean for value in values]
    variance = sum(value * value for value in centred)
    if variance == 0:
        return float(n)
    pairs: List[Tuple[float, float]] = []
    tau = 1.0
    for _ in range(_ITERATIONS):
        before = tau
        tau = _tau(centred, variance, pairs, min(0.9, tau / n))
        if abs(tau - before) < 1e-6 * tau:
            break
    return n / min(float(n), tau)


def _tau(
    centred: List[float], variance: float, pairs: List[Tuple[float, float]], bias: float
) -> float:
    """1 + 2 Σ r_k, at least 1. pairs: the raw correlations so far, added to as they are needed."""
    n = len(centred)
    total = 0.0
    for i in range(min(n // 2, _LAGS_MAX) // 2):
        lag = 2 * i + 1
        if i == len(pairs):
            even = _correlation(centred, lag + 1, variance)
            pairs.append((_correlation(centred, lag, variance), even))
        odd, even = pairs[i]
        if odd + even <= 0:
            break
        total += (odd * n / (n - lag) + even * n / (n - lag - 1)) * (1 - bias) + 2 * bias
    return max(1.0, 1 + 2 * total)


def _correlation(centred: List[float], lag: int, variance: float) -> float:
    return sum(a * b for a, b in zip(centred, centred[lag:])) / variance


def _student_95(degrees: float) -> float:
    """Student's two-sided 95 % quantile, degrees >= 7, to 0.001: Abramowitz and Stegun 26.7.5."""
    z = _Z_95
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def _mad_ns(latency_ns: Sequence[int]) -> float:
    centre_ns = median(latency_ns)
    return float(median([abs(ns - centre_ns) for ns in latency_ns]))


def _quartiles_ns(latency_ns: Sequence[int]) -> Tuple[float, float]:
    ordered = sorted(latency_ns)
    middle = (len(ordered) + 1) // 2
    return float(median(ordered[:middle])), float(median(ordered[-middle:]))
