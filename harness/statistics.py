"""What the raw samples of a run say, and no more than they can say.

Input: latencies in ns, in the order in which they were measured. Output: the same unit.

Neighbouring inferences share the board's clock, heat and other tenants: they are autocorrelated,
and n of them are worth fewer than n. Intervals and percentiles go by what they are worth.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILE_CONFIDENCE = 0.99


@dataclass(frozen=True)
class Summary:
    """A run in figures, ns but for the counts. A percentile is None where it is not supported.

    effective_n: independent samples that the series is worth, in 1..n. stdev_ns: 0 for one sample.
    mad_ns: median absolute deviation from the median, unscaled.
    """

    n: int
    effective_n: float
    min_ns: int
    mean_ns: float
    p50_ns: int
    p90_ns: int | None
    p95_ns: int | None
    p99_ns: int | None
    max_ns: int
    stdev_ns: float
    mad_ns: float


def summarise(latency_ns: Sequence[int]) -> Summary:
    """Summary of one run's samples. Raises ValueError if empty."""
    if not latency_ns:
        raise ValueError("a summary of no latency")
    x = np.asarray(latency_ns, dtype=np.float64)
    effective_n = effective_sample_size(latency_ns)

    def percentile(fraction: float) -> int | None:
        supported = effective_n >= samples_for_percentile(fraction)
        return round(float(np.quantile(x, fraction))) if supported else None

    return Summary(
        n=len(x),
        effective_n=effective_n,
        min_ns=int(x.min()),
        mean_ns=float(x.mean()),
        p50_ns=median_ns(latency_ns),
        p90_ns=percentile(0.90),
        p95_ns=percentile(0.95),
        p99_ns=percentile(0.99),
        max_ns=int(x.max()),
        stdev_ns=float(x.std(ddof=1)) if len(x) > 1 else 0.0,
        mad_ns=float(np.median(np.abs(x - np.median(x)))),
    )


def median_ns(latency_ns: Sequence[int]) -> int:
    """The median, rounded to whole ns. Raises ValueError if empty."""
    if not latency_ns:
        raise ValueError("the median of no latency")
    return round(float(np.median(np.asarray(latency_ns, dtype=np.float64))))


@functools.cache
def samples_for_percentile(fraction: float) -> int:
    """Independent samples of which, with 99 % confidence, two or more lie beyond the percentile.

    Distribution-free: the number beyond is binomial. 64 for p90, 130 for p95, 662 for p99.
    fraction: in (0, 1).
    """
    n = 2
    tail = 1 - fraction
    while fraction**n + n * tail * fraction ** (n - 1) > 1 - PERCENTILE_CONFIDENCE:
        n += 1
    return n


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
    give a falsely narrow interval. (The stationary bootstrap with automatic blocks was tried
    beside it and covered less on short correlated series: docs/method.md.)
    """
    from scipy import stats  # takes half a second to import, and few verbs need it

    x = np.sort(np.asarray(latency_ns, dtype=np.int64))
    n = len(x)
    if n == 0:
        return None
    effective = int(effective_sample_size(latency_ns))
    low_rank = stats.binom.ppf((1 - confidence) / 2, effective, 0.5)
    if not effective or low_rank < 1:
        return None
    # The rank's fraction of the effective sample, carried over to the real one.
    low = int(np.floor((low_rank - 1) / effective * n))
    return int(x[low]), int(x[n - 1 - low])
