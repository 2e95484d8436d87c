"""When warm-up is over and when enough has been timed.

Input: latencies in ns, in order. Output: steady or not, and the 95 % interval of their median.
Method: docs of pyperf (two windows, quartiles, MAD) for steadiness; order statistics at the
effective sample size for the interval, because neighbouring latencies are alike.
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
    """Distribution-free 95 % interval of the median; None when there are too few samples.

    The ranks are those of independent samples, moved apart by sqrt(n / effective n).
    """
    n = len(latency_ns)
    if n < 6:  # the widest interval, lowest to highest, then covers less than 95 %
        return None
    effective = effective_count(latency_ns)
    half = _Z_95 / 2 * math.sqrt(n) * math.sqrt(n / effective)
    low, high = math.floor(n / 2 - half), math.ceil(n / 2 + half)
    if low < 0 or high > n - 1:
        return None
    ordered = sorted(latency_ns)
    return ordered[low], ordered[high]


def effective_count(latency_ns: Sequence[int]) -> float:
    """How many independent samples tell as much of the median; between 1 and n.

    n / (1 + 2 Σ r_k), r_k the correlation at lag k of the series "above the median or not", whose
    mean the median's rank is; summed up to the first pair of lags that is not positive (Geyer
    1992, initial positive sequence).
    """
    n = len(latency_ns)
    centre_ns = median(latency_ns)
    signs = [float((ns > centre_ns) - (ns < centre_ns)) for ns in latency_ns]
    mean = sum(signs) / n
    centred = [sign - mean for sign in signs]
    variance = sum(value * value for value in centred)
    if variance == 0:
        return float(n)
    total = 0.0
    for lag in range(1, min(n // 2, _LAGS_MAX), 2):
        pair = _correlation(centred, lag, variance) + _correlation(centred, lag + 1, variance)
        if pair <= 0:
            break
        total += pair
    return min(float(n), max(1.0, n / (1 + 2 * total)))


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


def _correlation(centred: List[float], lag: int, variance: float) -> float:
    return sum(a * b for a, b in zip(centred, centred[lag:])) / variance


def _mad_ns(latency_ns: Sequence[int]) -> float:
    centre_ns = median(latency_ns)
    return float(median([abs(ns - centre_ns) for ns in latency_ns]))


def _quartiles_ns(latency_ns: Sequence[int]) -> Tuple[float, float]:
    ordered = sorted(latency_ns)
    middle = (len(ordered) + 1) // 2
    return float(median(ordered[:middle])), float(median(ordered[-middle:]))
