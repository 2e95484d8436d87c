"""Whether B is slower than A: paired runs, a test that a few wild pairs do not decide.

Input: raw latencies in ns of runs done in pairs, A beside B in time on one board. Output: a
PairedComparison: change of the p50, its interval, a p-value, a verdict.

The test flips signs (Fisher 1935): where A and B are equal, each pair's log ratio is as likely to
be its own opposite, whatever the noise's shape and whatever the pairs share, as long as which of
the two runs goes first is random. Its statistic is redescending (Tukey's biweight; Huber 1981), so
that a run that the host slowed down by half counts for nothing instead of for everything.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from harness.statistics import median_ns

FloatArray: TypeAlias = npt.NDArray[np.float64]
VerdictName: TypeAlias = Literal["faster", "slower", "same", "unclear"]

ALPHA = 0.01
"""A comparison of two equal things errs once in a hundred: nightly jobs make many."""

TOLERANCE = 0.01
"""Smaller changes of the p50 are no news, however surely they are seen."""

CHANGE_OF_INTEREST = 0.03
"""What must not stay unseen: `same` excludes it, and the pairs still needed are counted for it."""

POWER = 0.9

_BIWEIGHT_C = 4.685  # 95 % as efficient as the mean on normal noise
_MAD_TO_SIGMA = 1.4826
_FLIPS = 4095
_FLIPS_SEED = 20_240
_TINY = 1e-12


@dataclass(frozen=True)
class PairedComparison:
    """How B compares with A, over the pairs of one cell.

    change: fraction by which B's p50 is above A's (0.03: three per cent slower), > -1.
    change_low, change_high: its interval at 1 - alpha, the test's own; infinite where so few pairs
    can exclude nothing. p_value: of no change, two-sided, in (0, 1].
    n_pairs: pairs compared. n_wild: those of them that the estimate leaves out, or nearly.
    more_pairs: how many more would show CHANGE_OF_INTEREST in 9 of 10 comparisons; 0 when there
    are enough.
    """

    verdict: VerdictName
    change: float
    change_low: float
    change_high: float
    p_value: float
    n_pairs: int
    n_wild: int
    more_pairs: int


def compare_paired(
    a_ns: Sequence[Sequence[int]], b_ns: Sequence[Sequence[int]], *, alpha: float = ALPHA
) -> PairedComparison:
    """Compare runs a_ns[i] with runs b_ns[i] that ran beside them; each a run's latencies in ns.

    Raises ValueError where there is no pair, the two differ in number or a run is empty.
    """
    if len(a_ns) != len(b_ns):
        raise ValueError(f"{len(a_ns)} runs of A cannot be paired with {len(b_ns)} of B")
    return compare_log_ratios(
        [math.log(median_ns(b) / median_ns(a)) for a, b in zip(a_ns, b_ns, strict=True)],
        alpha=alpha,
    )


def compare_log_ratios(log_ratios: Sequence[float], *, alpha: float = ALPHA) -> PairedComparison:
    """Compare from the pairs' ln(B's p50 / A's p50). Raises ValueError where there is none."""
    d = np.asarray(log_ratios, dtype=np.float64)
    if not len(d) or not np.isfinite(d).all():
        raise ValueError("a comparison needs at least one pair, and finite ratios")
    flips = _sign_flips(len(d))
    estimate, sigma, wild = _location(d)
    p_value = _p_value(d, flips)
    low = _bound(d, flips, estimate, sigma, -1.0, alpha)
    high = _bound(d, flips, estimate, sigma, 1.0, alpha)
    needed = _pairs_needed(sigma, alpha)
    return PairedComparison(
        verdict=verdict_of(p_value, estimate, low, high, alpha),
        change=math.expm1(estimate),
        change_low=math.expm1(low),
        change_high=_expm1(high),
        p_value=p_value,
        n_pairs=len(d),
        n_wild=wild,
        more_pairs=max(0, needed - len(d)),
    )


def verdict_of(
    p_value: float, estimate: float, low: float, high: float, alpha: float
) -> VerdictName:
    """What may be said. estimate, low, high: log ratios."""
    if p_value <= alpha and abs(estimate) >= math.log1p(TOLERANCE):
        return "slower" if estimate > 0 else "faster"
    limit = math.log1p(CHANGE_OF_INTEREST)
    return "same" if -limit < low and high < limit else "unclear"


def _sign_flips(n: int) -> FloatArray:
    """Rows of n signs: every one where they are few, else drawn from one fixed seed."""
    if 2**n <= _FLIPS + 1:
        rows = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    else:
        rows = np.random.default_rng(_FLIPS_SEED).integers(0, 2, (_FLIPS, n))
        rows[0] = 0  # the signs as they are belong to their own distribution
    return (1 - 2 * rows).astype(np.float64)


def _p_value(d: FloatArray, flips: FloatArray) -> float:
    """Share of sign patterns that are at least as extreme as the pairs' own."""
    # A scale about zero does not change when signs do, so that each pattern is judged alike.
    scale = _MAD_TO_SIGMA * float(np.median(np.abs(d)))
    psi = _biweight(d / max(scale, _TINY))
    observed = abs(float(psi.sum()))
    return float(np.mean(np.abs(flips @ psi) >= observed - 1e-9))


def _biweight(u: FloatArray) -> FloatArray:
    return np.where(np.abs(u) < _BIWEIGHT_C, u * (1 - (u / _BIWEIGHT_C) ** 2) ** 2, 0.0)


def _location(d: FloatArray) -> tuple[float, float, int]:
    """Biweight location, what one pair scatters about it in a robust sense, and the wild pairs."""
    centre = float(np.median(d))
    scale = _MAD_TO_SIGMA * float(np.median(np.abs(d - centre)))
    if scale < _TINY:
        return centre, 0.0, int(np.sum(np.abs(d - centre) > _TINY))
    for _ in range(50):
        weights = np.clip(1 - ((d - centre) / (_BIWEIGHT_C * scale)) ** 2, 0, None) ** 2
        before, centre = centre, float(weights @ d / weights.sum())
        if abs(centre - before) < 1e-9:
            break
    u = (d - centre) / scale
    inside = np.abs(u) < _BIWEIGHT_C
    slope = np.where(inside, (1 - (u / _BIWEIGHT_C) ** 2) * (1 - 5 * (u / _BIWEIGHT_C) ** 2), 0.0)
    # Influence-function variance of an M-estimator (Huber 1981, section 3.2).
    sigma = scale * math.sqrt(float(np.mean(_biweight(u) ** 2))) / max(float(slope.mean()), 0.1)
    return centre, sigma, int(np.sum(~inside))


def _bound(
    d: FloatArray, flips: FloatArray, estimate: float, sigma: float, side: float, alpha: float
) -> float:
    """The nearest shift on one side of the estimate that the test rejects: the test inverted."""
    if 2.0 / 2 ** len(d) > alpha:
        return side * math.inf
    step = max(sigma / math.sqrt(len(d)), _TINY)
    inner, outer = 0.0, step
    while _p_value(d - (estimate + side * outer), flips) > alpha:
        inner, outer = outer, outer * 1.5
        if outer > 50:
            return side * math.inf
    for _ in range(20):
        middle = (inner + outer) / 2
        if _p_value(d - (estimate + side * middle), flips) > alpha:
            inner = middle
        else:
            outer = middle
    return estimate + side * outer


def _pairs_needed(sigma: float, alpha: float) -> int:
    """Pairs that show CHANGE_OF_INTEREST with POWER, by the normal approximation."""
    from scipy import stats  # takes half a second to import

    z = float(stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(POWER))
    fewest = math.ceil(math.log2(2 / alpha))
    return max(fewest, math.ceil((z * sigma / math.log1p(CHANGE_OF_INTEREST)) ** 2))


def _expm1(value: float) -> float:
    return math.inf if math.isinf(value) else math.expm1(value)
