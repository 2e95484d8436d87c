"""What the raw samples of a run say: medians, and intervals that hold for correlated samples.

Input: latencies in ns. Output: the same unit.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def median_ns(latency_ns: Sequence[int]) -> int:
    """The median, rounded to whole ns. Raises ValueError if empty."""
    if not latency_ns:
        raise ValueError("the median of no latency")
    return round(float(np.median(np.asarray(latency_ns, dtype=np.float64))))


def effective_sample_size(values: Sequence[float]) -> float:
    """How many independent samples the series is worth, in 1..n.

    Sum of autocorrelations up to the first non-positive pair (Geyer 1992, initial positive
    sequence).
    """
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    centred = x - x.mean() if n else x
    variance = float(centred @ centred)
    if n < 4 or variance == 0.0:
        return float(n)
    correlation = np.correlate(centred, centred, mode="full")[n - 1 :] / variance
    total = 0.0
    for lag in range(1, n - 1, 2):
        pair = float(correlation[lag] + correlation[lag + 1])
        if pair <= 0:
            break
        total += pair
    return float(min(n, max(1.0, n / (1 + 2 * total))))


def median_interval_ns(
    latency_ns: Sequence[int], confidence: float = 0.95
) -> tuple[int, int] | None:
    """Distribution-free interval of the median from order statistics; None where n is too small.

    The binomial ranks are taken at the effective sample size, so that correlated samples do not
    give a falsely narrow interval.
    """
    from scipy import stats  # takes half a second to import, and few verbs need it

    x = np.sort(np.asarray(latency_ns, dtype=np.int64))
    n = len(x)
    if n == 0:
        return None
    effective = int(effective_sample_size([float(v) for v in latency_ns]))
    low_rank = stats.binom.ppf((1 - confidence) / 2, effective, 0.5)
    if not effective or low_rank < 1:
        return None
    # The rank's fraction of the effective sample, carried over to the real one.
    low = int(np.floor((low_rank - 1) / effective * n))
    return int(x[low]), int(x[n - 1 - low])
